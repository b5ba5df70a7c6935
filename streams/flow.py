"""An agent at work: a chunk is decoded, checked, stepped through and sent, and every record of it accounted for.

Order within a chunk: decode, drop what is a repeat, check the source's rules, run the steps, check the output's rules,
send what left to the quarantine, then the output. The output comes last because it is what a successor goes by: on
assignment the highest `source_offset` in the output partition says what is done, so that a worker that was killed
leaves no record out and no record twice in its output.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace import metrics
from headrace.config import KafkaSettings
from headrace.errors import ConfigError, ContractError, IdentityError
from headrace.kafka.admin import topic_ids
from headrace.kafka.columns import Chunk
from schemas import coordinates, envelope
from schemas.codec import ChunkDecoder, Decoded, Encoder, arrow_schema, rule_of
from schemas.contracts import Contract, ContractSet
from schemas.keys import record_keys
from schemas.left_out import UNPLACED, foreign
from schemas.own import own_schemas
from schemas.rules import Rule, compile_rules
from schemas.shape import conform
from streams.agent import COORDINATE, Agent, RememberingStep, StepContext, run_step
from streams.lookup import LookupReader
from streams.output import Output
from streams.processor import Committed, NotYet, Processor
from streams.quarantine import TOPIC, quarantine_batch
from streams.tail import Tail
from streams.thresholds import Thresholds

REPLAY = "replay"
# While one partition's records are on their way to Kafka, the next one's are worked on.
PARTITIONS_AT_ONCE = 4
# Records of the quarantine that are searched for what a predecessor sent there and had no time to commit.
MOST_DECIDED = 100_000

Ints = npt.NDArray[np.int64]
Marks = npt.NDArray[Any]

MARK = np.dtype([("offset", np.int64), ("timestamp", np.int64)])


@dataclass(frozen=True)
class Services:
    """What the processors of a worker share. `schema_ids` and `partitions` are by topic, `captured` are topics of
    captured tables."""

    kafka: KafkaSettings
    contracts: ContractSet
    schema_of: Callable[[int], dict[str, Any]]
    schema_ids: Mapping[str, int]
    partitions: Mapping[str, int]
    output: Output
    lookups: Mapping[str, LookupReader] = field(default_factory=dict)
    captured: Container[str] = ()


@dataclass
class _Place:
    """What an agent knows of one source partition; `topic` is Kafka's id of the topic."""

    topic: str | None
    done: int
    decided: Marks
    lanes: dict[str, int]
    position: envelope.Position
    positions: deque[tuple[int, envelope.Position]]
    work: _Work | None = None


@dataclass
class _Work:
    """One chunk on its way; kept while a step waits for something, so that no step runs twice on the same rows."""

    chunk: Chunk
    ctx: StepContext
    batch: pa.RecordBatch
    schema_ids: Ints
    lanes: dict[str, int]
    position: envelope.Position
    steps_done: int = 0


class AgentFlow(Processor):
    """The processor of one `Agent`. Raises `ConfigError` at once for an agent that cannot work."""

    at_once = PARTITIONS_AT_ONCE

    def __init__(self, agent: Agent, services: Services) -> None:
        self.agent = agent
        self.name = agent.name
        self.source = agent.source
        self._services = services
        self._contract = services.contracts.by_topic.get(agent.source)
        self._target = _target(agent, services.contracts)
        self._derived = self._contract is not None and self._contract.find(COORDINATE) is not None
        self._shape = arrow_schema(self._contract.avro) if self._contract else None
        self._rules = compile_rules(self._contract) if self._contract else []
        self._target_rules = compile_rules(self._target)
        # A contract of change events describes rows, which are inside of what is decoded.
        named = self._contract is not None and not self._contract.is_cdc
        own = own_schemas(agent.source, services.schema_of, captured=agent.source in services.captured)
        self._decoder = ChunkDecoder(own, names=self._shape if named else None)
        self._encoder = Encoder(self._target.avro, services.schema_ids[agent.output])
        self._quarantine = Encoder(services.contracts.by_topic[TOPIC].avro, services.schema_ids[TOPIC])
        self._memories = [step for step in agent.steps if isinstance(step, RememberingStep)]
        self._lookups = {lookup.name: services.lookups[lookup.name] for lookup in agent.lookups}
        self._places: dict[int, _Place] = {}
        # The decoder is for one thread at a time.
        self._decoding = asyncio.Lock()
        self._thresholds = Thresholds(self.flow, self.source, self._contract)
        _check(agent, self._target, self._memories, services)

    async def assigned(self, partition: int, committed: Committed | None) -> int | None:
        topic = (await asyncio.to_thread(topic_ids, self._services.kafka, [self.source])).get(self.source)
        async with Tail(self._services.kafka, self._services.schema_of) as tail:
            done = await self._highest(tail, partition)
            floor = max(committed.offset - 1 if committed else -1, -1 if self._derived else done)
            decided = await self._decided(tail, partition, topic, floor)
            for step in self._memories:
                await self._remember(tail, partition, step)
            begin, end = await tail.bounds(self.source, partition)
        if not self._derived and done >= end:
            raise IdentityError(
                f"the source ends at {end}, its output is of offset {done}: the topic was made anew",
                where=f"{self.flow} {self.source}-{partition}",
                hint=f"delete {self.agent.output} too, or give the agent another output",
            )
        position = envelope.Position.parse(committed.note) if committed and committed.note else envelope.NOWHERE
        start = committed.offset if committed else None
        if start is None and done >= begin and self._contract is not None and not self._contract.is_cdc:
            # Change events are all read again: which of them repeat depends on those before.
            start = None if self._derived else done + 1
        self._places[partition] = _Place(
            topic,
            done=-1 if self._derived else done,
            decided=decided,
            lanes={"": done} if done >= 0 else {},
            position=position,
            positions=deque([(start or 0, position)]),
        )
        return start

    def revoked(self, partition: int) -> None:
        self._places.pop(partition, None)
        for step in self._memories:
            step.forget(partition)

    def note(self, partition: int, offset: int) -> str:
        place = self._places.get(partition)
        if place is None:
            return ""
        known = place.positions
        while len(known) > 1 and known[1][0] <= offset:
            known.popleft()
        position = known[0][1]
        return "" if position == envelope.NOWHERE else str(position)

    async def process(self, chunk: Chunk) -> None:
        for name, reader in self._lookups.items():
            if not reader.ready.is_set():
                raise NotYet(f"lookup {name}: {reader.problem()}", where=self.flow)
        place = self._places[chunk.partition]
        if place.work is None or place.work.chunk is not chunk:
            place.work = await self._begin(chunk)
        work = place.work
        # An empty batch may lack any column: none of the chunk's records was decoded.
        while work.steps_done < len(self.agent.steps) and len(work.batch):
            work.batch = run_step(self.agent.steps[work.steps_done], work.batch, work.ctx)
            work.steps_done += 1
        out = (
            check(self._target_rules, self._target, work.batch, work.batch, work.ctx) if len(work.batch) else work.batch
        )
        departed: Counter[str] = Counter()
        for departure in work.ctx.departures:
            departed[departure.disposition] += len(departure.rows)
        self._thresholds.count(len(chunk), departed)
        await self._send(work, out)
        place.lanes, place.position = work.lanes, work.position
        place.positions.append((chunk.next_offset, work.position))
        place.work = None

    async def _begin(self, chunk: Chunk) -> _Work:
        place = self._places[chunk.partition]
        async with self._decoding:
            decoded = await asyncio.to_thread(self._decoder.decode, chunk.values)
        fresh = (chunk.offsets > place.done) & ~np.isin(marks(chunk.offsets, chunk.timestamps), place.decided)
        rows, batch = decoded.rows, decoded.batch
        at = chunk.offsets[rows]
        keep, lanes, position = fresh[rows], place.lanes, place.position
        repeated, strange, unplaced = (np.zeros(len(rows), np.bool_) for _ in range(3))
        if self._derived and len(rows):
            at = coordinates.sequence(batch)
            above, lanes = coordinates.drop_replays(batch, lanes)
            keep = keep & above.to_numpy(zero_copy_only=False)
        elif envelope.is_envelope(batch.schema) and len(rows):
            strange = foreign(batch, self.source)
            told = ~strange
            try:
                lsn, order = envelope.positions(batch.filter(pa.array(told)) if strange.any() else batch)
            except ContractError:
                unplaced = envelope.unplaced(batch) & told
                if not unplaced.any():
                    raise
                told &= ~unplaced
                lsn, order = envelope.positions(batch.filter(pa.array(told)))
            repeated[told] = ~envelope.after_position(lsn, order, position)
            position = envelope.highest(lsn, order, position)
            repeated &= keep
            keep = keep & told & ~repeated
        coordinate = np.full(len(chunk), -1, np.int64)
        coordinate[rows[keep]] = at[keep]
        lookups = {name: reader.table for name, reader in self._lookups.items()}
        ctx = StepContext(self.name, chunk, coordinate, lookups)
        self._depart(ctx, decoded, fresh, rows[repeated])
        if (strange := strange & fresh[rows]).any():
            tables = envelope.table_of(batch.filter(pa.array(strange)))
            ctx.depart(rows[strange], "quarantined", "of another table", tables)
        ctx.depart(rows[unplaced & fresh[rows]], "quarantined", "position", UNPLACED)
        batch = _set(batch, COORDINATE, pa.array(at)).filter(pa.array(keep))
        metrics.ROWS_DROPPED.labels(self.flow, chunk.topic, REPLAY).inc(
            len(chunk) - len(batch) - sum(len(d.rows) for d in ctx.departures)
        )
        batch = self._check_source(batch, ctx)
        return _Work(chunk, ctx, batch, decoded.schema_ids, lanes, position)

    def _depart(self, ctx: StepContext, decoded: Decoded, fresh: npt.NDArray[np.bool_], repeated: Ints) -> None:
        """What leaves before any rule or step: it does not decode, says nothing, or was said before."""
        contract = self._contract.name if self._contract else None
        rules = np.array([rule_of(reason) for reason in decoded.reasons], dtype=np.str_)
        for rule in np.unique(rules):
            which = (rules == rule) & fresh[decoded.bad]
            reasons = [decoded.reasons[i] for i in np.flatnonzero(which)]
            ctx.depart(decoded.bad[which], "quarantined", str(rule), reasons, contract)
        ctx.depart(decoded.nulls[fresh[decoded.nulls]], "dropped", "tombstone", "")
        ctx.depart(repeated, "dropped", "repeated change", "its position is not above the highest before it")

    def _check_source(self, batch: pa.RecordBatch, ctx: StepContext) -> pa.RecordBatch:
        if not len(batch):
            return batch
        if not envelope.is_envelope(batch.schema):
            if self._contract is None or self._shape is None:
                return batch
            batch = check(self._rules, self._contract, batch, batch, ctx)
            return _set(conform(batch, self._shape), COORDINATE, batch.column(COORDINATE))
        if self._contract is None or self._shape is None:
            return batch
        after = envelope.row_batch(batch, "after")
        batch = check(self._rules, self._contract, batch, after, ctx, envelope.has_row(batch, "after"))
        for part in ("before", "after"):
            batch = _set(batch, part, _shaped(batch, part, self._shape))
        return batch

    async def _send(self, work: _Work, out: pa.RecordBatch) -> None:
        chunk, flow = work.chunk, (self.flow, work.chunk.topic)
        topic = self._places[chunk.partition].topic
        refused = quarantine_batch(self.flow, chunk, work.ctx.departures, work.schema_ids, topic)
        if refused is not None:
            partition = chunk.partition % self._services.partitions[TOPIC]
            await self._services.output.send(TOPIC, partition, None, self._quarantine.encode(refused))
        if len(out):
            keys = record_keys(out, self._target.key)
            await self._services.output.send(self.agent.output, chunk.partition, keys, self._encoder.encode(out))
        metrics.ROWS_OUT.labels(*flow).inc(len(out))
        for departure in work.ctx.departures:
            whole = departure.disposition == "quarantined"
            counter = metrics.ROWS_QUARANTINED if whole else metrics.ROWS_DROPPED
            counter.labels(*flow, departure.rule).inc(len(departure.rows))

    async def _highest(self, tail: Tail, partition: int) -> int:
        async for batch in tail.backwards(self.agent.output, partition):
            if COORDINATE in batch.schema.names and (highest := pc.max(batch.column(COORDINATE)).as_py()) is not None:
                return int(highest)
        return -1

    async def _decided(self, tail: Tail, partition: int, topic: str | None, floor: int) -> Marks:
        """Records above `floor` that a predecessor has sent to the quarantine: what it decided stays."""
        lane = f"{self.flow}|{self.source}|{partition}"
        # Rows of earlier releases do not say which topic of this name they are of.
        mine = pa.array([lane, f"{lane}|{topic}"])
        found = [np.empty(0, MARK)]
        read = 0
        async for batch in tail.backwards(TOPIC, partition % self._services.partitions[TOPIC]):
            ours = batch.filter(pc.is_in(coordinates.lanes(batch), mine))
            offsets = coordinates.sequence(ours)
            times = ours.column("kafka_timestamp").cast(pa.int64()).to_numpy(zero_copy_only=False) // 1000
            found.append(marks(offsets, times)[offsets > floor])
            read += len(batch)
            if len(found[-1]) < len(offsets) or read > MOST_DECIDED:
                break
        return np.concatenate(found)

    async def _remember(self, tail: Tail, partition: int, step: RememberingStep) -> None:
        step.forget(partition)
        first, end = await tail.bounds(self.agent.output, partition)
        async for batch in tail.batches(self.agent.output, partition, max(first, end - step.horizon), end):
            step.remember(partition, batch)


def marks(offsets: Ints, timestamps: Ints) -> Marks:
    """Records by offset and Kafka's timestamp: a topic that was made anew has the offsets again, at other times."""
    out = np.empty(len(offsets), MARK)
    out["offset"], out["timestamp"] = offsets, timestamps
    return out


def check(
    rules: Sequence[Rule],
    contract: Contract,
    batch: pa.RecordBatch,
    rows: pa.RecordBatch,
    ctx: StepContext,
    where: pa.BooleanArray | None = None,
) -> pa.RecordBatch:
    """The part of `batch` whose `rows` keep all rules; of the others each goes to the quarantine under its first.

    `where` says which rows the rules apply to; the others are kept.
    """
    index = ctx.rows(batch)
    received = ctx.received(batch)
    alive = np.ones(len(batch), np.bool_)
    applies = alive if where is None else where.to_numpy(zero_copy_only=False)
    for rule in rules:
        kept = rule.mask(rows, received)
        if kept.true_count == len(kept):
            continue
        ok = kept.to_numpy(zero_copy_only=False) | ~applies
        broken = alive & ~ok
        if broken.any():
            seen = rule.value(rows.filter(pa.array(broken)))
            ctx.depart(index[broken], "quarantined", rule.name, seen, contract.name)
            alive &= ok
    return batch if alive.all() else batch.filter(pa.array(alive))


def _target(agent: Agent, contracts: ContractSet) -> Contract:
    where = f"agent {agent.name}"
    contract = contracts.by_topic.get(agent.output)
    if contract is None:
        raise ConfigError(f"no contract for its output {agent.output}", where=where, hint="write one")
    spec = contract.find(COORDINATE)
    if spec is None or spec.type != "long" or spec.nullable:
        raise ConfigError(
            f"{contract.path}: an output needs the field {COORDINATE}",
            where=where,
            hint=f'{{"name": "{COORDINATE}", "type": "long"}}',
        )
    return contract


def _check(agent: Agent, target: Contract, memories: Sequence[RememberingStep], services: Services) -> None:
    where = f"agent {agent.name}"
    source = services.contracts.by_topic.get(agent.source)
    if source is not None and any(source.find(name) for name in ("source_index", "stage", "source_topic")):
        raise ConfigError(f"{agent.source} has several rows a record or several sources", where=where)
    for step in memories:
        missing = [name for name in step.columns if target.find(name) is None]
        if missing:
            raise ConfigError(f"its output lacks {', '.join(missing)}, which a step must remember", where=where)
    have, need = services.partitions[agent.output], services.partitions[agent.source]
    if have < need:
        raise ConfigError(
            f"{agent.output} has {have} partitions, {agent.source} has {need}",
            where=where,
            hint=f"give {agent.output} {need} partitions, as docs/operations.md shows under Scaling",
        )


def _set(batch: pa.RecordBatch, name: str, column: pa.Array) -> pa.RecordBatch:
    at = batch.schema.get_field_index(name)
    if at >= 0:
        return batch.set_column(at, name, column)
    if not batch.num_columns:
        return pa.RecordBatch.from_arrays([column], [name])
    return batch.append_column(name, column)


def _shaped(batch: pa.RecordBatch, part: Any, shape: pa.Schema) -> pa.StructArray:
    rows = conform(envelope.row_batch(batch, part), shape)
    return pa.StructArray.from_arrays(
        rows.columns, fields=list(rows.schema), mask=pc.invert(envelope.has_row(batch, part))
    )
