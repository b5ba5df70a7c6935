from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.structs import OffsetAndMetadata
from faust.types.tuples import TP

from headrace.config import KafkaSettings
from headrace.errors import TerminalError, UnavailableError
from headrace.kafka.columns import Chunk
from streams.app import credentials
from streams.positions import Positions, read_notes
from streams.processor import Committed, FlowHaltedError, Processor, Retry, Runner, terminal
from streams.transport import Delivery, records
from tests.unit.streams.support import make_chunk


class Recorder(Processor):
    def __init__(self, name: str = "p", start: int | None = 0, note: str = "") -> None:
        self.name = name
        self.source = "src"
        self.begin = start
        self.said = note
        self.offsets: list[int] = []
        self.seen: list[Any] = []
        self.hold = asyncio.Event()
        self.hold.set()

    async def assigned(self, partition: int, committed: Committed | None) -> int | None:
        self.seen.append(("assigned", partition, committed))
        return self.begin

    def revoked(self, partition: int) -> None:
        self.seen.append(("revoked", partition))

    def note(self, partition: int, offset: int) -> str:
        return self.said

    async def process(self, chunk: Chunk) -> None:
        await self.hold.wait()
        self.offsets += chunk.offsets.tolist()


class Stream:
    """Stands for Faust's stream: yields events, keeps which were acknowledged."""

    def __init__(self, *deliveries: Delivery) -> None:
        self.acked: list[Delivery] = []
        self._events = [SimpleNamespace(value=d, ack=lambda d=d: self.acked.append(d)) for d in deliveries]

    def noack(self) -> Stream:
        return self

    async def events(self) -> Any:
        for event in self._events:
            yield event


class App:
    def __init__(self) -> None:
        self.crashes: list[BaseException] = []
        self.agents: dict[str, Any] = {}
        self.conf = SimpleNamespace(Agent=lambda agent, **_: agent)

    def topic(self, *_: Any, **__: Any) -> None: ...

    async def crash(self, error: BaseException) -> None:
        self.crashes.append(error)


async def run(runner: Runner, stream: Stream) -> App:
    app = App()
    runner.attach(app)
    await app.agents[f"headrace.{runner.processor.name}"](stream)
    return app


async def test_chunks_are_acknowledged_after_their_work_and_dead_ones_never() -> None:
    processor = Recorder(start=102)
    runner = Runner(processor, Retry())
    await runner.assigned(2, None)
    live, dead = Delivery(make_chunk([b"x"] * 4), True), Delivery(make_chunk([b"x"], first=900), False)
    stream = Stream(dead, live)
    app = await run(runner, stream)
    assert processor.offsets == [102, 103]
    assert stream.acked == [live]
    assert app.crashes == []


async def test_an_error_ends_the_app_and_acknowledges_nothing() -> None:
    class Broken(Recorder):
        async def process(self, chunk: Chunk) -> None:
            raise KeyError("someone@example.com")

    runner = Runner(Broken(), Retry())
    await runner.assigned(2, None)
    stream = Stream(Delivery(make_chunk([b"x"]), True), Delivery(make_chunk([b"x"], first=101), True))
    app = await run(runner, stream)
    assert stream.acked == []
    (error,) = app.crashes
    assert isinstance(error, TerminalError)
    assert "KeyError raised at test_processor.py" in str(error)
    assert "src-2@100..100" in str(error)
    assert "example.com" not in str(error)


async def test_a_chunk_whose_partition_leaves_is_given_up_and_reassigned_only_then() -> None:
    processor = Recorder()
    processor.hold.clear()
    runner = Runner(processor, Retry())
    await runner.assigned(2, None)
    delivery = Delivery(make_chunk([b"x"]), True)
    stream = Stream(delivery)
    working = asyncio.ensure_future(run(runner, stream))
    await asyncio.sleep(0.01)
    delivery.live = False
    runner.forget(2)
    await runner.assigned(2, None)
    app = await working
    assert (stream.acked, app.crashes, processor.offsets) == ([], [], [])
    assert [what[0] for what in processor.seen] == ["assigned", "revoked", "assigned"]


async def test_retry_waits_for_servers_and_gives_up() -> None:
    tries = 0

    async def third_time() -> str:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise UnavailableError("away")
        return "here"

    assert await Retry()("there", third_time) == "here"

    async def never() -> None:
        raise UnavailableError("away")

    retry = Retry(seconds=0.05)
    with pytest.raises(TerminalError, match="gave up"):
        await retry("there", never)
    assert retry.waiting == {}


async def test_reading_begins_where_the_first_processor_wants() -> None:
    old, new = Recorder("old", 50, "10:1"), Recorder("new", None)
    positions = Positions([Runner(old, Retry()), Runner(new, Retry())])
    tp = TP("src", 3)
    note = '{"agents":{"old":"9:9"}}'
    assert await positions.starts({tp: OffsetAndMetadata(50, note)}) == {tp: None}
    assert old.seen == [("assigned", 3, Committed(50, "9:9"))]
    assert new.seen == [("assigned", 3, None)]
    new.begin = 20
    assert await positions.starts({tp: OffsetAndMetadata(50, note)}) == {tp: 20}
    assert read_notes(positions.note("src", 3, 60)) == {"old": "10:1", "new": ""}
    positions.forget([tp])
    assert old.seen[-1] == ("revoked", 3)


@pytest.mark.parametrize("metadata", ["", "x", "[]", '{"agents":3}', '{"agents":[]}'])
def test_commits_of_others_speak_for_nobody(metadata: str) -> None:
    assert read_notes(metadata) == {}


def test_notes_have_a_limit() -> None:
    positions = Positions([Runner(Recorder(f"a{i}", note="x" * 100), Retry()) for i in range(50)])
    with pytest.raises(TerminalError, match="limit"):
        positions.note("src", 0, 1)


def test_errors_of_the_tree_keep_their_place() -> None:
    chunk = make_chunk([b"x"])
    assert terminal(TerminalError("bad", where="here"), Recorder(), chunk).where == "here"
    assert terminal(TerminalError("bad"), Recorder(), chunk).where == "agent:p src-2@100..100"


def test_chunks_become_the_clients_records_for_other_topics() -> None:
    chunk = make_chunk([b"v", None], topic="t-changelog")
    found = records(chunk)
    assert [(r.offset, r.key, r.value, r.topic, r.partition) for r in found] == [
        (100, b"k0", b"v", "t-changelog", 2),
        (101, b"k1", None, "t-changelog", 2),
    ]
    assert found[0].timestamp == chunk.timestamps[0]


def test_security_reaches_faust() -> None:
    assert credentials(KafkaSettings()) is None
    tls = credentials(KafkaSettings(security_protocol="SSL"))
    assert tls.protocol.value == "SSL"
    sasl = KafkaSettings(
        security_protocol="SASL_SSL", sasl_mechanism="SCRAM-SHA-512", sasl_username="u", sasl_password="p"
    )
    found = credentials(sasl)
    assert (found.protocol.value, found.mechanism.value, found.username, found.password) == (
        "SASL_SSL",
        "SCRAM-SHA-512",
        "u",
        "p",
    )
    assert found.ssl_context is not None


async def test_a_halted_flow_holds_its_chunk_and_nobody_else() -> None:
    class Halting(Recorder):
        async def process(self, chunk: Chunk) -> None:
            raise FlowHaltedError("too much is bad", where="agent:p")

    runner = Runner(Halting(), Retry())
    await runner.assigned(2, None)
    delivery = Delivery(make_chunk([b"x"]), True)
    stream = Stream(delivery)
    working = asyncio.ensure_future(run(runner, stream))
    await asyncio.sleep(0.01)
    assert not working.done()
    assert (stream.acked, delivery.live, runner.halted) == ([], False, "agent:p: too much is bad")
    working.cancel()
