"""How the sink hands out what its one consumer reads, while topics come and go."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from aiokafka import TopicPartition

from headrace.config import Settings
from headrace.kafka import Chunk, admin
from headrace.process import Lifecycle
from schemas import baseline
from sinks.iceberg import progress
from sinks.iceberg.catalog import create_table
from sinks.iceberg.reader import TopicReader
from sinks.iceberg.service import Sink, fetch_wait
from sinks.iceberg.slices import Slice
from tests.unit.sinks.iceberg.support import catalog_in, created, events_of, lake

TP = TopicPartition("things", 0)


def chunk(start: int, stop: int) -> Chunk:
    nothing = pa.nulls(stop - start, pa.binary())
    offsets = np.arange(start, stop)
    return Chunk("things", 0, nothing, nothing, offsets, offsets, stop)


class Flow:
    topic = "things"
    nbytes = 0

    def __init__(self) -> None:
        self.begin = {0: 0}
        self.fed = {0: 0}
        self.got: list[int] = []
        self.full = asyncio.Event()

    def feed(self, chunk: Chunk) -> None:
        self.got += chunk.offsets.tolist()
        self.fed[0] = chunk.next_offset
        if self.fed[0] == 10:
            self.full.set()

    async def cancel(self) -> None: ...


class Consumer:
    """Has ten records, gives all from its position on; `meanwhile` runs once, right after the first were taken."""

    def __init__(self, meanwhile: Any) -> None:
        self._meanwhile = meanwhile
        self._position = 0

    def assign(self, _: Any) -> None: ...

    def assignment(self) -> set[TopicPartition]:
        return {TP}

    def seek(self, _: TopicPartition, offset: int) -> None:
        self._position = offset

    async def getmany(self, timeout_ms: int) -> dict[TopicPartition, list[Chunk]]:
        await asyncio.sleep(0)
        if self._meanwhile is not None:
            asyncio.get_running_loop().call_soon(self._meanwhile)
            self._meanwhile = None
            self._position = 5
            return {TP: [chunk(0, 5)]}
        start, self._position = self._position, 10
        return {TP: [chunk(start, 10)]} if start < 10 else {}

    async def stop(self) -> None: ...


async def test_what_was_fetched_before_an_assignment_is_not_fed_twice(tmp_path: Path) -> None:
    sink = Sink(Settings(home=tmp_path, content=[]), Lifecycle())
    await sink._consumer.stop()
    flow = Flow()
    sink._flows["things"] = flow  # type: ignore[assignment]
    sink._consumer = Consumer(sink._assign)  # type: ignore[assignment]
    reading = asyncio.create_task(sink._read())
    await asyncio.wait_for(flow.full.wait(), 10)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await sink.close()
    assert flow.got == list(range(10))


CONTRACT = {
    "type": "record",
    "name": "Thing",
    "namespace": "t",
    "doc": "A thing.",
    "owner": "us",
    "topic": "things",
    "key": ["id"],
    "freshness": "1s",
    "fields": [{"name": "id", "type": "long"}],
}


async def test_fetches_wait_as_long_as_the_shortest_freshness_allows(tmp_path: Path) -> None:
    assert fetch_wait([5.0, 60.0]) == 0.5
    (tmp_path / "schemas" / "contracts").mkdir(parents=True)
    (tmp_path / "schemas" / "contracts" / "thing.avsc").write_text(json.dumps(CONTRACT))
    sink = Sink(Settings(home=tmp_path, content=[tmp_path]), Lifecycle())
    waits = sink._consumer._fetch_max_wait_ms
    await sink.close()
    assert waits == 100


@pytest.mark.parametrize("held", [None, "shop.a.b_c"])
async def test_of_topics_that_would_share_a_table_one_lands(tmp_path: Path, held: str | None, monkeypatch: Any) -> None:
    """That whose table it is, or else the first; the other rests with its reason, and topics beside them do not."""
    folder = tmp_path / "connectors" / "debezium"
    folder.mkdir(parents=True)
    (folder / "shop.json").write_text('{"config": {"topic.prefix": "shop"}}')
    sink = Sink(Settings(home=tmp_path, content=[tmp_path], lake=lake(tmp_path)), Lifecycle())
    sink._catalog = catalog_in(tmp_path)
    if held is not None:
        of = {progress.identity_property(held): "cluster/id"}
        for table in ("bronze.shop_a_b_c", "silver.shop_a_b_c"):
            create_table(sink._catalog, table, pa.schema([("id", pa.int64())]), properties=of)
    topics = {topic: 1 for topic in ("shop.a.b-c", "shop.a.b_c", "shop.a.d")}
    for name, answer in (("partitions", topics), ("cluster_id", "c"), ("begin_offsets", {}), ("end_offsets", {})):
        monkeypatch.setattr(admin, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(admin, "topic_ids", lambda kafka, names: dict.fromkeys(names, "id"))
    opened: list[str] = []

    async def open_(topic: str, *_: Any) -> None:
        opened.append(topic)

    monkeypatch.setattr(sink, "_open", open_)
    monkeypatch.setattr(sink, "_assign", lambda: None)
    await sink._look_for_topics()
    other, resting = (held, "shop.a.b-c") if held else ("shop.a.b-c", "shop.a.b_c")
    assert opened == sorted([other, "shop.a.d"])
    assert f"{other} does" in sink._halted[resting]
    del topics[other]
    opened.clear()
    await sink._look_for_topics()
    problems = sink._problems()
    await sink.close()
    assert problems is None


@pytest.mark.parametrize("keyed", [True, False])
def test_a_baseline_among_records_is_found_and_splits_nothing(keyed: bool) -> None:
    schemas = {1: {"type": "record", "name": "Key", "fields": [{"name": "id", "type": "long"}]}, 2: baseline.KEY}
    key = b"\0\0\0\0\x01\x02" if keyed else None
    keys = pa.array([key, key, baseline.key(2, 40), key, baseline.key(2, 30)], pa.binary())
    offsets = np.arange(50, 55)
    reader = TopicReader(schemas.__getitem__, changes_of="things")
    found = reader.read(Chunk("things", 0, keys, pa.nulls(5, pa.binary()), offsets, offsets, 55), 50)
    assert [(s.key_fields, s.start, s.next_offset, s.baseline) for s in found] == [
        (("id",) if keyed else (), 50, 55, 40)
    ]
    alone = Chunk("things", 0, keys[2:3], pa.nulls(1, pa.binary()), offsets[2:3], offsets[2:3], 53)
    assert [(s.key_fields, s.baseline) for s in reader.read(alone, 52)] == [((), 40)]
    assert [s.baseline for s in TopicReader(schemas.__getitem__).read(alone, 52)] == [0]


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        (
            {"name": "Key", "namespace": "shop.public.things"},
            {"name": "Envelope", "namespace": "shop.public.things"},
            1,
        ),
        ({"name": "shop.public.things.Key"}, {"name": "Envelope", "namespace": "shop.public.things"}, 1),
        ({"name": "Key"}, {"name": "Envelope", "namespace": "shop.public.things"}, 0),
        ({"name": "Id", "namespace": "shop.public.things"}, {"name": "Envelope", "namespace": "shop.public.things"}, 0),
        (
            {"name": "Key", "namespace": "shop.public.others"},
            {"name": "Envelope", "namespace": "shop.public.things"},
            0,
        ),
    ],
)
def test_a_key_is_the_sources_by_the_name_of_its_schema(key: Any, value: Any, named: int) -> None:
    fields = [{"name": "id", "type": "long"}]
    schemas = {1: {"type": "record", "fields": fields} | key, 2: events_of(fields, **value)}
    keys, values = (pa.array([b"\0\0\0\0" + bytes([n]) + b"\x02"], pa.binary()) for n in (1, 2))
    chunk = Chunk("shop.public.things", 0, keys, values, np.arange(1), np.arange(1), 1)
    (part,) = TopicReader(schemas.__getitem__, changes_of=chunk.topic).read(chunk, 0)
    assert (part.key_fields, part.key_named) == (("id",), bool(named))


@pytest.mark.parametrize(
    ("topic", "name", "own"),
    [
        ("shop.public.things", "shop.public.things.Envelope", True),
        ("shop.public.things", "shop.public.others.Envelope", False),
        ("shop.public.things", "shop2.public.things.Envelope", False),
        ("shop.public.things", "Envelope", False),
        ("my-shop.public.order_items", "my_shop.public.order_items.Envelope", True),
        ("my-shop.public.things", "my_u002dshop.public.things.Envelope", True),
        ("1shop.public.things", "_1shop.public.things.Envelope", True),
    ],
)
def test_a_value_under_a_schema_of_another_topic_does_not_decode(topic: str, name: str, own: bool) -> None:
    schemas = {1: events_of([{"name": "id", "type": "long"}], name=name)}
    values = pa.array([b"\0\0\0\0\x01" + created(b"\x02")], pa.binary())
    chunk = Chunk(topic, 0, pa.nulls(1, pa.binary()), values, np.arange(1), np.arange(1), 1)
    (part,) = TopicReader(schemas.__getitem__, changes_of=topic).read(chunk, 0)
    (free,) = TopicReader(schemas.__getitem__).read(chunk, 0)
    assert (part.batch.num_rows, free.batch.column("after").to_pylist()) == (own, [{"id": 1}])
    assert part.reasons == (() if own else (f"unsupported schema: 1, {name} is not of this topic",))


@pytest.mark.parametrize("name", ["Reading", "things.Envelope"])
def test_a_value_that_is_no_change_event_gives_the_tables_no_columns(name: str) -> None:
    fields = [{"name": "id", "type": "long"}, {"name": "name", "type": "long"}]
    schemas = {1: {"type": "record", "name": name, "fields": fields}}
    values = pa.array([b"\0\0\0\0\x01\x02\x02"], pa.binary())
    chunk = Chunk("things", 0, pa.nulls(1, pa.binary()), values, np.arange(1), np.arange(1), 1)
    (part,) = TopicReader(schemas.__getitem__, changes_of="things").read(chunk, 0)
    assert (part.batch.schema.names, part.schema, part.bad.tolist()) == ([], None, [0])


NUMERIC = {"type": "record", "name": "VariableScaleDecimal", "fields": [{"name": "value", "type": "bytes"}]}


@pytest.mark.parametrize(
    ("row", "key", "unlike"),
    [
        ({"id": "int"}, {"id": "int"}, ()),
        ({"id": "int"}, {"id": "string"}, ("id",)),
        ({"id": "int", "code": "string"}, {"id": "long", "code": "string"}, ("id",)),
        ({"id": ["null", "int"]}, {"id": {"type": "int", "connect.name": "io.debezium.time.Date"}}, ()),
        ({"v": NUMERIC, "id": ["null", "VariableScaleDecimal"]}, {"id": NUMERIC}, ()),
        ({"id": NUMERIC}, {"id": "bytes"}, ("id",)),
        ({"id": "int"}, {"other": "string"}, ()),
    ],
)
def test_fields_of_a_key_that_are_of_another_type_in_the_row(row: Any, key: Any, unlike: tuple[str, ...]) -> None:
    def record(name: str, fields: dict[str, Any]) -> dict[str, Any]:
        return {"type": "record", "name": name, "fields": [{"name": n, "type": t} for n, t in fields.items()]}

    both = {"before": ["null", record("Value", row)], "after": ["null", "Value"]}
    value = record("Envelope", both | {"source": record("Source", {}), "op": "string"})
    schemas = {1: record("Key", key), 2: value | {"namespace": "things"}}
    keys, values = (pa.array([b"\0\0\0\0" + bytes([n])], pa.binary()) for n in (1, 2))
    chunk = Chunk("things", 0, keys, values, np.arange(1), np.arange(1), 1)
    (part,) = TopicReader(schemas.__getitem__, changes_of="things").read(chunk, 0)
    assert part.key_unlike == unlike


def test_a_key_whose_only_column_is_named_baseline_is_none() -> None:
    key = {"type": "record", "name": "Key", "namespace": "shop.public.things", "fields": baseline.KEY["fields"]}
    schemas = {
        1: key,
        2: {"type": "record", "name": "things.Row", "fields": [{"name": "v", "type": "long"}]},
        3: baseline.KEY,
    }
    keys = pa.array([baseline.key(1, 40), baseline.key(3, 30)], pa.binary())
    values = pa.array([b"\0\0\0\0\x02\x02", None], pa.binary())
    chunk = Chunk("things", 0, keys, values, np.arange(40, 42), np.arange(2), 42)
    (part,) = TopicReader(schemas.__getitem__, changes_of="things").read(chunk, 40)
    assert (part.key_fields, part.baseline) == (("baseline",), 30)


@pytest.mark.parametrize("body", [b"", b"\x80", b"\x03", b"\x02\x00", baseline.key(2, 53)[5:]], ids=bytes.hex)
def test_a_broken_baseline_is_a_tombstone_and_so_is_one_of_what_comes_after_it(body: bytes) -> None:
    """Others of its chunk count, and rows after it stay."""
    schemas = {1: {"type": "record", "name": "Key", "fields": [{"name": "id", "type": "long"}]}, 2: baseline.KEY}
    key, broken = b"\0\0\0\0\x01\x02", baseline.key(2, 0)[:5] + body
    offsets = np.arange(50, 54)
    for keys, said, time in (([key, key, broken, key], 0, 0), ([key, baseline.key(2, 40), broken, key], 40, 51)):
        chunk = Chunk("things", 0, pa.array(keys, pa.binary()), pa.nulls(4, pa.binary()), offsets, offsets, 54)
        (part,) = TopicReader(schemas.__getitem__, changes_of="things").read(chunk, 50)
        assert (part.baseline, part.baseline_time, part.nulls.tolist()) == (said, time, [0, 1, 2, 3])


@pytest.mark.parametrize("changes_of", ["t", ""])
def test_chunks_that_are_decoded_together_become_the_slices_that_they_would_be_alone(changes_of: str) -> None:
    schemas = {
        1: {"type": "record", "name": "Key", "fields": [{"name": "id", "type": "long"}]},
        2: {"type": "record", "name": "t.Row", "fields": [{"name": "v", "type": "long"}]},
        3: {
            "type": "record",
            "name": "t.Row",
            "fields": [{"name": "v", "type": "long"}, {"name": "w", "type": "long"}],
        },
    }
    # Zigzag numbers of one byte; the second chunk has a tombstone, a broken record and, in between, another schema.
    one, two, broken = b"\0\0\0\0\x02\x02", b"\0\0\0\0\x03\x04\x06", b"\0\0\0\0\x02"
    parts = [[one, one], [one, None, broken, two, one], [], [None], [two]]
    chunks = []
    for partition, values in enumerate(parts):
        offsets = np.arange(len(values)) + 10
        keys = pa.array([b"\0\0\0\0\x01\x02"] * len(values), pa.binary())
        chunks.append(Chunk("t", partition, keys, pa.array(values, pa.binary()), offsets, offsets, 10 + len(values)))

    def seen(slices: list[Slice]) -> list[Any]:
        return [
            (
                *(s.partition, s.start, s.next_offset, s.key_fields, s.reasons),
                *(a.tolist() for a in (s.rows, s.nulls, s.bad, s.offsets)),
                [{k: v for k, v in row.items() if v is not None} for row in s.batch.to_pylist()],
            )
            for s in slices
        ]

    together = TopicReader(schemas.__getitem__, changes_of=changes_of).read_all([(c, 7) for c in chunks])
    alone = TopicReader(schemas.__getitem__, changes_of=changes_of)
    assert seen(together) == seen([part for c in chunks for part in alone.read(c, 7)])
    assert sum(len(part) for part in together) == 9
