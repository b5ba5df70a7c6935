"""The smaller parts: plan, schema merging, reader, quarantine rows, the metadata cache and the names it relies on."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.serializers import FromInputFile
from pyiceberg.table import Transaction
from pyiceberg.table.update import update_table_metadata
from pyiceberg.table.update.snapshot import _MergeAppendFiles
from pyiceberg.types import LongType

from headrace.config import LakeSettings
from headrace.errors import ConfigError, FencedError, TerminalError
from headrace.kafka import Chunk
from headrace.keyindex import hash_keys
from schemas.codec import Encoder
from schemas.contracts import ContractSet, load_contracts
from sinks.iceberg.catalog import open_catalog
from sinks.iceberg.commit import Change, TableCommitter
from sinks.iceberg.evolve import Refused, merge
from sinks.iceberg.metadata_cache import WRITTEN_FOR, CachedSqlCatalog, CachedTransaction, transaction
from sinks.iceberg.plan import plan, shared
from sinks.iceberg.quarantine import quarantine_rows
from sinks.iceberg.reader import TopicReader
from sinks.iceberg.slices import Reject
from tests.unit.sinks.iceberg.support import catalog_in, slice_of


def contracts(folder: Path, *avro: dict[str, Any]) -> ContractSet:
    place = folder / "schemas" / "contracts"
    place.mkdir(parents=True)
    for contract in avro:
        fields = contract.get("fields", [{"name": "id", "type": "long"}])
        whole = {"type": "record", "owner": "o", "key": ["id"], **contract, "fields": fields}
        (place / f"{contract['name']}.avsc").write_text(json.dumps(whole))
    return load_contracts([folder])


def test_which_topics_land_where(tmp_path: Path):
    known = contracts(
        tmp_path,
        {"name": "Reading", "topic": "telemetry.readings"},
        {
            "name": "Clean",
            "topic": "clean.readings",
            "derived_from": ["telemetry.readings"],
            "storage": {"table": "silver.readings"},
        },
        {"name": "Line", "topic": "shop.public.lines", "storage": {"partition": ["day(at)"]}},
        {"name": "Passing", "topic": "passing", "derived_from": ["telemetry.readings"]},
        {"name": "Order", "topic": "shop.public.orders", "storage": {"table": "silver.orders", "mode": "current"}},
    )
    topics = ["telemetry.readings", "clean.readings", "passing", "unknown", "kpi.values", "ops.quarantine"]
    topics += ["shop.public.orders", "shop.public.lines", "shop.public.audit", "shop.transaction"]
    topics += ["__debezium-heartbeat.shop", "shopping.a.b"]
    found = plan(topics, known, ["shop"], [r"shop\.public\.audit"])
    assert {t: [(at.table, at.kind) for at in landings] for t, landings in found.items()} == {
        "telemetry.readings": [("bronze.telemetry_readings", "bronze")],
        "clean.readings": [("silver.readings", "derived")],
        "kpi.values": [("gold.kpi_values", "upsert")],
        "ops.quarantine": [("ops.quarantine", "derived")],
        "shop.public.orders": [("bronze.shop_public_orders", "bronze"), ("silver.orders", "current")],
        "shop.public.lines": [("bronze.shop_public_lines", "bronze"), ("silver.shop_public_lines", "current")],
    }
    both = plan(["shop.a.b_c", "shop.a.b.c", "shop.a.d"], known, ["shop"])
    tables = ["bronze.shop_a_b_c", "silver.shop_a_b_c"]
    assert shared(both) == {table: ["shop.a.b.c", "shop.a.b_c"] for table in tables}
    with pytest.raises(ConfigError, match="regular expression"):
        plan([], known, [], ["("])


@pytest.mark.parametrize(
    ("have", "come", "merged"),
    [
        (pa.int32(), pa.int64(), pa.int64()),
        (pa.int64(), pa.int32(), pa.int64()),
        (pa.float32(), pa.float64(), pa.float64()),
        (pa.decimal128(10, 2), pa.decimal128(12, 2), pa.decimal128(12, 2)),
        (pa.list_(pa.int32()), pa.list_(pa.int64()), pa.list_(pa.int64())),
        (pa.string(), pa.null(), pa.string()),
        (pa.int64(), pa.string(), None),
        (pa.decimal128(10, 2), pa.decimal128(10, 3), None),
        (pa.int64(), pa.float64(), None),
        (pa.date32(), pa.timestamp("us"), None),
        (pa.struct([("a", pa.int32())]), pa.string(), None),
    ],
)
def test_types_only_widen(have, come, merged):
    def nested(kind):
        return pa.schema([("s", pa.struct([("x", kind), ("y", pa.int32())]))])

    if merged is None:
        with pytest.raises(Refused, match=r"s\.x is"):
            merge(nested(have), nested(come))
    else:
        assert merge(nested(have), nested(come)).field("s").type.field("x").type == merged


def test_equal_keys_hash_equally_whatever_their_width():
    def same(*arrays: pa.Array) -> bool:
        return len({(int(k.high[0]), int(k.low[0])) for k in (hash_keys([a]) for a in arrays)}) == 1

    assert same(pa.array([5], pa.int32()), pa.array([5], pa.int64()), pa.array([9, 5], pa.int64()).slice(1))
    assert same(pa.array([-0.0], pa.float32()), pa.array([0.0], pa.float64()))
    assert same(pa.array([5], pa.decimal128(5, 0)), pa.array([5], pa.decimal128(20, 0)))
    assert same(pa.array(["ab"]), pa.array(["x", "ab"]).slice(1), pa.chunked_array([["ab"]]))
    assert same(pa.array([None], pa.string()), pa.array([None, "x"], pa.string()))
    assert not same(pa.array([None], pa.string()), pa.array([""]))
    assert not same(pa.array(["a"]), pa.array(["a\0"]))
    two = hash_keys([pa.array(["ab", "a"]), pa.array(["c", "bc"])])
    assert two.high[0] != two.high[1]
    with pytest.raises(TerminalError, match="key"):
        hash_keys([pa.array([[1]])])


VALUE = {"type": "record", "name": "V", "fields": [{"name": "v", "type": "long"}]}
KEY_A = {"type": "record", "name": "K", "fields": [{"name": "a", "type": "long"}]}
KEY_AB = {"type": "record", "name": "K", "fields": [{"name": "a", "type": "long"}, {"name": "b", "type": "long"}]}


def test_a_chunk_is_cut_where_its_key_changes():
    schemas = {1: VALUE, 2: KEY_A, 3: KEY_AB, 4: {"type": "string"}}
    row = pa.RecordBatch.from_pydict({"a": [1], "b": [2], "v": [3]})
    a, ab = Encoder(KEY_A, 2).encode(row)[0].as_py(), Encoder(KEY_AB, 3).encode(row)[0].as_py()
    value = Encoder(VALUE, 1).encode(row)[0].as_py()

    def read(keys: list[bytes | None]) -> list[tuple[int, int, tuple[str, ...] | None]]:
        n = len(keys)
        chunk = Chunk(
            "t", 0, pa.array(keys, pa.binary()), pa.array([value] * n), np.arange(10, 10 + n), np.zeros(n, int), 20
        )
        reader = TopicReader(schemas.__getitem__, changes_of="t")
        return [(s.start, s.next_offset, s.key_fields) for s in reader.read(chunk, 9)]

    assert read([a, None, a]) == [(9, 11, ("a",)), (11, 12, ()), (12, 20, ("a",))]
    assert read([None, None]) == [(9, 20, ())]
    assert read([a, ab, ab]) == [(9, 11, ("a",)), (11, 20, ("a", "b"))]
    assert read([b"json"]) == [(9, 20, None)]
    assert read([b"\0\0\0\0\x04x"]) == [(9, 20, None)]


def test_rejects_are_whole_and_in_offset_order():
    part = slice_of([{"x": 1}] * 4, 10, schema=pa.schema([("x", pa.int64())]))
    rejects = [
        Reject(part, np.array([1, 3]), "bronze", "a", ("r1", "r3")),
        Reject(part, np.array([0]), "bronze", "b", ("r0",)),
    ]
    rows = quarantine_rows(rejects, "id", 1.5).to_pylist()
    assert [(r["source_offset"], r["rule"], r["reason"], r["key"]) for r in rows] == [
        (10, "b", "r0", b"k0"),
        (11, "a", "r1", b"k1"),
        (13, "a", "r3", b"k3"),
    ]
    assert {(r["schema_id"], r["source_topic_id"]) for r in rows} == {(None, "id")}


def test_the_installed_pyiceberg_is_the_one_this_was_written_for():
    """Private names that are relied on; with another release, read what they do now before raising the pin."""
    assert version("pyiceberg") == WRITTEN_FOR
    assert isinstance(Transaction.table_metadata, property)
    assert Transaction.table_metadata.fget.__code__.co_names == (
        "update_table_metadata",
        "_table",
        "metadata",
        "_updates",
    )
    assert {"_apply_table_update", "_TableMetadataUpdateContext"} <= set(update_table_metadata.__code__.co_names)
    assert {"load_table", "_update_and_stage_table", "_write_metadata"} <= set(
        SqlCatalog.commit_table.__code__.co_names
    )
    assert "_convert_orm_to_iceberg" in SqlCatalog.load_table.__code__.co_names
    for name in ("_existing_manifests", "_manifests", "_summary", "_commit", "new_manifest_writer", "commit"):
        assert callable(getattr(_MergeAppendFiles, name))
    assert "_snapshot_producers" in Transaction.commit_transaction.__code__.co_names


def test_metadata_is_computed_once_per_change(tmp_path: Path):
    catalog = catalog_in(tmp_path)
    catalog.create_namespace("d")
    table = catalog.create_table("d.t", pa.schema([("a", pa.int64())]))
    staged = CachedTransaction(table)
    assert staged.table_metadata is table.metadata
    staged.set_properties({"a": "1"})
    first = staged.table_metadata
    assert first is staged.table_metadata
    staged.set_properties({"b": "2"})
    assert staged.table_metadata.properties == {"a": "1", "b": "2"}
    assert first.properties == {"a": "1"}


def test_a_type_of_catalog_may_be_named(tmp_path: Path):
    settings = LakeSettings(uri=f"sqlite:///{tmp_path}/c.db", warehouse=str(tmp_path), properties={"type": "sql"})
    assert type(open_catalog(settings)) is SqlCatalog


def test_a_catalog_knows_what_it_wrote_and_reads_what_others_did(tmp_path: Path):
    mine, other = catalog_in(tmp_path), catalog_in(tmp_path)
    assert isinstance(mine, CachedSqlCatalog)
    mine.create_namespace("d")
    table = mine.create_table("d.t", pa.schema([("a", pa.int64())]))
    for number in range(3):
        before = table.metadata
        staged = transaction(table)
        staged.set_properties({"a": str(number)})
        table = staged.commit_transaction()
        assert before.properties == ({"a": str(number - 1)} if number else {})
        assert table.metadata.last_updated_ms >= before.last_updated_ms
        assert len(table.metadata.metadata_log) == number + 1
        with patch.object(FromInputFile, "table_metadata", side_effect=AssertionError("it is read")):
            assert mine.load_table("d.t").metadata is table.metadata
        assert other.load_table("d.t").metadata == table.metadata
    stale = transaction(table)
    stale.update_schema().add_column("mine", LongType()).commit()
    other.load_table("d.t").update_schema().add_column("theirs", LongType()).commit()
    assert mine.load_table("d.t").schema().column_names == ["a", "theirs"]
    with pytest.raises(CommitFailedException):
        stale.commit_transaction()


def test_a_change_is_refused_when_the_schema_moved_under_its_files(tmp_path: Path):
    catalog = catalog_in(tmp_path)
    catalog.create_namespace("d")
    table = catalog.create_table("d.t", pa.schema([("a", pa.int64())]))
    change = Change({}, {}, columns=pa.schema([("a", pa.int64()), ("b", pa.int64())]), schema=table.schema())
    with pytest.raises(FencedError, match="schema"):
        TableCommitter(table).commit(change)
