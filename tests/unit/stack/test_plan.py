from __future__ import annotations

import json
import shutil
import signal
import socket
import uuid
from collections import namedtuple
from pathlib import Path

import pytest

from headrace.errors import StackError
from stack import control, jars
from stack.control import Options, endpoints, external_servers, need_space, wanted
from stack.ports import HIGHEST, choose, is_free
from stack.servers import SERVERS, connect, kafka, mariadb, postgres, registry
from stack.spec import Place, ProcessSpec
from stack.state import Plan, acquire, read_plan, supervisor_pid, write_plan

PORTS = {port: 20000 + n for n, port in enumerate(p for s in SERVERS.values() for p in s.ports)}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, tmp_path / "cache", PORTS)


def test_a_taken_preferred_port_gives_the_next_free_one() -> None:
    taken = {9092, 9093, 9095}
    found = choose({"kafka": 9092, "other": 9092}, {}, free=lambda port: port not in taken)
    assert found == {"kafka": 9094, "other": 9096}


def test_a_fixed_port_is_kept_and_its_holder_named() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert not is_free(port)
        assert choose({"redis": 6379}, {"redis": port}, ours={port}) == {"redis": port}
        with pytest.raises(StackError, match=rf"redis: port {port} is taken by .*--port redis=NUMBER"):
            choose({"redis": 6379}, {"redis": port})


def test_what_is_asked_for_brings_what_it_needs() -> None:
    assert wanted(Options(servers=["registry"]), {}) == ["postgres", "registry"]
    assert wanted(Options(servers=["connect"]), {"kafka": "elsewhere:9092"}) == ["connect"]
    assert "seaweedfs" not in wanted(Options(), {})
    assert "seaweedfs" in wanted(Options(s3=True), {})
    assert "mariadb" not in wanted(Options(), {})
    assert "mariadb" in wanted(Options(mariadb=True), {})
    assert "mariadb" not in wanted(Options(mariadb=True), {"mariadb": "mysql://root@db.example"})
    with pytest.raises(StackError, match="no server 'oracle'"):
        wanted(Options(servers=["oracle"]), {})


def test_a_dependency_comes_before_what_depends_on_it() -> None:
    names = list(SERVERS)
    assert all(names.index(before) < names.index(s.name) for s in SERVERS.values() for before in s.after)


def test_a_url_said_by_the_user_replaces_our_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "headrace.toml").write_text('[redis]\nurl = "redis://cache.example:6379/0"\n')
    monkeypatch.setenv("HEADRACE_KAFKA__BOOTSTRAP_SERVERS", "broker.example:9092")
    found = external_servers()
    assert found == {"redis": "redis://cache.example:6379/0", "kafka": "broker.example:9092"}
    names = wanted(Options(), found)
    assert "kafka" not in names
    assert "redis" not in names
    assert "connect" in names


def test_our_own_endpoints_are_not_taken_for_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".headrace").mkdir()
    (tmp_path / ".headrace" / "endpoints.json").write_text(json.dumps({"redis": {"url": "redis://127.0.0.1:1/0"}}))
    assert external_servers() == {}


def test_plan_survives_the_disk(tmp_path: Path) -> None:
    spec = ProcessSpec("worker", ("python", "-m", "x"), 9101, after=("sink",), env={"A": "b"})
    plan = Plan(["redis"], {"redis": 1, "worker": 9101}, {"kafka": "1g"}, {}, [spec], "folder")
    write_plan(tmp_path, plan)
    back = read_plan(tmp_path)
    assert back.processes[0].env == {"A": "b"}
    assert (back.servers, back.ports, back.heaps, back.folder) == (["redis"], plan.ports, {"kafka": "1g"}, "folder")
    assert endpoints(back, tmp_path)["endpoints"] == {"worker": "http://127.0.0.1:9101"}
    assert (tmp_path / "plan.json").stat().st_mode & 0o077 == 0


def test_endpoints_have_the_shape_of_settings(tmp_path: Path) -> None:
    from headrace.config import Settings

    said = endpoints(Plan(list(SERVERS), PORTS), tmp_path)
    settings = Settings.model_validate(said)
    assert settings.kafka.bootstrap_servers == f"127.0.0.1:{PORTS['kafka']}"
    assert settings.lake.warehouse == "s3://headrace/lake"
    assert settings.databases["shop"].endswith("/shop")
    without_s3 = endpoints(Plan(["postgres"], PORTS), tmp_path)
    assert without_s3["lake"]["warehouse"] == (tmp_path / "warehouse").as_uri()


def test_no_password_in_a_file_or_on_a_command_line(place: Place) -> None:
    secret = place.secret("postgres")
    assert secret == place.secret("postgres")
    assert (place.home / "secrets" / "postgres").stat().st_mode & 0o077 == 0
    assert registry.env(place)["APICURIO_DATASOURCE_PASSWORD"] == secret
    assert postgres.coordinates(place)["POSTGRES_PASSWORD"] == secret
    assert connect.env(place)["MARIADB_PASSWORD"] == place.secret("mariadb")
    rendered = [connect.properties(place), kafka.properties(place), *postgres.command(place)]
    assert not [text for text in rendered if secret in text or place.secret("mariadb") in text]


def test_connect_is_told_where_mariadb_will_be_before_it_is_asked_for(tmp_path: Path) -> None:
    first = control._planned(tmp_path, Options(servers=["postgres", "connect"], external={}), [], alive=False)
    assert "mariadb" not in first.servers
    write_plan(tmp_path, first)
    told = connect.env(first.place(tmp_path, tmp_path))["MARIADB_PORT"]
    with_it = control._planned(tmp_path, Options(mariadb=True, external={}), [], alive=False)
    assert told == str(with_it.ports["mariadb"])


def test_a_port_kept_for_later_is_given_up_when_somebody_takes_it(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        write_plan(tmp_path, Plan(["connect"], {"mariadb": port}))
        if port < HIGHEST:
            planned = control._planned(tmp_path, Options(servers=["connect"], external={}), [], alive=False)
            assert planned.ports["mariadb"] != port
            with pytest.raises(StackError, match="is taken by"):
                control._planned(tmp_path, Options(mariadb=True, external={}), [], alive=False)


def test_an_external_mariadb_tells_connect_its_credentials(tmp_path: Path) -> None:
    place = Place(tmp_path, tmp_path, {}, external={"mariadb": "mysql://ann:p%40w@db.example"})
    assert mariadb.url(place, "inv") == "mysql://ann:p%40w@db.example/inv"
    assert mariadb.coordinates(place) == {
        "MARIADB_HOST": "db.example",
        "MARIADB_PORT": "3306",
        "MARIADB_USER": "ann",
        "MARIADB_PASSWORD": "p@w",
    }


def test_an_external_postgres_keeps_its_query_and_credentials(tmp_path: Path) -> None:
    url = "postgresql://ann:pw@db.example:6543/postgres?sslmode=require"
    place = Place(tmp_path, tmp_path, {}, external={"postgres": url})
    assert postgres.url(place, "catalog", "postgresql+psycopg") == (
        "postgresql+psycopg://ann:pw@db.example:6543/catalog?sslmode=require"
    )
    assert postgres.coordinates(place)["POSTGRES_HOST"] == "db.example"


def test_connect_puts_schema_ids_in_the_payload(place: Place) -> None:
    lines = connect.properties(place).splitlines()
    for kind in ("key", "value"):
        assert f"{kind}.converter.apicurio.registry.headers.enabled=false" in lines
        assert f"{kind}.converter.apicurio.registry.as-confluent=true" in lines
    assert "connector.client.config.override.policy=None" in lines
    assert f"listeners=http://127.0.0.1:{PORTS['connect']}" in lines


def test_connect_leaves_the_broker_out(place: Place) -> None:
    names = [Path(path).name for path in connect.class_path(place).split(":")]
    assert any(name.startswith("connect-runtime-") for name in names)
    assert not any(name.startswith(("kafka_2.13", "scala-library")) for name in names)
    assert len(names) < len(jars.locked(["kafka"]))


def test_heap_of_a_server_can_be_chosen(tmp_path: Path) -> None:
    place = Place(tmp_path, tmp_path, PORTS, heaps={"kafka": "2g"})
    assert "-Xmx2g" in kafka.command(place)
    assert SERVERS["postgres"].stop_signal == signal.SIGINT


def test_too_little_space_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 3 * 2**20))
    with pytest.raises(StackError, match="only 3 MB free"):
        need_space(tmp_path)


def test_purge_refuses_a_folder_that_is_no_stack(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(StackError, match="does not look like"):
        control.purge(tmp_path)
    assert (tmp_path / "precious").exists()


def test_the_lock_says_who_supervises(tmp_path: Path) -> None:
    assert supervisor_pid(tmp_path) is None
    held = acquire(tmp_path / "run" / "supervisor.lock")
    assert held is not None
    assert acquire(tmp_path / "run" / "supervisor.lock") is None
    assert supervisor_pid(tmp_path) is not None
    held.close()
    assert supervisor_pid(tmp_path) is None


def test_an_id_is_never_taken_for_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    made = iter([uuid.UUID(bytes=b"\xf8" + bytes(15)), uuid.UUID(bytes=bytes(16))])
    monkeypatch.setattr(uuid, "uuid4", lambda: next(made))
    assert kafka.random_id() == "A" * 22
