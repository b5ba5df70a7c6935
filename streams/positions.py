"""Where each topic is read from: every processor's own progress counts, not only the group's offset.

A commit of the group carries the names of the processors it speaks for. A processor that is not among them (new, or
absent for a while) begins where it wants, at the start of the log if it has nothing, and the others skip what they
have had. So an agent added to a topic that is long being read misses nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

import orjson
from aiokafka.structs import OffsetAndMetadata
from faust.types.tuples import TP

from headrace.errors import TerminalError
from streams.processor import Committed, Runner

# Kafka's default limit of a commit's metadata is 4096 bytes.
NOTE_BYTES = 4000
PARTITIONS_AT_ONCE = 8


class Positions:
    """The transport's `StartPolicy` over a worker's processors."""

    def __init__(self, runners: Sequence[Runner]) -> None:
        self._by_topic: dict[str, list[Runner]] = {}
        for runner in runners:
            self._by_topic.setdefault(runner.processor.source, []).append(runner)

    def note(self, topic: str, partition: int, offset: int) -> str:
        """Raises `TerminalError` when the notes of a topic's processors are too long together."""
        processors = [runner.processor for runner in self._by_topic.get(topic, [])]
        note = orjson.dumps({"agents": {p.name: p.note(partition, offset) for p in processors}})
        if len(note) > NOTE_BYTES:
            raise TerminalError(
                f"{len(processors)} processors have {len(note)} bytes to keep with a commit, {NOTE_BYTES} is the limit",
                where=topic,
                hint="spread them over more than one worker application",
            )
        return note.decode()

    async def starts(self, committed: Mapping[TP, OffsetAndMetadata]) -> dict[TP, int | None]:
        turns = asyncio.Semaphore(PARTITIONS_AT_ONCE)
        found = await asyncio.gather(*(self._start(tp, at, turns) for tp, at in committed.items()))
        return dict(zip(committed, found, strict=True))

    async def _start(self, tp: TP, at: OffsetAndMetadata, turns: asyncio.Semaphore) -> int | None:
        notes = read_notes(at.metadata) if at.offset >= 0 else {}
        wanted = []
        for runner in self._by_topic.get(tp.topic, []):
            name = runner.processor.name
            async with turns:
                known = Committed(at.offset, notes[name]) if name in notes else None
                wanted.append(await runner.assigned(tp.partition, known))
        offsets = [offset for offset in wanted if offset is not None]
        return min(offsets) if offsets and len(offsets) == len(wanted) else None

    def forget(self, partitions: Iterable[TP]) -> None:
        for tp in partitions:
            for runner in self._by_topic.get(tp.topic, []):
                runner.forget(tp.partition)


def read_notes(metadata: str) -> dict[str, str]:
    """What `note` wrote, by processor; nothing for a commit that others made (an operator who reset the group)."""
    try:
        agents = orjson.loads(metadata)["agents"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return {}
    return {str(name): str(note) for name, note in agents.items()} if isinstance(agents, dict) else {}
