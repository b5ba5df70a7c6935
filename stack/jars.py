"""Java servers come from Maven Central as the lock file names them: each file is fetched once and checked.

A file enters the cache under its own SHA-256 and only after it has been checked, so presence is proof, an interrupted
download resumes with what is missing, and two stacks share one cache.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests
from jgo.maven import MavenContext, PythonResolver

from headrace.errors import StackError

LOCK = Path(__file__).with_name("jars.lock")
PARALLEL = 8
RETRIES = 3
Fetch = Callable[["Jar", Path], Path]
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Jar:
    """One locked file. `set` names the server or plugin folder that it belongs to."""

    set: str
    group: str
    artifact: str
    version: str
    classifier: str
    packaging: str
    sha256: str

    @property
    def file(self) -> str:
        tail = f"-{self.classifier}" if self.classifier else ""
        return f"{self.artifact}-{self.version}{tail}.{self.packaging}"

    @property
    def coordinates(self) -> str:
        parts = [self.group, self.artifact, self.version, *([self.classifier] if self.classifier else [])]
        return ":".join(parts)


def parse_lock(text: str, where: str = "jars.lock") -> list[Jar]:
    """Lines `set group:artifact:version[:classifier[@packaging]] sha256`; raises `StackError` naming a bad line."""
    jars = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            name, coordinates, digest = line.split()
            spec, _, packaging = coordinates.partition("@")
            group, artifact, version, *rest = spec.split(":")
            (classifier,) = rest or [""]
            if len(bytes.fromhex(digest)) != 32:
                raise ValueError(digest)
        except ValueError as e:
            raise StackError("malformed line", where=f"{where}:{number}", hint="python -m stack.lock_jars") from e
        jars.append(Jar(name, group, artifact, version, classifier, packaging or "jar", digest))
    return jars


def locked(sets: Iterable[str]) -> list[Jar]:
    wanted = set(sets)
    return [jar for jar in parse_lock(LOCK.read_text(), LOCK.name) if jar.set in wanted]


def cache_folder() -> Path:
    """HEADRACE_CACHE, else `headrace` in the XDG cache folder; outside the repository, shared by all stacks."""
    if said := os.environ.get("HEADRACE_CACHE"):
        return Path(said).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace"


def jar_path(jar: Jar, cache: Path) -> Path:
    return cache / "jars" / jar.sha256[:16] / jar.file


def paths(name: str, cache: Path) -> list[Path]:
    """Files of one set, in the order of the lock."""
    return [jar_path(jar, cache) for jar in locked([name])]


def download(jar: Jar, staging: Path, on_bytes: Callable[[int], None] = lambda n: None) -> Path:
    """One file from Maven Central into `staging`, unchecked."""

    @contextmanager
    def progress(name: str, size: int) -> Iterator[Callable[[int], None]]:
        yield on_bytes

    context = MavenContext(
        resolver=PythonResolver(progress_callback=progress), repo_cache=staging, local_repos=[], timeout=60
    )
    component = context.project(jar.group, jar.artifact).at_version(jar.version)
    return Path(component.artifact(classifier=jar.classifier, packaging=jar.packaging).resolve())


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch_one(jar: Jar, cache: Path, fetch: Fetch) -> None:
    target = jar_path(jar, cache)
    problem: Exception | None = None
    for _ in range(RETRIES):
        with tempfile.TemporaryDirectory(dir=cache, prefix="fetch-") as staging:
            try:
                file = fetch(jar, Path(staging))
            except OSError as e:  # requests' errors are OSErrors; one with an errno of its own is the disk's
                if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
                    raise
                problem = e
                continue
            except RuntimeError as e:
                problem = e
                continue
            if (found := digest_of(file)) == jar.sha256:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, target)
                return
            problem = StackError(
                f"SHA-256 is {found[:12]}..., the lock file says {jar.sha256[:12]}...",
                where=jar.coordinates,
                hint="a proxy may have changed the file; try again, or start with a fresh clone",
            )
    if isinstance(problem, StackError):
        raise problem
    reason = "Maven Central cannot be reached" if isinstance(problem, requests.ConnectionError) else "download failed"
    raise StackError(
        reason,
        where=jar.coordinates,
        hint="check the network or HTTPS_PROXY and run the same command again; files fetched so far are kept",
    ) from problem


def fetch_sets(
    sets: Iterable[str], cache: Path, on_progress: OnProgress = lambda done, all_: None, fetch: Fetch = download
) -> int:
    """Make every file of `sets` present in `cache`; returns how many were fetched now.

    `on_progress(done, missing)` is called as files arrive. Raises `StackError` with the file and the way out.
    """
    missing = list({jar.sha256: jar for jar in locked(sets) if not jar_path(jar, cache).exists()}.values())
    if not missing:
        return 0
    missing.sort(key=lambda jar: jar.packaging == "jar")  # the one large archive first
    try:
        cache.mkdir(parents=True, exist_ok=True)
        on_progress(0, len(missing))
        with ThreadPoolExecutor(PARALLEL, thread_name_prefix="fetch") as pool:
            futures = [pool.submit(_fetch_one, jar, cache, fetch) for jar in missing]
            try:
                for done, future in enumerate(as_completed(futures), 1):
                    future.result()
                    on_progress(done, len(missing))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    except OSError as e:
        full = e.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StackError(
            "no space left for the servers' files" if full else f"cannot be written: {e.strerror}",
            where=str(cache),
            hint="free about 600 MB there, or set HEADRACE_CACHE to another folder",
        ) from e
    return len(missing)


def _extract(path: Path, target: Path) -> None:
    if path.suffix == ".jar":
        with zipfile.ZipFile(path) as jar:
            jar.extractall(target)
        return
    with tarfile.open(path) as archive:
        if hasattr(tarfile, "data_filter"):  # from Python 3.11.4; the archive is checked against the lock anyway
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(target)


def unpacked(name: str, cache: Path) -> Path:
    """Folder with the content of a set that is one archive (tar or jar); unpacked once, whole or not at all."""
    (jar,) = locked([name])
    target = cache / "unpacked" / jar.sha256[:16]
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=cache, prefix="unpack-"))
    try:
        _extract(jar_path(jar, cache), temporary)
        temporary.chmod(0o755)
        try:
            temporary.rename(target)
        except OSError as e:
            if e.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another stack was quicker
                raise
    except OSError as e:
        raise StackError(f"cannot be unpacked: {e.strerror}", where=jar.file, hint=f"free space in {cache}") from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target
