"""When a window is final, who is idle, what a restarted merger says again, what may be taken out."""

import pyarrow as pa
import pytest

from schemas.kpis import Kpi
from streams.kpi.changelog import Fold, encode, value_key
from streams.kpi.contributions import Change
from streams.kpi.events import Progress
from streams.kpi.partials import Partial
from streams.kpi.totals import IDLE_SECONDS, KEEP_FINAL_US, Totals

MINUTE = 60_000_000
NOW = 1_000_000.0
KPI = Kpi(name="orders", title="Orders", source="t", measure="count", window="1m", event_time="at", lateness="1m")


def batch(next_offset, watermark, **windows):
    values = {(int(k[1:]) * MINUTE, "{}"): Partial(n, n) for k, n in windows.items()}
    return encode([(KPI, Change(Progress(next=next_offset, watermark=watermark), values))])


def totals(**ends):
    made = Totals([KPI])
    made.ends({("t", int(k[1:])): end for k, end in ends.items()})
    return made


def said(made, now=NOW):
    changed = made.changed(now)
    made.keep(changed)
    return {p.key[0] // MINUTE: (p.value, p.final) for p in changed}


def test_partitions_add_up_at_a_cut():
    made = totals(p0=10, p1=7)
    made.feed("t", 0, *batch(10, 5 * MINUTE, w5=3), NOW)
    made.feed("t", 1, *batch(7, 5 * MINUTE, w5=2, w4=1), NOW)
    (first, second) = made.changed(NOW)
    assert (first.value, second.value) == (1.0, 5.0)
    assert second.cut == '{"t":{"0":10,"1":7}}'
    assert made.changed(NOW) == []


def test_a_value_counts_only_with_the_progress_of_its_batch():
    made = totals(p0=10)
    keys, values = batch(10, 5 * MINUTE, w5=3)
    made.feed("t", 0, keys[:1], values[:1], NOW)
    assert said(made) == {}
    made.feed("t", 0, keys[1:], values[1:], NOW)
    assert said(made) == {5: (3.0, False)}


def test_a_window_is_final_when_the_slowest_partition_has_passed_it():
    made = totals(p0=100, p1=100)
    made.feed("t", 0, *batch(10, 7 * MINUTE, w5=1), NOW)
    made.feed("t", 1, *batch(10, 6 * MINUTE, w5=1), NOW)
    assert said(made) == {5: (2.0, False)}
    made.feed("t", 1, *batch(20, 7 * MINUTE), NOW)
    assert said(made) == {5: (2.0, True)}


def test_idle_partitions_hold_nothing_open_but_those_with_records_to_read_do():
    made = totals(p0=100, p1=10, p2=0)
    made.feed("t", 0, *batch(10, 9 * MINUTE, w5=1), NOW)
    made.feed("t", 1, *batch(10, 5 * MINUTE, w5=1), NOW)
    assert said(made) == {5: (2.0, False)}
    assert said(made, NOW + IDLE_SECONDS + 1) == {5: (2.0, True)}
    behind = totals(p0=100, p1=11)
    behind.feed("t", 0, *batch(10, 9 * MINUTE, w5=1), NOW)
    behind.feed("t", 1, *batch(10, 5 * MINUTE, w5=1), NOW)
    assert said(behind, NOW + IDLE_SECONDS + 1) == {5: (2.0, False)}


def test_a_partition_that_wakes_up_corrects_a_final_value():
    made = totals(p0=10, p1=0)
    made.feed("t", 0, *batch(10, 9 * MINUTE, w5=1), NOW)
    assert said(made) == {5: (1.0, True)}
    made.feed("t", 1, *batch(1, 5 * MINUTE, w5=4), NOW)
    assert said(made) == {5: (5.0, True)}


def test_a_restarted_merger_says_only_what_differs():
    made = totals(p0=10)
    made.recall("orders", (5 * MINUTE, "{}"), 3.0, final=False)
    made.recall("orders", (6 * MINUTE, "{}"), 1.0, final=False)
    made.feed("t", 0, *batch(10, 6 * MINUTE, w5=3, w6=2), NOW)
    assert said(made) == {6: (2.0, False)}


def test_contributions_go_when_nobody_can_need_them_and_do_not_come_back():
    made = totals(p0=10, p1=10)
    made.feed("t", 0, *batch(10, 5 * MINUTE, w5=1), NOW)
    made.feed("t", 1, *batch(10, 5 * MINUTE, w5=1), NOW)
    passed = 7 * MINUTE + KEEP_FINAL_US
    for p in (0, 1):
        made.feed("t", p, *batch(11, passed), NOW)
    assert said(made) == {5: (2.0, True)}
    writer = ("orders", KPI.fingerprint)
    gone = made.expired()
    assert gone == {("t", p): [(writer, (5 * MINUTE, "{}"))] for p in (0, 1)}
    for p in (0, 1):
        keys = pa.array([value_key(writer, (5 * MINUTE, "{}"))], pa.binary())
        made.feed("t", p, keys, pa.nulls(1, pa.binary()), NOW)
    assert said(made) == {}
    # A stale writer brings a part of it back: a part is no total.
    made.feed("t", 0, *batch(10, 5 * MINUTE, w5=1), NOW)
    assert said(made) == {}
    again = totals(p0=11, p1=11)
    again.recall("orders", (5 * MINUTE, "{}"), 2.0, final=True)
    again.recall("orders", (passed - 2 * MINUTE, "{}"), 2.0, final=True)
    again.feed("t", 0, *batch(11, passed, w5=1), NOW)
    assert said(again) == {}
    assert again.expired() == {("t", 0): [(writer, (5 * MINUTE, "{}"))]}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_higher_offset_wins(order):
    fold, batches = Fold(), [batch(10, 5 * MINUTE, w5=1), batch(20, 5 * MINUTE, w5=2)]
    for i in order:
        fold.feed(*batches[i])
    (folded,) = fold.kpis.values()
    assert folded.progress.next == 20
    assert folded.values[5 * MINUTE, "{}"][1].rows == 2
    assert bool(folded.stale) == (order == (1, 0))
