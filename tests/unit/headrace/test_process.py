"""The life of a process, seen from outside: health, metrics, drain on SIGTERM, failure with a reason."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

PROGRAM = """
import asyncio, logging, sys
from headrace.config import ProcessSettings
from headrace.errors import FencedError
from headrace.logs import get_logger
from headrace.process import Lifecycle, run_process

async def body(lifecycle: Lifecycle) -> None:
    if sys.argv[1] == "fail":
        raise FencedError("moved", where="table t", hint="stop the other one")
    if sys.argv[1] == "cancelled":
        raise asyncio.CancelledError
    if sys.argv[1] == "crash":
        try:
            {"jane@example.com": 1}["john@example.com"]
        except KeyError:
            logging.getLogger("library").exception("a library's")
            get_logger("own").exception("our own")
            raise
    lifecycle.checks["server"] = lambda: None if sys.argv[1] == "well" else "is away"
    lifecycle.ready()
    await lifecycle.stopping.wait()
    await asyncio.sleep(0.2)
    print("drained", flush=True)

sys.exit(run_process(body, ProcessSettings(name="t", port=int(sys.argv[2]))))
"""

PROGRAM_RAISES = '            {"jane@example.com": 1}["john@example.com"]'


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


@contextmanager
def running(how: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    port = free_port()
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, how, str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield child, f"http://127.0.0.1:{port}"
    finally:
        child.kill()
        child.communicate()


def get(url: str) -> httpx.Response:
    deadline = time.monotonic() + 20
    while True:
        try:
            return httpx.get(url, timeout=5)
        except httpx.ConnectError:
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.05)


def test_a_well_process_is_live_ready_and_measured_and_drains() -> None:
    with running("well") as (child, url):
        assert get(f"{url}/livez").json() == {"status": "ok"}
        assert get(f"{url}/readyz").json() == {"status": "ok", "problems": {}}
        assert get(f"{url}/healthz").status_code == 200
        assert 'headrace_build_info{process="t"' in get(f"{url}/metrics").text
        child.send_signal(signal.SIGTERM)
        out, _ = child.communicate(timeout=20)
        assert (child.returncode, out.strip()) == (0, "drained")


def test_a_process_that_misses_a_server_is_live_but_not_ready() -> None:
    with running("ill") as (_, url):
        assert get(f"{url}/livez").status_code == 200
        answer = get(f"{url}/readyz")
        assert answer.status_code == 503
        assert answer.json()["problems"] == {"server": "is away"}


def test_a_failure_ends_it_with_what_where_and_hint_in_one_line() -> None:
    with running("fail") as (child, _):
        _, err = child.communicate(timeout=20)
        assert child.returncode == 1
        last = json.loads(err.strip().splitlines()[-1])
        assert (last["event"], last["error"], last["where"], last["hint"]) == (
            "failed",
            "FencedError",
            "table t",
            "stop the other one",
        )


def test_what_nobody_foresaw_is_told_without_its_text() -> None:
    with running("crash") as (child, _):
        _, err = child.communicate(timeout=20)
    assert child.returncode == 1
    assert "john" not in err
    assert "Traceback" not in err
    lines = {line["event"]: line for line in map(json.loads, err.strip().splitlines())}
    told = f"KeyError raised at <string>:{PROGRAM.splitlines().index(PROGRAM_RAISES) + 1} in body"
    assert (lines["failed"]["error"], lines["failed"]["what"]) == ("TerminalError", told)
    assert lines["a library's"]["exception"] == lines["our own"]["exception"] == told


def test_a_body_that_a_library_cancels_fails() -> None:
    with running("cancelled") as (child, _):
        _, err = child.communicate(timeout=20)
    assert child.returncode == 1
    last = json.loads(err.strip().splitlines()[-1])
    assert (last["event"], last["what"].partition(" ")[0]) == ("failed", "CancelledError")


def test_a_taken_port_ends_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, "well", port], capture_output=True, text=True, timeout=30, check=False
        )
    assert done.returncode != 0


@pytest.mark.parametrize("seconds", [0.05])
async def test_waiting_ends_early_when_the_process_is_asked_to_stop(seconds: float) -> None:
    from headrace.process import Lifecycle

    lifecycle = Lifecycle()
    assert not await lifecycle.sleep(seconds)
    lifecycle.stopping.set()
    assert await lifecycle.sleep(30)
