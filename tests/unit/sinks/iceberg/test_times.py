"""Times that no reader of the lake could read do not stop a table."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog

from sinks.iceberg.append import AppendTable
from sinks.iceberg.current import CurrentTable
from sinks.iceberg.history import HistoryTable
from sinks.iceberg.quarantine import quarantine_rows
from sinks.iceberg.slices import Reject
from tests.unit.sinks.iceberg.history_support import event, timed
from tests.unit.sinks.iceberg.support import SOURCE, TOPIC, change, land, opened, rows_of, slice_of, thing

FIRST = datetime(1, 1, 1, tzinfo=UTC)
LAST = datetime(9999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC)
WILD = [1_700_000_000_000_000, np.iinfo(np.int64).max, np.iinfo(np.int64).min, -1, -62_135_596_800_000]
READ = [LAST, LAST, FIRST, datetime(1969, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC), FIRST]


@pytest.mark.parametrize("kind", [CurrentTable, AppendTable])
def test_a_records_time_beyond_what_can_be_read_is_the_nearer_end(
    catalog: Catalog, kind: type[CurrentTable | AppendTable]
) -> None:
    table = opened(kind(catalog, "lake.things", TOPIC))
    read = slice_of([change("c", thing(number), number) for number in range(1, 6)])
    land(table, replace(read, timestamps=np.array(WILD)))
    assert rows_of(table, "_offset", "_timestamp") == list(enumerate(READ))


def test_so_it_is_in_the_quarantine_and_of_a_baseline(catalog: Catalog) -> None:
    read = replace(slice_of([change("c", thing(n), n) for n in range(1, 6)]), timestamps=np.array(WILD))
    reject = Reject(read, np.arange(5), "current", "op", ("",) * 5)
    assert quarantine_rows([reject], "to/pic", 0.0).column("kafka_timestamp").to_pylist() == READ
    history = opened(HistoryTable(catalog, "silver.things_history", TOPIC, of="silver.things"))
    land(history, slice_of([event("c", 1, "a", 10)], schema=timed()))
    baseline = slice_of([None], 1, schema=timed(), baseline=1)
    land(history, replace(baseline, baseline_time=WILD[0]))
    assert rows_of(history, "id", "valid_to") == [(1, LAST)]


@pytest.mark.parametrize("name", ["ts_us", "ts_ms"])
@pytest.mark.parametrize("time", [2**62, -(2**62), np.iinfo(np.int64).max, 1_700_000_000_000_000_000])
def test_a_version_cannot_begin_when_no_reader_could_tell(catalog: Catalog, name: str, time: int) -> None:
    """Nor at a time that is another once it is in µs."""
    source = pa.struct([*SOURCE, ("ts_us", pa.int64()), ("ts_ms", pa.int64())])
    schema = pa.schema([f.with_type(source) if f.name == "source" else f for f in timed()])
    history = opened(HistoryTable(catalog, "silver.things_history", TOPIC, of="silver.things"))
    made = [event("c", 1, "a", 10), event("c", 2, "b", 20), event("u", 1, "c", 30)]
    made[1]["source"] |= {"ts_us": None, "ts_ms": 20_000, name: time}
    (reject,) = land(history, slice_of(made, schema=schema)).rejects
    assert (reject.rule, reject.rows.tolist()) == ("time", [1])
    assert rows_of(history, "id", "name") == [(1, "a"), (1, "c")]
