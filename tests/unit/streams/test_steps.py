from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from headrace.errors import ConfigError, TerminalError
from streams.agent import run_step
from streams.processor import NotYet
from streams.steps import convert, deduplicate, enrich, known
from tests.unit.streams.support import device_table, make_batch, make_context


def test_convert_knows_its_units() -> None:
    step = convert("t", "[degF]", "Cel")
    out = step(make_batch({"t": [32.0, 212.0, None]}), make_context(3))
    assert out["t"].to_pylist() == pytest.approx([0.0, 100.0, None])
    with pytest.raises(ConfigError, match="a temperature"):
        convert("t", "Cel", "bar")
    with pytest.raises(ConfigError, match="unknown unit"):
        convert("t", "C", "K")


def test_enrich_adds_and_replaces_columns_and_leaves_null_what_is_unknown() -> None:
    table = device_table([{"id": "a", "site": "north", "limit": 4.0}, {"id": "b", "site": None, "limit": 8.0}])
    batch = make_batch({"device": ["b", "x", "a", None], "site": ["old"] * 4})
    out = enrich("devices", "device", {"site": "site", "max": "limit"})(batch, make_context(4, {"devices": table}))
    assert out.column("site").to_pylist() == [None, None, "north", None]
    assert out.column("max").to_pylist() == [8.0, None, 4.0, None]
    assert out.column("source_offset").to_pylist() == [100, 101, 102, 103]


def test_a_lookup_must_be_declared() -> None:
    with pytest.raises(ConfigError, match="no lookup 'devices'"):
        enrich("devices", "device", ["site"])(make_batch({"device": ["a"]}), make_context(1))


def test_known_waits_for_a_fresh_record_and_then_refuses_it() -> None:
    table = device_table([{"id": "a", "site": "s", "limit": 1.0}])
    step = known("devices", "device", "unknown device", patience=0.05)
    batch = make_batch({"device": ["a", "x"]})
    ctx = make_context(2, {"devices": table})
    with pytest.raises(NotYet):
        run_step(step, batch, ctx)
    assert ctx.departures == []
    step.patience = 0.0
    assert run_step(step, batch, ctx).column("device").to_pylist() == ["a"]
    (gone,) = ctx.departures
    assert (gone.rule, gone.disposition, gone.rows.tolist()) == ("unknown device", "quarantined", [1])
    assert gone.reasons.to_pylist() == ["x"]


def test_known_does_not_wait_for_records_that_are_old() -> None:
    step = known("devices", "device", "unknown device", patience=5)
    ctx = make_context(1, {"devices": device_table([])}, age=60)
    assert len(run_step(step, make_batch({"device": ["x"]}), ctx)) == 0


def test_deduplicate_drops_what_was_seen_and_takes_what_is_late() -> None:
    step = deduplicate(["device"], "seq", window=64)
    ctx = make_context(6)
    batch = make_batch({"device": ["a", "a", "b", "a", "a", "a"], "seq": [5, 7, 5, 6, 7, -100]})
    out = run_step(step, batch, ctx)
    assert out.column("seq").to_pylist() == [5, 7, 5, 6]
    assert [(d.rule, d.disposition, d.rows.tolist(), d.reasons.to_pylist()) for d in ctx.departures] == [
        ("duplicate", "dropped", [4], ["seq=7"]),
        ("64 behind", "quarantined", [5], ["seq=-100"]),
    ]
    step.forget(2)
    step.remember(2, pa.RecordBatch.from_pydict({"device": ["a"], "seq": [5]}))
    again = run_step(step, make_batch({"device": ["a", "a"], "seq": [5, 7]}), make_context(2))
    assert again.column("seq").to_pylist() == [7]


def test_deduplicate_tells_keys_of_several_columns_apart() -> None:
    batch = make_batch({"a": ["x", "xy", "x"], "b": ["yz", "z", "yz"], "seq": [1, 1, 1]})
    assert len(run_step(deduplicate(["a", "b"], "seq"), batch, make_context(3))) == 2


def test_what_a_step_swallows_is_recorded_as_dropped_by_it() -> None:
    def only_big(batch: pa.RecordBatch, ctx: object) -> pa.RecordBatch:
        return batch.filter(pc.greater(batch.column("x"), 1))

    ctx = make_context(3)
    assert len(run_step(only_big, make_batch({"x": [1, 2, 3]}), ctx)) == 2
    assert [(d.rule, d.disposition, d.rows.tolist()) for d in ctx.departures] == [("step only_big", "dropped", [0])]


@pytest.mark.parametrize("order", [[1, 0], [0, 0]])
def test_a_step_may_not_reorder_or_multiply_rows(order: list[int]) -> None:
    with pytest.raises(TerminalError, match="reordered or multiplied"):
        run_step(lambda batch, _: batch.take(pa.array(order)), make_batch({"x": [1, 2]}), make_context(2))


def test_a_step_may_not_lose_or_invent_coordinates() -> None:
    with pytest.raises(TerminalError, match="lost the column"):
        run_step(lambda batch, _: batch.select(["x"]), make_batch({"x": [1]}), make_context(1))
    with pytest.raises(TerminalError, match="changed the column"):
        run_step(lambda _, __: make_batch({"x": [1]}, first=500), make_batch({"x": [1]}), make_context(1))


def test_a_step_that_raises_has_sent_nobody_away() -> None:
    def half(batch: pa.RecordBatch, ctx: object) -> pa.RecordBatch:
        context.reject(batch, pa.array([True, False]), "odd")
        raise NotYet("later")

    context = make_context(2)
    with pytest.raises(NotYet):
        run_step(half, make_batch({"x": [1, 2]}), context)
    assert context.departures == []
