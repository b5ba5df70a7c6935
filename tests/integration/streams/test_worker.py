"""The worker as a process, killed, balanced and broken: each record of the source ends up in one place, once."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from pathlib import Path

import fastavro
import pytest

from headrace.config import Settings
from headrace.kafka.admin import TopicSpec, ensure_topics
from tests.integration.streams.support import (
    PARTITIONS,
    READING,
    Oracle,
    Site,
    accounted,
    framed,
    readings,
    wait_until_accounted,
    wait_until_ready,
)

REJECTS_AND_BREAKS = """
import os
import pyarrow as pa
import pyarrow.compute as pc

def not_too_warm(batch, ctx):
    return ctx.reject(batch, pc.less(batch.column("temperature"), 55), "too warm", batch.column("temperature"))

def breaks(batch, ctx):
    if os.path.exists("broken") and pc.any(pc.equal(batch.column("seq"), 300)).as_py():
        raise ValueError("secret payload")
    return batch
"""


class Load:
    """Readings for a site; those of one device are in one partition, every tenth is sent twice."""

    def __init__(self, site: Site, oracle: Oracle) -> None:
        schema = {**READING, "topic": site.source}
        self.id = oracle.register(site.source, schema)
        self.schema = fastavro.parse_schema(dict(schema))
        self.site, self.oracle = site, oracle
        self.expected: set[tuple[str, int]] = set()

    def send(self, count: int, first: int = 0) -> None:
        records: list[tuple[int, bytes | None, bytes | None]] = []
        for i, row in enumerate(readings(count, first=first)):
            self.expected.add((row["device_id"], row["seq"]))
            record = int(row["device_id"][1:]) % PARTITIONS, row["device_id"].encode(), self.encode(row)
            records += [record] * (1 + (i % 10 == 0))
        self.oracle.produce(self.site.source, records)

    def encode(self, row: dict[str, object]) -> bytes:
        return framed(self.id, self.schema, row)


@pytest.fixture
def site(settings: Settings, tmp_path: Path) -> Site:
    return Site(tmp_path, settings)


@pytest.fixture
def oracle(settings: Settings) -> Oracle:
    return Oracle(settings)


def check_exact(oracle: Oracle, load: Load, *, once: bool = True) -> None:
    """All records in one place once, and (`once`) of each reading that is not refused exactly one row."""
    out, refused = accounted(oracle, load.site)
    assert max(out.values()) == 1, "a record is twice in the output"
    assert not out.keys() & refused.keys(), "a record is in the output and in the quarantine"
    assert len(out) + len(refused) == sum(oracle.ends(load.site.source))
    if not once:
        return
    rows = Counter((row["device_id"], row["seq"]) for _, _, _, row in oracle.read(load.site.output))
    warm = [row for row in oracle.quarantined(f"agent:{load.site.agent}") if row["disposition"] == "quarantined"]
    assert max(rows.values()) == 1
    assert len(load.expected) == len(rows) + len({(row["source_partition"], row["value"]) for row in warm})


def test_each_record_is_in_the_output_or_says_why_not(site: Site, oracle: Oracle) -> None:
    site.write(extra=REJECTS_AND_BREAKS, steps="not_too_warm, ")
    load = Load(site, oracle)
    load.send(2000)
    wrong = load.encode({"device_id": "d000", "seq": -1, "measured_at": 1, "temperature": 91.0})
    oracle.produce(site.source, [(0, b"d000", wrong), (0, None, b"junk"), (1, b"d001", wrong[:-3]), (2, b"d002", None)])
    with site.worker() as worker:
        wait_until_accounted(oracle, site)
        worker.end()
        assert worker.process.returncode == 0, worker.text()
    rows = oracle.quarantined(f"agent:{site.agent}")
    assert Counter(row["rule"] for row in rows) == {
        "duplicate": 200 - 10,
        "too warm": 100 + 10,
        "seq: min 0": 1,
        "not framed": 1,
        "truncated": 1,
        "tombstone": 1,
    }
    refused = next(row for row in rows if row["rule"] == "seq: min 0")
    assert (refused["key"], refused["value"], refused["reason"]) == (b"d000", wrong, "-1")
    assert (refused["contract"], refused["schema_id"], refused["disposition"]) == ("Reading", load.id, "quarantined")
    dropped = next(row for row in rows if row["rule"] == "duplicate")
    assert (dropped["key"], dropped["value"], dropped["disposition"]) == (None, None, "dropped")

    # What another worker finds: repeats of readings that were cleaned before it began.
    load.send(2000)
    with site.worker():
        wait_until_accounted(oracle, site)
    assert len(oracle.read(site.output)) == 2000 - 100
    for partition, _, key, row in oracle.read(site.output):
        assert key == row["device_id"].encode()
        assert int(row["device_id"][1:]) % PARTITIONS == partition


def test_sigkill_loses_and_repeats_nothing(site: Site, oracle: Oracle) -> None:
    # Without memory of readings, which would hide a record that is sent again.
    site.write(extra=REJECTS_AND_BREAKS, steps="not_too_warm, ", once=False)
    load = Load(site, oracle)
    stop = threading.Event()

    def produce() -> None:
        part = 0
        while not stop.wait(0.2):
            load.send(1000, first=20 * part)
            part += 1

    producing = threading.Thread(target=produce)
    producing.start()
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    try:
        for _ in range(2):
            with site.worker() as worker:
                before = sum(oracle.ends(site.output)) if worker_has_output(oracle, site) else 0
                deadline = time.monotonic() + 60
                while not worker_has_output(oracle, site) or sum(oracle.ends(site.output)) == before:
                    assert time.monotonic() < deadline, worker.text()
                    time.sleep(0.05)
                time.sleep(chance.uniform(0, 1.5))
                worker.kill()
    finally:
        stop.set()
        producing.join()
    with site.worker():
        wait_until_accounted(oracle, site, 120)
    print(f"seed {seed}")
    check_exact(oracle, load, once=False)


def worker_has_output(oracle: Oracle, site: Site) -> bool:
    try:
        return bool(oracle.ends(site.output))
    except KeyError:
        return False


def test_a_raising_step_ends_the_worker_and_loses_nothing(site: Site, oracle: Oracle) -> None:
    site.write(extra=REJECTS_AND_BREAKS, steps="breaks, ")
    (site.folder / "broken").touch()
    load = Load(site, oracle)
    load.send(16_000)
    with site.worker() as worker:
        assert worker.wait_exit(60) == 1
        log = worker.text()
    assert "ValueError raised at clean.py" in log
    assert f"agent:{site.agent} {site.source}-" in log
    (site.folder / "broken").unlink()
    with site.worker():
        wait_until_accounted(oracle, site)
    check_exact(oracle, load)


def test_workers_share_and_hand_over(site: Site, oracle: Oracle) -> None:
    site.write()
    load = Load(site, oracle)
    parts = itertools.count()

    def send(times: int) -> None:
        for _ in range(times):
            load.send(2000, first=40 * next(parts))

    send(1)
    with site.worker("first") as first:
        wait_until_ready(first)
        with site.worker("second") as second:
            while '"ready"' not in second.text():
                send(1)
                time.sleep(0.2)
            send(4)
            first.end()
            assert first.process.returncode == 0
            send(4)
            wait_until_accounted(oracle, site, 120)
    check_exact(oracle, load)


def test_a_new_agent_misses_nothing_of_a_topic_that_is_long_read(site: Site, oracle: Oracle) -> None:
    site.write()
    load = Load(site, oracle)
    load.send(2000)
    with site.worker():
        # What is done is committed when the worker ends.
        wait_until_accounted(oracle, site)
    other = Site(site.folder, site.settings, site.tag)
    agents = site.folder / "streams" / "agents"
    contracts = site.folder / "schemas" / "contracts"
    second = f"{site.output}2"
    text = (agents / "clean.py").read_text()
    (agents / "more.py").write_text(text.replace(site.output, second).replace(site.agent, f"{site.agent}more"))
    contract = (contracts / "clean.avsc").read_text().replace(site.output, second).replace('"Clean"', '"More"')
    (contracts / "more.avsc").write_text(contract)
    load.send(400, first=40)
    with other.worker():
        wait_until_accounted(oracle, site)
        deadline = time.monotonic() + 60
        while not (found := oracle.read(second)) or len(found) < 2400:
            assert time.monotonic() < deadline
            time.sleep(0.5)
    assert Counter(row["seq"] for _, _, _, row in oracle.read(second)) == Counter(
        row["seq"] for _, _, _, row in oracle.read(site.output)
    )
    check_exact(oracle, load)


def test_an_agent_that_waits_holds_up_no_other(site: Site, oracle: Oracle) -> None:
    site.write()
    stuck = Site(site.folder, site.settings)
    agents, contracts = site.folder / "streams" / "agents", site.folder / "schemas" / "contracts"
    names = {site.output: stuck.output, site.source: stuck.source, site.agent: stuck.agent}
    for path, target in ((agents / "clean.py", "stuck.py"), (contracts / "clean.avsc", "stuck.avsc")):
        text = path.read_text().replace('"Clean"', '"Stuck"')
        for old, new in names.items():
            text = text.replace(old, new)
        (path.parent / target).write_text(text)
    waits = "from streams.processor import NotYet\ndef waits(batch, ctx):\n    raise NotYet('the moon')\n"
    (agents / "stuck.py").write_text(waits + (agents / "stuck.py").read_text().replace("steps=(", "steps=(waits, "))
    ensure_topics(site.settings.kafka, {stuck.source: TopicSpec(PARTITIONS)})
    load = Load(site, oracle)
    with site.worker() as worker:
        wait_until_ready(worker)
        # Small batches, each a chunk or nearly: more than the waiting agent's buffer takes.
        for part in range(60):
            oracle.produce(stuck.source, [(part % PARTITIONS, None, b"junk")] * 3)
            load.send(50, first=part)
        wait_until_accounted(oracle, site)
        assert sum(oracle.ends(stuck.output)) == 0
    check_exact(oracle, load)
