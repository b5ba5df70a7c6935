from __future__ import annotations

import errno
import hashlib
import zipfile
from pathlib import Path

import pytest
import requests

from headrace.errors import StackError
from stack import jars
from stack.jars import Jar, fetch_sets, jar_path, parse_lock
from stack.lock_jars import PLUGINS, coordinates

CONTENT = {"one": b"first", "two": b"second"}


@pytest.fixture
def lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Jar]:
    text = "".join(f"s org.example:{name}:1.0 {hashlib.sha256(data).hexdigest()}\n" for name, data in CONTENT.items())
    path = tmp_path / "jars.lock"
    path.write_text("# a comment\n\n" + text)
    monkeypatch.setattr(jars, "LOCK", path)
    return parse_lock(text)


def honest(jar: Jar, staging: Path) -> Path:
    path = staging / jar.file
    path.write_bytes(CONTENT[jar.artifact])
    return path


def test_lock_lines_name_classifier_and_packaging() -> None:
    (jar,) = parse_lock(f"registry io.apicurio:app:3.3.3:all@tar.gz {'ab' * 32}")
    assert (jar.set, jar.classifier, jar.file) == ("registry", "all", "app-3.3.3-all.tar.gz")


@pytest.mark.parametrize(
    "line", ["kafka org:a:1", f"kafka org:a {'0' * 64}", "kafka org:a:1 abc", "kafka a:b:c zz" * 2]
)
def test_a_malformed_lock_line_is_named(line: str) -> None:
    with pytest.raises(StackError) as e:
        parse_lock(f"# head\n{line}")
    assert e.value.where == "jars.lock:2"


def test_the_repository_lock_is_sound() -> None:
    found = parse_lock(jars.LOCK.read_text())
    assert {jar.set for jar in found} == {
        "kafka",
        "debezium",
        "debezium-mariadb",
        "converter",
        "byteman",
        "registry",
        "artemis",
        "mariadb",
        "contrib",
    }
    assert len({(jar.set, jar.file) for jar in found}) == len(found)
    worker_gives = {"kafka-clients", "connect-api", "slf4j-api"}
    assert not [jar for jar in found if jar.set in PLUGINS and jar.artifact in worker_gives]


def test_coordinates_are_read_from_maven_layout() -> None:
    plain = Path("org/example/thing/1.0/thing-1.0.jar")
    native = Path("io/netty/epoll/4.1.128.Final/epoll-4.1.128.Final-linux-x86_64.jar")
    assert coordinates(plain) == "org.example:thing:1.0"
    assert coordinates(native) == "io.netty:epoll:4.1.128.Final:linux-x86_64"


def test_fetch_checks_and_keeps_what_is_complete(lock: list[Jar], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert fetch_sets(["s"], tmp_path, lambda done, missing: seen.append((done, missing)), honest) == 2
    assert seen == [(0, 2), (1, 2), (2, 2)]
    jar_path(lock[0], tmp_path).unlink()
    asked: list[str] = []

    def counting(jar: Jar, staging: Path) -> Path:
        asked.append(jar.artifact)
        return honest(jar, staging)

    assert fetch_sets(["s"], tmp_path, fetch=counting) == 1
    assert asked == [lock[0].artifact]


def test_a_changed_file_never_enters_the_cache(lock: list[Jar], tmp_path: Path) -> None:
    def forged(jar: Jar, staging: Path) -> Path:
        path = honest(jar, staging)
        if jar.artifact == "two":
            path.write_bytes(b"evil")
        return path

    with pytest.raises(StackError, match="SHA-256") as e:
        fetch_sets(["s"], tmp_path, fetch=forged)
    assert e.value.where == "org.example:two:1.0"
    assert not jar_path(lock[1], tmp_path).exists()
    assert not list(tmp_path.glob("fetch-*"))


def test_no_network_is_one_sentence(lock: list[Jar], tmp_path: Path) -> None:
    def unreachable(jar: Jar, staging: Path) -> Path:
        raise requests.ConnectionError("name resolution")

    with pytest.raises(StackError, match=r"Maven Central cannot be reached \(check the network"):
        fetch_sets(["s"], tmp_path, fetch=unreachable)


def test_a_full_disk_is_one_sentence(lock: list[Jar], tmp_path: Path) -> None:
    def full(jar: Jar, staging: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StackError, match=r"no space left .* HEADRACE_CACHE"):
        fetch_sets(["s"], tmp_path, fetch=full)


def test_cache_folder_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HEADRACE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert jars.cache_folder() == tmp_path / "headrace"
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "mine"))
    assert jars.cache_folder() == tmp_path / "mine"


def test_a_jar_that_is_an_archive_is_unpacked_once(tmp_path: Path) -> None:
    (jar,) = jars.locked(["mariadb"])
    path = jars.jar_path(jar, tmp_path)
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inner/bin/server", "binary")
    folder = jars.unpacked("mariadb", tmp_path)
    assert (folder / "inner" / "bin" / "server").read_text() == "binary"
    path.unlink()
    assert jars.unpacked("mariadb", tmp_path) == folder
