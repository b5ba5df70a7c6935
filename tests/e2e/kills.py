"""What dies in the kill matrix, and how it is seen to have died and to have come back by itself."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from random import Random

import psutil
import psycopg

from tests.e2e.conftest import Headrace, eventually

Back = Callable[[], str]

SIGNALS = {
    "worker": ("worker", signal.SIGKILL),
    "sink": ("sink", signal.SIGKILL),
    "connectors": ("connectors", signal.SIGKILL),
    "connect": ("connect", signal.SIGKILL),
    "kafka": ("kafka", signal.SIGKILL),
    "postgres, restarted": ("postgres", signal.SIGINT),
    "postgres, crashed": ("postgres", signal.SIGKILL),
    "mariadb, restarted": ("mariadb", signal.SIGTERM),
    "mariadb, crashed": ("mariadb", signal.SIGKILL),
}
CATALOG = "catalog, away"
SOURCES = ("postgres", "mariadb")


def victims(source: str) -> list[str]:
    """What may die while this server is captured: everything but the other source."""
    return [*(victim for victim, (name, _) in SIGNALS.items() if name == source or name not in SOURCES), CATALOG]


def kill(demo: Headrace, victim: str, rng: Random) -> Back:
    """Kill and return at once when it is dead; the result waits until it is back, and says what was seen."""
    return _cut_off(demo, rng) if victim == CATALOG else _send(demo, *SIGNALS[victim])


def _send(demo: Headrace, name: str, number: signal.Signals) -> Back:
    before = eventually(120, f"{name} runs", lambda: (row := demo.status()[name])["pid"] and row)
    process = psutil.Process(before["pid"])
    process.send_signal(number)
    psutil.wait_procs([process], timeout=60)
    assert not process.is_running(), f"{name} has survived {number.name}"

    def back() -> str:
        def restarted() -> dict[str, object] | None:
            row = demo.status()[name]
            up = row["state"] == "running" and row["restarts"] > before["restarts"]
            return row if up else None

        row = eventually(300, f"{name} is back", restarted)
        assert row["pid"] != before["pid"]
        return f"pid {before['pid']} ended by {number.name}, now {row['pid']}"

    return back


def _cut_off(demo: Headrace, rng: Random) -> Back:
    """The catalog's database ends its sessions and takes no new ones, while the sources' databases stay."""
    admin = demo.get("postgres.url")
    catalog = admin.rsplit("/", 1)[0] + "/catalog"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute("ALTER DATABASE catalog ALLOW_CONNECTIONS false")
        ended = connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'catalog'"
        ).fetchall()
    until = time.monotonic() + rng.uniform(8, 15)

    def back() -> str:
        try:
            psycopg.connect(catalog).close()
        except psycopg.OperationalError as e:
            refused = str(e)
        else:
            raise AssertionError("the catalog has not been away")
        finally:
            time.sleep(max(0.0, until - time.monotonic()))
            with psycopg.connect(admin, autocommit=True) as connection:
                connection.execute("ALTER DATABASE catalog ALLOW_CONNECTIONS true")
        assert "not currently accepting connections" in refused
        psycopg.connect(catalog).close()
        return f"{len(ended)} sessions ended, refused until it was let in again"

    return back
