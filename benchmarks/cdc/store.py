"""A store with an Iceberg REST catalog, which DuckDB needs to write Iceberg: SeaweedFS and its table buckets."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyarrow.fs import FileSelector, S3FileSystem

from benchmarks.tree import Tree
from headrace.config import LakeSettings
from headrace.errors import StackError
from stack import jars
from stack.servers import seaweedfs
from stack.spec import Place
from stack.testing import scattered_ports

BUCKET = "bench"
READY_SECONDS = 60.0


@dataclass(frozen=True)
class Store:
    """`lake` says where it is to pyiceberg and DuckDB; `attach` are statements that show its catalog as `lake`."""

    lake: LakeSettings

    @property
    def attach(self) -> list[str]:
        known = self.lake.properties
        return [
            f"CREATE SECRET catalog (TYPE iceberg, CLIENT_ID '{known['s3.access-key-id']}', "
            f"CLIENT_SECRET '{known['s3.secret-access-key']}', OAUTH2_SERVER_URI '{self.lake.uri}/v1/oauth/tokens')",
            f"ATTACH '{BUCKET}' AS lake (TYPE iceberg, ENDPOINT '{self.lake.uri}', SECRET catalog)",
        ]

    def size(self) -> int:
        """Bytes of all files of its tables."""
        known = self.lake.properties
        files = S3FileSystem(
            access_key=known["s3.access-key-id"],
            secret_key=known["s3.secret-access-key"],
            endpoint_override=known["s3.endpoint"],
            region=known["s3.region"],
        )
        return sum(info.size or 0 for info in files.get_file_info(FileSelector(BUCKET, recursive=True)))


@contextmanager
def running(home: Path) -> Iterator[Store]:
    """A store under `home`, ended when the block is left. Raises `StackError` when it does not start."""
    ports = scattered_ports([*seaweedfs.SERVER.ports, "iceberg"])
    place = Place(home, jars.cache_folder(), ports)
    seaweedfs.prepare(place)
    # Of an option that is said twice the last one counts.
    command = [*seaweedfs.command(place), f"-s3.port.iceberg={ports['iceberg']}"]
    with Tree(command, {}) as tree:
        deadline = time.monotonic() + READY_SECONDS
        while (reason := seaweedfs.SERVER.health(place)) is not None:
            if not tree.running() or time.monotonic() > deadline:
                raise StackError(f"is not well: {reason}", where="seaweedfs")
            time.sleep(0.1)
        _make_bucket(place)
        yield Store(
            LakeSettings(
                catalog="bench",
                uri=f"http://{place.address('iceberg')}",
                warehouse=BUCKET,
                properties=seaweedfs.properties(place),
            )
        )


def _make_bucket(place: Place) -> None:
    servers = {name: f"127.0.0.1:{place.ports[f's3-{name}']}.{place.ports[f's3-{name}-grpc']}" for name in SERVERS}
    shell = [str(seaweedfs.BINARY), "shell", *(f"-{name}={address}" for name, address in servers.items())]
    told = f"s3tables.bucket -create -name {BUCKET} -account headrace\n"
    done = subprocess.run(shell, input=told, capture_output=True, text=True, timeout=READY_SECONDS)
    if "ARN:" not in done.stdout:
        raise StackError(f"makes no table bucket: {done.stdout[-300:]}{done.stderr[-300:]}", where="seaweedfs")


SERVERS = ("master", "filer")
