from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from headrace.errors import ContractError, UnavailableError
from schemas.codec import ChunkDecoder, Decoder, Encoder, arrow_schema, warm
from tests.unit.schemas.codec_support import ENUM, INSTANT, V1, V2, framed, known, one, record


def test_a_chunk_of_many_schemas_keeps_its_order() -> None:
    chunk = [
        one(1, 10),
        one(2, 11),
        None,
        one(1, 12),
        b"\1xxxxxx",
        b"\0",
        framed(b"", 9),
        one(2, 13)[:-1],
        one(4 - 2, 14),
    ]
    found = ChunkDecoder(known).decode(pa.array(chunk, pa.binary()))
    assert found.batch.to_pylist() == [
        {"id": 10, "text": "t", "more": None},
        {"id": 11, "text": "t", "more": 0.5},
        {"id": 12, "text": "t", "more": None},
        {"id": 14, "text": "t", "more": 0.5},
    ]
    assert found.rows.tolist() == [0, 1, 3, 8]
    assert found.bad.tolist() == [4, 5, 6, 7]
    assert found.reasons == ["not framed", "not framed", "unknown schema id: 9", "truncated: text"]
    assert found.nulls.tolist() == [2]
    assert found.schema_ids.tolist() == [1, 2, -1, 1, -1, -1, 9, 2, 2]


def test_slices_and_empty_chunks() -> None:
    decoder = ChunkDecoder(known)
    values = pa.array([b"junk", None, one(1, 1), one(1, 2)], pa.binary())
    assert decoder.decode(values.slice(1, 2)).batch.to_pylist() == [{"id": 1, "text": "t"}]
    assert decoder.decode(values.slice(1, 2)).nulls.tolist() == [0]
    empty = decoder.decode(values.slice(0, 0))
    assert empty.batch.num_rows == 0
    assert empty.batch.schema == arrow_schema(V1)
    tombstones = ChunkDecoder(known).decode(pa.array([None, None], pa.binary()))
    assert tombstones.nulls.tolist() == [0, 1]
    assert tombstones.batch.num_rows == 0


def test_the_schema_of_a_topic_only_grows_and_what_does_not_fit_is_bad() -> None:
    decoder = ChunkDecoder(known)
    decoder.decode(pa.array([one(2, 1)], pa.binary()))
    found = decoder.decode(pa.array([one(1, 2), one(3, 3)], pa.binary()))
    assert found.batch.to_pylist() == [{"id": 2, "more": None, "text": "t"}]
    assert found.reasons == ["incompatible schema: 3, id int64 and string have no type in common"]


def test_a_recursive_schema_makes_its_records_bad_alone() -> None:
    found = ChunkDecoder(known).decode(pa.array([framed(b"\0", 4), one(1, 2)], pa.binary()))
    assert found.rows.tolist() == [1]
    assert found.reasons == ["unsupported schema: 4, x R contains itself: recursive types have no columns"]


def test_a_registry_that_is_away_fails_the_chunk_not_the_records() -> None:
    def away(schema_id: int) -> dict[str, Any]:
        raise UnavailableError("away")

    with pytest.raises(UnavailableError):
        ChunkDecoder(away).decode(pa.array([framed(b"")], pa.binary()))


def test_an_id_is_asked_for_in_every_chunk_and_may_change() -> None:
    asked = []

    def of(schema_id: int) -> dict[str, Any]:
        asked.append(schema_id)
        return V1 if len(asked) < 3 else record(("id", "int"), ("text", "bytes"))

    decoder = ChunkDecoder(of)
    for _ in range(3):
        found = decoder.decode(pa.array([one(1, 5), one(1, 6)], pa.binary()))
    assert asked == [1, 1, 1]
    assert found.batch.schema.field("text").type == pa.binary()


def test_reads_as_the_readers_schema() -> None:
    reader = arrow_schema(
        {
            "type": "record",
            "name": "R",
            "fields": [
                {"name": "text", "type": "string"},
                {"name": "more", "type": "double"},
                {"name": "id", "type": "double"},
                {"name": "new", "type": ["null", "long"], "default": None},
                {"name": "kind", "type": "string", "default": "k"},
            ],
        }
    )
    nothing = Encoder(V2, 2).encode(pa.RecordBatch.from_pydict({"id": [2], "more": [None], "text": ["t"]}))[0].as_py()
    found = ChunkDecoder(known, reader).decode(pa.array([one(2, 1), nothing, one(1, 3), one(3, 4)], pa.binary()))
    assert found.batch.schema.equals(reader)
    assert found.batch.to_pylist() == [{"text": "t", "more": 0.5, "id": 1.0, "new": None, "kind": "k"}]
    assert found.reasons == [
        "null where required: more",
        "incompatible schema: 1, more is missing and has no default",
        "incompatible schema: 3, text is missing and has no default",
    ]


def test_nested_fields_resolve_by_name() -> None:
    inner = record(("a", "int"), ("b", {"type": "map", "values": "int"}), name="I")
    writer = record(("many", {"type": "array", "items": inner}), ("opt", ["null", "I"]))
    wider = record(("b", {"type": "map", "values": "long"}), ("c", ["null", "string"]), ("a", "long"), name="I")
    reader = arrow_schema(record(("opt", ["null", wider]), ("many", {"type": "array", "items": "I"})))
    rows = [{"many": [{"a": 1, "b": {"k": 2}}], "opt": None}, {"many": [], "opt": {"a": 3, "b": {}}}]
    batch = pa.RecordBatch.from_pylist(rows, schema=arrow_schema(writer))
    decoder = ChunkDecoder(lambda _: writer, reader)
    assert decoder.decode(Encoder(writer, 1).encode(batch)).batch.to_pylist() == [
        {"opt": None, "many": [{"b": [("k", 2)], "c": None, "a": 1}]},
        {"opt": {"b": [], "c": None, "a": 3}, "many": []},
    ]


ATTACKS: list[tuple[Any, bytes, str]] = [
    ("string", b"\x01", "negative length"),
    ("string", b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01", "truncated"),
    ("string", b"\xff" * 9 + b"\x01", "negative length"),
    ("bytes", b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", "invalid varint"),
    ("long", b"\xff" * 9, "truncated"),
    ("int", b"\x80\x80\x80\x80\x20", "out of range"),
    ("boolean", b"\x02", "invalid boolean"),
    (["null", "int"], b"\x04", "invalid union index"),
    (["null", "int"], b"\x01", "invalid union index"),
    (["null", "int", "string"], b"\x06", "invalid union index"),
    (ENUM, b"\x02", "invalid enum index"),
    (ENUM, b"\x01", "invalid enum index"),
    ({"type": "array", "items": "int"}, b"\x10\x02", "invalid item count"),
    ({"type": "array", "items": "double"}, b"\x04" + b"\0" * 9, "invalid item count"),
    ({"type": "map", "values": "null"}, b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01\0", "invalid item count"),
    ({"type": "array", "items": "int"}, b"\xff" * 9 + b"\x01" + b"\0\0", "invalid item count"),
    ({"type": "array", "items": "int"}, b"\x01", "truncated"),
    ({"type": "bytes", "logicalType": "decimal", "precision": 4}, b"\x06\x01\x00\x00", "too many digits"),
    ({"type": "bytes", "logicalType": "decimal", "precision": 38}, b"\x20\x80" + bytes(15), "too many digits"),
]


@pytest.mark.parametrize(("type_", "body", "reason"), ATTACKS)
def test_lies_in_a_message_are_found(type_: Any, body: bytes, reason: str) -> None:
    found = Decoder(record(("f", type_))).decode(pa.array([framed(body)], pa.binary()))
    assert found.reasons == [f"{reason}: f"]


def test_blocks_with_sizes_and_several_blocks_are_read() -> None:
    body = b"\x03\x04\x02\x04" + b"\x02\x06" + b"\0"
    found = Decoder(record(("f", {"type": "array", "items": "int"}))).decode(pa.array([framed(body)] * 2, pa.binary()))
    assert found.batch.to_pylist() == [{"f": [1, 2, 3]}] * 2


def test_many_items_make_room_for_themselves() -> None:
    schema = record(("f", {"type": "array", "items": {"type": "map", "values": "string"}}))
    rows = [{"f": [[(f"k{i}", "v" * i) for i in range(n % 7)]] * n} for n in (0, 500, 3, 2000, 1)]
    batch = pa.RecordBatch.from_pylist(rows, schema=arrow_schema(schema))
    messages = Encoder(schema, 1).encode(batch).to_pylist()
    messages.insert(2, messages[1] + b"\0")
    found = Decoder(schema).decode(pa.array(messages, pa.binary()))
    assert found.batch.equals(batch)
    assert found.reasons == ["trailing bytes"]


WIDE = {"type": "fixed", "name": "Wide", "size": 60_000}


def test_what_messages_take_has_an_end_that_each_one_s_size_says() -> None:
    schema = record(("f", {"type": "array", "items": ["null", WIDE]}))
    null, nulls, full = b"\x02\0\0", b"\x04\0\0\0", b"\x08" + (b"\x02" + bytes(60_000)) * 4 + b"\0"
    found = Decoder(schema).decode(pa.array([framed(body) for body in (null, nulls, full, null)], pa.binary()))
    assert found.rows.tolist() == [0, 2, 3]
    assert found.reasons == ["too large: f"]
    # In room that another message has made, and in several blocks, it is refused too.
    blocks = b"\x02\0\x02\0\0"
    again = Decoder(schema).decode(pa.array([framed(full), *[framed(blocks)] * 500, framed(full)], pa.binary()))
    assert again.rows.tolist() == [0, 501]


def test_a_row_takes_what_its_message_s_size_allows() -> None:
    schema = record(("f", ["null", {**WIDE, "size": 1 << 20}]))
    full = framed(b"\x02" + bytes(1 << 20))
    found = Decoder(schema).decode(pa.array([framed(b"\0"), full, b"", *[framed(b"\0")] * 100_000], pa.binary()))
    assert found.rows.tolist() == [1]
    assert found.bad.tolist() == [0, *range(2, 100_003)]
    assert set(found.reasons) == {"too large"}


def test_a_key_schema_may_be_a_primitive() -> None:
    found = Decoder("string").decode(pa.array([framed(b"\x02k")], pa.binary()))
    assert found.batch.to_pylist() == [{"value": "k"}]


@pytest.mark.parametrize(
    ("type_", "values", "words"),
    [
        ("int", pa.array([1, None]), "f: null in row 1"),
        ("int", pa.array([1, 2**40]), "f: int64 does not convert to int32 without loss"),
        ("int", pa.array(["1"]), "f: string is not int32"),
        (ENUM, pa.array(["A", "B"]), "f: row 1 has none of the enum's symbols"),
        (INSTANT, pa.array([2**62], pa.timestamp("us", "UTC")), "out of range"),
        (INSTANT, pa.array([1], pa.timestamp("us")), "f: timestamp"),
        (record(("x", "int"), name="I"), pa.array([{"x": None}]), "f.x: null in row 0"),
        (["int", "string"], pa.array([{"int": 1, "string": "x"}]), "f: row 0 sets not exactly one branch"),
    ],
)  # fmt: skip
def test_batches_that_do_not_fit_are_refused(type_: Any, values: pa.Array, words: str) -> None:
    with pytest.raises(ContractError, match=words):
        Encoder(record(("f", type_)), 1).encode(pa.RecordBatch.from_arrays([values], ["f"]))


def test_batches_are_taken_by_name_and_converted_without_loss() -> None:
    schema = {
        "type": "record",
        "name": "R",
        "fields": [
            {"name": "a", "type": "long"},
            {"name": "b", "type": ["null", "string"], "default": None},
            {"name": "c", "type": "string", "default": "c"},
            {"name": "t", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        ],
    }
    batch = pa.RecordBatch.from_pydict(
        {
            "extra": [1, 2],
            "t": pa.array([1_999, -1], pa.timestamp("us", "UTC")),
            "b": pa.array(["x", None]).dictionary_encode(),
            "a": pa.array([1, 2], pa.int8()),
        }
    )
    found = Decoder(schema).decode(Encoder(schema, 1).encode(batch)).batch
    assert found.column("a").to_pylist() == [1, 2]
    assert found.column("b").to_pylist() == ["x", None]
    assert found.column("c").to_pylist() == ["c", "c"]
    assert found.column("t").cast(pa.int64()).to_pylist() == [1_000, -1_000]


def test_a_null_struct_hides_what_its_children_hold() -> None:
    inner = pa.StructArray.from_arrays(
        [pa.array([1, None]), pa.array([[1], None], pa.list_(pa.int32()))], ["x", "y"], mask=pa.array([False, True])
    )
    schema = record(("f", ["null", record(("x", "int"), ("y", {"type": "array", "items": "int"}), name="I")]))
    messages = Encoder(schema, 1).encode(pa.RecordBatch.from_arrays([inner], ["f"]))
    assert Decoder(schema).decode(messages).batch.to_pylist() == [{"f": {"x": 1, "y": [1]}}, {"f": None}]


def test_warm_runs() -> None:
    warm()


def changes_of(*fields: dict[str, Any]) -> dict[str, Any]:
    row = {"type": "record", "name": "Value", "fields": list(fields)}
    return record(
        ("before", ["null", row]), ("after", ["null", "Value"]), ("source", record(name="Source")), ("op", "string")
    )


def test_rows_of_changes_have_the_columns_that_are_used() -> None:
    number, text = ({"name": "n", "type": ["null", kind]} for kind in ("int", "string"))
    later = {"name": "later", "type": "long", "default": 7}
    schemas = {1: changes_of(number), 2: changes_of(text), 3: changes_of(later)}

    def message(schema_id: int, after: Any) -> bytes:
        said = {"before": None, "after": after, "source": {}, "op": "c"}
        batch = pa.RecordBatch.from_pylist([said], schema=arrow_schema(schemas[schema_id]))
        out: bytes = Encoder(schemas[schema_id], schema_id).encode(batch)[0].as_py()
        return out

    values = pa.array([message(1, {"n": 5}), message(2, {"n": "five"}), message(1, None)], pa.binary())
    decoder = ChunkDecoder(schemas.__getitem__, used=("later",))
    assert decoder.unknown == ("later",)
    found = decoder.decode(values).batch
    assert found.column("after").to_pylist() == [{"later": None}, {"later": None}, None]
    assert found.column("op").to_pylist() == ["c"] * 3
    assert decoder.learn([3])
    assert decoder.unknown == ()
    assert decoder.decode(values).batch.column("after").to_pylist() == [{"later": 7}, {"later": 7}, None]
    nothing = ChunkDecoder(schemas.__getitem__, used=()).decode(values).batch
    assert nothing.column("after").is_valid().to_pylist() == [True, True, False]
    assert len(nothing.column("after").flatten()) == 1, "rows of which nothing is used can be counted"
    fits = ChunkDecoder(schemas.__getitem__, used=("n",)).decode(values)
    assert fits.reasons == ["incompatible schema: 2, before.n int32 and string have no type in common"]


@pytest.mark.parametrize(("ids", "found"), [([1, 99], True), ([99, 1], True), ([99], False), ([], False)])
@pytest.mark.parametrize("used", [(), ("nowhere",)])
def test_schemas_that_are_not_known_are_passed_over_when_others_are_learned(
    used: tuple[str, ...], ids: list[int], found: bool
) -> None:
    decoder = ChunkDecoder(known, used=used)
    assert decoder.learn(ids) is found
    assert (decoder.schema is not None) is found


def test_no_more_schemas_are_learned_than_the_columns_need() -> None:
    ids = iter([1, 2, 3])
    assert ChunkDecoder(known, used=("more",)).learn(ids)
    assert list(ids) == [3]


def test_other_records_keep_their_fields_and_have_those_that_are_used() -> None:
    decoder = ChunkDecoder(known, used=("more",))
    first, second = (decoder.decode(pa.array([one(n, 1)], pa.binary())).batch.to_pylist() for n in (1, 2))
    assert first == [{"id": 1, "text": "t", "more": None}]
    assert second == [{"id": 1, "text": "t", "more": 0.5}]
