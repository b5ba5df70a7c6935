"""An agent's processor without Kafka: what it reads back is given, what it sends is kept."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import streams.flow
from headrace.config import KafkaSettings
from headrace.errors import ConfigError, IdentityError
from headrace.kafka.columns import Chunk
from schemas.codec import Decoder, Encoder, arrow_schema
from schemas.contracts import load_contracts
from schemas.envelope import Position
from schemas.types import avro_schema
from streams.agent import Agent
from streams.app import load_agents
from streams.flow import AgentFlow, Services
from streams.lookup import LookupTable
from streams.processor import Committed
from streams.steps import deduplicate
from tests.unit.streams.support import changes, make_chunk

ROOT = Path(__file__).parents[3]
CONTRACTS = load_contracts([ROOT])
ORDER = arrow_schema(CONTRACTS.by_name["Order"].avro)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def order(status: str, amount: str = "10.00", **more: Any) -> dict[str, Any]:
    row = {"id": 7, "customer_id": 1, "country": "DE", "status": status, "amount": Decimal(amount), "currency": "EUR"}
    return {**row, "created_at": NOON, "updated_at": NOON, **more}


class Sent:
    """Stands for `Output`."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, int, pa.Array | None, pa.Array]] = []

    async def send(self, topic: str, partition: int, keys: pa.Array | None, values: pa.Array) -> None:
        self.messages.append((topic, partition, keys, values))

    def rows(self, topic: str) -> list[dict[str, Any]]:
        decoder = Decoder(CONTRACTS.by_topic[topic].avro)
        values = [v for name, _, _, v in self.messages if name == topic]
        return [row for v in values for row in decoder.decode(v).batch.to_pylist()]


class World:
    """What `Tail` finds, and the services around a flow."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, source: str = "shop.public.orders") -> None:
        self.logs: dict[str, pa.RecordBatch] = {}
        self.ends = {source: 10_000}
        self.schemas: dict[int, Any] = {}
        self.sent = Sent()
        monkeypatch.setattr(streams.flow, "Tail", lambda *_: self)
        monkeypatch.setattr(streams.flow, "topic_ids", lambda _, topics: dict.fromkeys(topics, "id"))
        customers = LookupTable(load_agents([ROOT])[0].lookups[0])
        shape = pa.schema([("id", pa.int64()), ("country", pa.string()), ("segment", pa.string())])
        customers.apply(0, changes([("c", None, {"id": 1, "country": "DE", "segment": "gold"}, 1)], shape))
        ready = SimpleNamespace(is_set=lambda: True)
        self.services = Services(
            kafka=KafkaSettings(),
            contracts=CONTRACTS,
            schema_of=self.schemas.__getitem__,
            schema_ids={c.topic: i for i, c in enumerate(CONTRACTS) if not c.is_cdc},
            partitions=dict.fromkeys([*CONTRACTS.by_topic, source], 4),
            output=self.sent,  # type: ignore[arg-type]
            lookups={"customers": SimpleNamespace(table=customers, ready=ready)},  # type: ignore[dict-item]
        )

    async def __aenter__(self) -> World:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        return 0, self.ends.get(topic, len(self.logs[topic]) if topic in self.logs else 0)

    async def backwards(self, topic: str, partition: int) -> AsyncIterator[pa.RecordBatch]:
        if topic in self.logs:
            yield self.logs[topic]

    async def batches(self, topic: str, partition: int, start: int, stop: int) -> AsyncIterator[pa.RecordBatch]:
        if topic in self.logs:
            yield self.logs[topic].slice(start, stop - start)

    def chunk(
        self, batch: pa.RecordBatch, *, first: int = 100, topic: str = "shop.public.orders", of: str = ""
    ) -> Chunk:
        """`of` is the topic that the schema belongs to, where that is another one."""
        schema = avro_schema(batch.schema, "Envelope") | {"namespace": of or topic}
        schema_id = 1000 + len(self.schemas)
        self.schemas[schema_id] = schema
        values = Encoder(schema, schema_id).encode(batch)
        offsets = np.arange(first, first + len(batch), dtype=np.int64)
        times = np.full(len(batch), int(NOON.timestamp() * 1000), np.int64)
        return Chunk(topic, 1, pa.array([b"key"] * len(batch), pa.binary()), values, offsets, times, first + len(batch))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


@pytest.fixture
def flow(world: World) -> AgentFlow:
    (agent,) = [a for a in load_agents([ROOT]) if a.name == "orders"]
    return AgentFlow(agent, world.services)


async def test_orders_become_events_with_what_was_before(world: World, flow: AgentFlow) -> None:
    assert await flow.assigned(1, None) is None
    paid = order("paid", "12.50")
    await flow.process(
        world.chunk(
            changes(
                [
                    ("r", None, order("new", id=1, customer_id=9), 5),
                    ("c", None, order("new"), 10),
                    ("u", order("new"), paid, 11),
                    ("c", None, order("new"), 10),
                    ("d", paid, None, 12),
                    ("t", None, None, 13),
                    ("c", None, order("eaten", id=8), 14),
                ],
                ORDER,
                "public.orders",
            )
        )
    )
    rows = world.sent.rows("clean.orders")
    assert [(r["op"], r["status"], r["previous_status"], r["amount"], r["previous_amount"]) for r in rows] == [
        ("r", "new", None, Decimal("10.00"), None),
        ("c", "new", None, Decimal("10.00"), None),
        ("u", "paid", "new", Decimal("12.50"), Decimal("10.00")),
        ("d", "paid", "paid", Decimal("12.50"), Decimal("12.50")),
    ]
    assert [r["segment"] for r in rows] == [None, "gold", "gold", "gold"]
    assert [r["source_offset"] for r in rows] == [100, 101, 102, 104]
    assert [(r["source_offset"], r["rule"], r["disposition"]) for r in world.sent.rows("ops.quarantine")] == [
        (103, "repeated change", "dropped"),
        (105, "truncation", "dropped"),
        (106, "status: one_of [new, paid, shipped, delivered, cancelled]", "quarantined"),
    ]
    assert {r["source_topic_id"] for r in world.sent.rows("ops.quarantine")} == {"id"}
    # The quarantine leaves first: the output is what a successor goes by.
    assert [(topic, partition) for topic, partition, _, _ in world.sent.messages] == [
        ("ops.quarantine", 1),
        ("clean.orders", 1),
    ]
    assert world.sent.messages[1][2].to_pylist() == [b"1", b"7", b"7", b"7"]


async def test_positions_survive_a_restart_in_the_commit(world: World, flow: AgentFlow) -> None:
    await flow.assigned(1, None)
    assert flow.note(1, 100) == ""
    await flow.process(world.chunk(changes([("c", None, order("new"), 20)], ORDER, "public.orders")))
    await flow.process(world.chunk(changes([("u", None, order("paid"), 30)], ORDER, "public.orders"), first=101))
    assert flow.note(1, 101) == str(Position(20, 20))
    assert flow.note(1, 102) == str(Position(30, 30))
    flow.revoked(1)
    assert await flow.assigned(1, Committed(102, "30:30")) == 102
    await flow.process(world.chunk(changes([("u", None, order("new"), 25)], ORDER, "public.orders"), first=102))
    assert [r["rule"] for r in world.sent.rows("ops.quarantine")] == ["repeated change"]
    assert len(world.sent.rows("clean.orders")) == 2


async def test_what_a_predecessor_sent_is_not_sent_again(world: World, flow: AgentFlow) -> None:
    world.logs["clean.orders"] = pa.RecordBatch.from_pydict({"source_offset": [100, 101, 100]})
    world.logs["ops.quarantine"] = pa.RecordBatch.from_pydict(
        {
            "stage": ["agent:orders", "agent:orders", "bronze", "agent:orders", "agent:orders"],
            "source_topic": ["shop.public.orders"] * 5,
            "source_partition": pa.array([1, 1, 1, 0, 1], pa.int32()),
            "source_offset": [90, 103, 102, 102, 104],
            "kafka_timestamp": pa.array([NOON] * 5, pa.timestamp("us", "UTC")),
            "source_topic_id": [None, "id", "id", "id", "of before"],
        }
    )
    assert await flow.assigned(1, Committed(100, "")) == 100
    events = [("c", None, order("new", id=i), 10 + i) for i in range(5)]
    await flow.process(world.chunk(changes(events, ORDER, "public.orders")))
    assert [r["source_offset"] for r in world.sent.rows("clean.orders")] == [102, 104]
    assert world.sent.rows("ops.quarantine") == []


async def test_what_was_decided_on_a_topic_of_before_says_nothing(world: World, flow: AgentFlow) -> None:
    """The source and the output were deleted and made anew; the quarantine still knows the old records."""
    world.logs["ops.quarantine"] = pa.RecordBatch.from_pydict(
        {
            "stage": ["agent:orders"],
            "source_topic": ["shop.public.orders"],
            "source_partition": pa.array([1], pa.int32()),
            "source_offset": [101],
            "kafka_timestamp": pa.array([NOON - timedelta(days=1)], pa.timestamp("us", "UTC")),
        }
    )
    await flow.assigned(1, None)
    events = [("c", None, order("new", id=i), 10 + i) for i in range(3)]
    await flow.process(world.chunk(changes(events, ORDER, "public.orders")))
    assert [r["source_offset"] for r in world.sent.rows("clean.orders")] == [100, 101, 102]


async def test_a_source_made_anew_halts(world: World, flow: AgentFlow) -> None:
    world.logs["clean.orders"] = pa.RecordBatch.from_pydict({"source_offset": [10_000]})
    with pytest.raises(IdentityError, match="made anew"):
        await flow.assigned(1, None)


async def test_records_of_another_table_and_undecodable_ones(world: World, flow: AgentFlow) -> None:
    await flow.assigned(1, None)
    chunk = world.chunk(changes([("c", None, order("new"), 1)], ORDER, "public.forged"))
    await flow.process(chunk)
    chunk = world.chunk(changes([("c", None, order("new"), 1)] * 2, ORDER, "public.orders"), first=101)
    chunk.values = pa.array([chunk.values[0].as_py()[:-1], None], pa.binary())
    await flow.process(chunk)
    found = world.sent.rows("ops.quarantine")
    assert [(r["rule"], r["disposition"], r["key"], r["value"] is not None) for r in found] == [
        ("of another table", "quarantined", b"key", True),
        ("truncated", "quarantined", b"key", True),
        ("tombstone", "dropped", None, False),
    ]
    assert world.sent.rows("clean.orders") == []


async def test_records_that_are_no_changes_are_refused_where_a_table_is_captured(world: World) -> None:
    (agent,) = [a for a in load_agents([ROOT]) if a.name == "orders"]
    flow = AgentFlow(agent, replace(world.services, captured={"shop.public.orders"}))
    await flow.assigned(1, None)
    good = world.chunk(changes([("c", None, order("new"), 1)], ORDER, "public.orders"))
    foreign = world.chunk(pa.RecordBatch.from_pylist([{"id": 7, "status": "new"}]), of="clean.orders")
    values = pa.array([good.values[0].as_py(), foreign.values[0].as_py()], pa.binary())
    await flow.process(make_chunk(values.to_pylist(), topic="shop.public.orders", partition=1))
    assert [r["status"] for r in world.sent.rows("clean.orders")] == ["new"]
    assert [r["rule"] for r in world.sent.rows("ops.quarantine")] == ["unsupported schema"]


async def test_a_chunk_of_nothing_but_junk(world: World, flow: AgentFlow) -> None:
    await flow.assigned(1, None)
    await flow.process(make_chunk([b"junk", b"", None], topic="shop.public.orders", partition=1))
    assert [r["rule"] for r in world.sent.rows("ops.quarantine")] == ["not framed", "not framed", "tombstone"]


async def test_an_agent_that_cannot_work_says_so(world: World, tmp_path: Path) -> None:
    def make(**changes_: Any) -> AgentFlow:
        said = {"name": "x", "source": "telemetry.readings", "output": "clean.readings", "steps": (), **changes_}
        return AgentFlow(Agent(**said), world.services)

    with pytest.raises(ConfigError, match="no contract for its output"):
        make(output="nowhere")
    with pytest.raises(ConfigError, match="needs the field source_offset"):
        make(output="telemetry.readings")
    with pytest.raises(ConfigError, match="lacks colour"):
        make(steps=(deduplicate(["colour"], "seq"),))
    world.services.partitions["telemetry.readings"] = 8  # type: ignore[index]
    with pytest.raises(ConfigError, match="has 4 partitions") as e:
        make()
    assert e.value.hint == "give clean.readings 8 partitions, as docs/operations.md shows under Scaling"


def test_agents_are_found_by_path_and_errors_name_the_file(tmp_path: Path) -> None:
    assert {agent.name for agent in load_agents([ROOT])} == {"orders", "readings"}
    folder = tmp_path / "streams" / "agents"
    folder.mkdir(parents=True)
    (folder / "bad.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(ConfigError, match=r"bad\.py: does not load: ModuleNotFoundError"):
        load_agents([tmp_path])
    (folder / "bad.py").write_text((ROOT / "streams" / "agents" / "orders.py").read_text())
    with pytest.raises(ConfigError, match="a second agent named orders"):
        load_agents([ROOT, tmp_path])
    (folder / "bad.py").write_text((folder / "bad.py").read_text().replace('name="orders"', 'name="more"'))
    with pytest.raises(ConfigError, match=r"a second agent that writes to clean\.orders"):
        load_agents([ROOT, tmp_path])


def edited(batch: pa.RecordBatch, row: int, **parts: Any) -> pa.RecordBatch:
    """The events, one of them with other parts; those given as a table are merged into what it has."""
    rows = batch.to_pylist()
    for name, value in parts.items():
        rows[row][name] = rows[row][name] | value if isinstance(value, dict) else value
    return pa.RecordBatch.from_pylist(rows, schema=batch.schema)


@pytest.mark.parametrize("lacks", [{"source": {"sequence": None}}, {"transaction": None}])
async def test_a_change_that_does_not_say_its_place_is_quarantined_alone(
    world: World, flow: AgentFlow, lacks: dict[str, Any]
) -> None:
    await flow.assigned(1, None)
    events = changes([("c", None, order("new", id=i), i) for i in (1, 2, 3)], ORDER, "public.orders")
    await flow.process(world.chunk(edited(events, 1, **lacks)))
    await flow.process(world.chunk(edited(events.slice(1, 1), 0, **lacks), first=103))
    assert [r["source_offset"] for r in world.sent.rows("clean.orders")] == [100, 102]
    refused = world.sent.rows("ops.quarantine")
    assert [(r["source_offset"], r["rule"], r["disposition"]) for r in refused] == [
        (101, "position", "quarantined"),
        (103, "position", "quarantined"),
    ]
    assert "provide.transaction.metadata" in refused[0]["reason"]
    assert flow.note(1, 104) == str(Position(3, 3))


async def test_what_a_predecessor_refused_is_not_refused_again(world: World, flow: AgentFlow) -> None:
    events = changes([("c", None, order("new", id=i), i) for i in range(5)], ORDER, "public.orders")
    chunk = world.chunk(edited(edited(events, 0, source={"table": "forged"}), 1, transaction=None))
    chunk.values = pa.array([*chunk.values.to_pylist()[:3], b"junk", None], pa.binary())
    committed = Committed(100, "50:50")
    await flow.assigned(1, committed)
    await flow.process(chunk)
    ((topic, _, _, refused),) = world.sent.messages
    rules = [r["rule"] for r in world.sent.rows(topic)]
    assert rules == ["of another table", "position", "repeated change", "not framed", "tombstone"]
    world.logs[topic] = Decoder(CONTRACTS.by_topic[topic].avro).decode(refused).batch
    await flow.assigned(1, committed)
    await flow.process(chunk)
    assert len(world.sent.messages) == 1


async def test_a_change_of_another_table_makes_no_later_one_a_repeat(world: World, flow: AgentFlow) -> None:
    await flow.assigned(1, None)
    await flow.process(world.chunk(changes([("c", None, order("new"), 10**6)], ORDER, "public.forged")))
    await flow.process(world.chunk(changes([("c", None, order("new"), 5)], ORDER, "public.orders"), first=101))
    nameless = edited(changes([("c", None, order("new"), 6)], ORDER, "public.orders"), 0, source={"table": None})
    await flow.process(world.chunk(nameless, first=102))
    assert [r["source_offset"] for r in world.sent.rows("clean.orders")] == [101, 102]
    found = [(r["rule"], r["reason"], r["source_offset"]) for r in world.sent.rows("ops.quarantine")]
    assert found == [("of another table", "public.forged", 100)]
