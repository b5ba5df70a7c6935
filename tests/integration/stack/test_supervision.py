"""Faults of cheap children: kills, taken ports, two stacks, a dead supervisor. No Java here."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from headrace.errors import StackError
from stack import control
from stack.control import Options, ProcessFailedError, purge, status, stop, up
from stack.spec import ProcessSpec
from stack.state import read_children, read_plan, supervisor_pid
from stack.testing import SessionStack, scattered_ports

SERVER = """
import http.server, os
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(os.environ["HEADRACE_PROCESS__NAME"].encode())
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(os.environ["HEADRACE_PROCESS__PORT"])), Page).serve_forever()
"""


def until(check: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


def page(name: str, port: int) -> ProcessSpec:
    return ProcessSpec(name, [sys.executable, "-c", SERVER], port)


def kill(home: Path, name: str) -> None:
    """SIGKILL a child and wait until it runs and is well again."""
    before = read_children(home)[name]
    os.kill(before.pid, signal.SIGKILL)
    until(lambda: read_children(home)[name].restarts == before.restarts + 1, 60)
    until(lambda: read_children(home)[name].state == "running", 150)


@pytest.fixture
def session() -> Iterator[SessionStack]:
    found = SessionStack()
    try:
        yield found
    finally:
        found.close()


def children(home: Path) -> list[psutil.Process]:
    pid = supervisor_pid(home)
    return [] if pid is None else [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def test_a_life_of_a_stack(session: SessionStack) -> None:
    """Up, up again, kill -9 of a server and of a process, more servers, down: no process and no data lost."""
    port = next(iter(scattered_ports(["page"]).values()))
    settings = session.need("redis", "postgres", processes=[page("page", port)])
    home = session.home
    assert settings.endpoints == {"page": f"http://127.0.0.1:{port}"}
    options = Options(servers=["redis"], external={})
    assert up(home, options) is False

    client = redis.Redis.from_url(settings.redis.url)
    client.set("kept", "yes")
    with psycopg.connect(settings.databases["shop"], autocommit=True) as connection:
        assert connection.execute("SHOW wal_level").fetchone() == ("logical",)
        connection.execute("CREATE TABLE kept (id int)")
    if os.geteuid() == 0:
        assert psutil.Process(read_children(home)["postgres"].pid).uids().effective != 0

    for name in ("redis", "postgres", "page"):
        kill(home, name)
    row = next(row for row in status(home) if row["name"] == "redis")
    assert (row["state"], row["restarts"], row["reason"]) == ("running", 1, "ended by SIGKILL")
    assert row["memory_bytes"] > 0
    assert client.get("kept") == b"yes"
    with psycopg.connect(settings.databases["shop"]) as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)

    alive = children(home)
    assert len(alive) > 4
    stop(home)
    assert not [process for process in alive if process.is_running()]
    lines = [json.loads(line) for line in (home / "logs" / "supervisor.log").read_text().splitlines()]
    assert next(line["child"] for line in lines if line["event"] == "ended") == "page"
    assert not [process for process in read_children(home).values() if process.process()]


def test_a_killed_supervisor_leaves_nothing_running_and_up_recovers(session: SessionStack) -> None:
    settings = session.need("redis", "postgres")
    alive = children(session.home)
    os.kill(alive[0].pid, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=20)
    if sys.platform == "linux":
        assert not [process for process in alive if process.is_running()]
    assert session.need("redis", "postgres").redis.url == settings.redis.url
    assert redis.Redis.from_url(settings.redis.url).ping()


def test_two_stacks_do_not_collide(tmp_path: Path) -> None:
    """Started side by side with preferred ports, each gets its own and keeps it."""
    first, second = tmp_path / "first", tmp_path / "second"
    options = Options(servers=["redis"], external={}, attached=True)
    try:
        up(first, options)
        up(second, options)
        one, two = read_plan(first).ports["redis"], read_plan(second).ports["redis"]
        assert one != two
        redis.Redis(port=one).set("who", "first")
        assert redis.Redis(port=two).get("who") is None
        stop(first)
        up(first, options)
        assert read_plan(first).ports["redis"] == one
        assert redis.Redis(port=one).get("who") == b"first"
    finally:
        for home in (first, second):
            stop(home)
            purge(home)
    assert not first.exists()


def test_a_taken_port_is_one_sentence_and_starts_nothing(session: SessionStack) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(StackError, match=rf"port {port} is taken by .*pid {os.getpid()}"):
            up(session.home, Options(servers=["redis"], external={}, ports={"redis": port}))
    assert supervisor_pid(session.home) is None


def test_a_process_that_keeps_failing_is_named_with_its_last_words(
    session: SessionStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "PROCESS_TRIES", 2)
    broken = ProcessSpec("broken", [sys.executable, "-c", "raise SystemExit('no such contract')"], 9999)
    with pytest.raises(ProcessFailedError, match=r"broken: keeps ending: .*no such contract.*headrace logs broken"):
        session.need("redis", processes=[broken])
    assert read_children(session.home)["redis"].state == "running"


def test_a_server_that_cannot_start_leaves_nothing_behind(session: SessionStack) -> None:
    """Data that the server refuses: `up` says why, and nothing runs."""
    session.need("redis")
    stop(session.home)
    (session.home / "data" / "redis" / "appendonly.aof").write_bytes(b"*not redis\r\n" * 100)
    with pytest.raises(StackError, match="redis: cannot start: ended with status 1"):
        session.need("redis")
    assert supervisor_pid(session.home) is None
    assert not [child for child in read_children(session.home).values() if child.process()]
