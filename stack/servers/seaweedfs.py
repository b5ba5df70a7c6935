"""SeaweedFS as the S3 store of the lake, when asked for; the catalog stays in Postgres."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pyarrow.fs import S3FileSystem

from headrace.errors import StackError
from stack import probes
from stack.spec import Endpoints, Place, Server

BUCKET = "headrace"
BINARY = Path(sys.executable).parent / "weed"


def _keys(place: Place) -> tuple[str, str]:
    return place.secret("s3-access-key"), place.secret("s3-secret-key")


def prepare(place: Place) -> None:
    access, secret = _keys(place)
    identity = {
        "name": "headrace",
        "credentials": [{"accessKey": access, "secretKey": secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    path = place.data("seaweedfs") / "s3.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps({"identities": [identity]}))
    (place.data("seaweedfs") / "store").mkdir(exist_ok=True)


def command(place: Place) -> list[str]:
    if not BINARY.exists():
        raise StackError("its program is not installed", where=str(BINARY), hint="make install")
    folder = place.data("seaweedfs")
    port = place.ports
    options = {
        "dir": folder / "store",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "s3": "true",
        "s3.port": port["s3"],
        "s3.config": folder / "s3.json",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.port.grpc": port["s3-grpc"],
        "s3.localSocket": folder / "s3.sock",
        "s3.iam": "false",
        "master.electionTimeout": "1s",
        "master.resumeState": "false",
        "master.telemetry": "false",
        "filer.localSocket": folder / "filer.sock",
        "master.port": port["s3-master"],
        "master.port.grpc": port["s3-master-grpc"],
        "master.volumeSizeLimitMB": 512,
        "volume.port": port["s3-volume"],
        "volume.port.grpc": port["s3-volume-grpc"],
        "volume.max": 100,
        "volume.preStopSeconds": 0,
        "filer.port": port["s3-filer"],
        "filer.port.grpc": port["s3-filer-grpc"],
    }
    return [str(BINARY), "server", *(f"-{key}={value}" for key, value in options.items())]


def properties(place: Place) -> dict[str, str]:
    access, secret = _keys(place)
    return {
        "s3.endpoint": f"http://{place.address('s3')}",
        "s3.access-key-id": access,
        "s3.secret-access-key": secret,
        "s3.region": "us-east-1",
        "s3.force-virtual-addressing": "false",
    }


def setup(place: Place) -> None:
    """Create the bucket; a no-op when it is there."""
    access, secret = _keys(place)
    store = S3FileSystem(
        access_key=access,
        secret_key=secret,
        endpoint_override=f"http://{place.address('s3')}",
        region="us-east-1",
        connect_timeout=5,
        request_timeout=20,
        allow_bucket_creation=True,
    )
    store.create_dir(BUCKET)


def endpoints(place: Place) -> Endpoints:
    return {"lake": {"warehouse": f"s3://{BUCKET}/lake", "properties": properties(place)}}


SERVER = Server(
    name="seaweedfs",
    setting="lake.warehouse",
    ports={
        "s3": 8333,
        "s3-grpc": 8334,
        "s3-master": 9333,
        "s3-master-grpc": 9433,
        "s3-volume": 8380,
        "s3-volume-grpc": 8480,
        "s3-filer": 8888,
        "s3-filer-grpc": 8988,
    },
    prepare=prepare,
    command=command,
    health=lambda place: probes.http_ok(place.ports["s3"], "/healthz"),
    setup=setup,
    stop_seconds=5,
    endpoints=endpoints,
)
