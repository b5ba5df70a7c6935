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
    """Stands for Faust's stream: yields events, never ends, keeps which were acknowledged."""

    def __init__(self, *deliveries: Delivery) -> None:
        self.acked: list[Delivery] = []
        self._events = [SimpleNamespace(value=d, ack=lambda d=d: self.acked.append(d)) for d in deliveries]

    def noack(self) -> Stream:
        return self

    async def events(self) -> Any:
        for event in self._events:
            yield event
        await asyncio.Event().wait()


class App:
    def __init__(self) -> None:
        self.crashes: list[BaseException] = []
        self.agents: dict[str, Any] = {}
        self.conf = SimpleNamespace(Agent=lambda agent, **_: agent)

    def topic(self, *_: Any, **__: Any) -> None: ...

    async def crash(self, error: BaseException) -> None:
        self.crashes.append(error)


async def settle() -> None:
    for _ in range(100):
        await asyncio.sleep(0)


class Running:
    """The agent of a runner, from here until the block ends."""

    def __init__(self, runner: Runner, stream: Stream) -> None:
        self.app = App()
        runner.attach(self.app)
        self._run = self.app.agents[f"headrace.{runner.processor.name}"](stream)

    async def __aenter__(self) -> App:
        self._task = asyncio.ensure_future(self._run)
        await settle()
        return self.app

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await settle()
        assert self._task.cancelled()


async def test_chunks_are_acknowledged_after_their_work_and_dead_ones_never() -> None:
    processor = Recorder(start=102)
    runner = Runner(processor, Retry())
    await runner.assigned(2, None)
    live, dead = Delivery(make_chunk([b"x"] * 4), True), Delivery(make_chunk([b"x"], first=900), False)
    stream = Stream(dead, live)
    async with Running(runner, stream) as app:
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
    async with Running(runner, stream) as app:
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
    async with Running(runner, stream) as app:
        delivery.live = False
        runner.forget(2)
        await runner.assigned(2, None)
        await settle()
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
    stream = Stream(delivery, Delivery(make_chunk([b"x"], first=101), True))
    async with Running(runner, stream) as app:
        assert (stream.acked, delivery.live, app.crashes) == ([], False, [])
    assert runner.halted == "agent:p: too much is bad"


class Gates(Processor):
    """Each chunk waits for a gate of its own."""

    name, source, at_once = "p", "src", 2

    def __init__(self) -> None:
        self.gates: dict[tuple[int, int], asyncio.Future[None]] = {}

    async def assigned(self, partition: int, committed: Committed | None) -> int | None:
        return 0

    async def process(self, chunk: Chunk) -> None:
        self.gates[chunk.partition, int(chunk.offsets[0])] = gate = asyncio.get_running_loop().create_future()
        await gate


def delivery(partition: int, first: int) -> Delivery:
    return Delivery(make_chunk([b"x"], partition=partition, first=first), True)


async def gated(*deliveries: Delivery) -> tuple[Gates, Runner, Stream]:
    processor = Gates()
    runner = Runner(processor, Retry())
    for partition in range(4):
        await runner.assigned(partition, None)
    return processor, runner, Stream(*deliveries)


async def test_partitions_are_worked_on_beside_each_other_and_each_in_order() -> None:
    first, second, other, more = delivery(0, 100), delivery(0, 200), delivery(1, 100), delivery(2, 100)
    processor, runner, stream = await gated(first, other, second, more)
    async with Running(runner, stream):
        assert list(processor.gates) == [(0, 100), (1, 100)]
        processor.gates[1, 100].set_result(None)
        await settle()
        assert list(processor.gates) == [(0, 100), (1, 100)], "the second of partition 0 waits for the first"
        processor.gates[0, 100].set_result(None)
        await settle()
        assert list(processor.gates)[2:] == [(0, 200), (2, 100)]
        assert stream.acked == [other, first]


async def test_nothing_is_begun_after_a_chunk_that_failed() -> None:
    processor, runner, stream = await gated(delivery(0, 100), delivery(1, 100), delivery(0, 200), delivery(2, 100))
    async with Running(runner, stream) as app:
        processor.gates[0, 100].set_exception(TerminalError("no"))
        await settle()
        assert [str(error) for error in app.crashes] == ["agent:p src-0@100..100: no"]
        processor.gates[1, 100].set_result(None)
        await settle()
        assert list(processor.gates) == [(0, 100), (1, 100)]
    assert [d.chunk.partition for d in stream.acked] == [1]


async def test_work_ends_with_its_agent_and_partitions_wait_for_it() -> None:
    processor, runner, stream = await gated(delivery(0, 100), delivery(1, 100))
    async with Running(runner, stream):
        assigning = asyncio.ensure_future(runner.assigned(3, None))
        await settle()
        assert not assigning.done()
    assert all(gate.cancelled() for gate in processor.gates.values())
    await assigning
    assert stream.acked == []
