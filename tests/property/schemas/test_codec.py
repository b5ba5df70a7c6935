"""The codec against fastavro, on schemas and data that nobody thought of."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import ContractError
from schemas.codec import ChunkDecoder, Decoder, Encoder, arrow_schema, rule_of
from tests.property.schemas.avro_cases import (
    HEADER,
    Case,
    Guarded,
    Resolution,
    case,
    cases,
    comparable,
    comparable_rows,
    one_leaf,
    one_of_each,
    oracle,
    resolutions,
)

# What the codec refuses and fastavro takes, each on purpose: values that the schema's type does not have (fastavro
# does not look), and claims that cannot be true.
STRICTER = {
    "out of range",
    "invalid boolean",
    "invalid varint",
    "too many digits",
    "negative length",
    "invalid item count",
    "invalid union index",
    "invalid enum index",
}
common = settings(deadline=None, max_examples=int(os.environ.get("HEADRACE_CODEC_EXAMPLES", "40")))


@common
@given(cases())
def test_decodes_as_fastavro_does(made: Case) -> None:
    decoded = Decoder(made.schema).decode(Guarded(made.messages).values)
    decoded.batch.validate(full=True)
    read = oracle(made.schema)
    assert comparable_rows(made.schema, decoded.batch) == [comparable(read(message)) for message in made.messages]
    assert decoded.rows.tolist() == list(range(len(made.messages)))
    assert decoded.bad.tolist() == decoded.reasons == decoded.nulls.tolist() == []


@common
@given(cases())
def test_encodes_the_bytes_that_fastavro_writes(made: Case) -> None:
    batch = Decoder(made.schema).decode(pa.array(made.messages, pa.binary())).batch
    messages = Encoder(made.schema, 7).encode(batch).to_pylist()
    if "decimal" in str(made.schema):
        read = oracle(made.schema)
        assert [comparable(read(m)) for m in messages] == [comparable(read(m)) for m in made.messages]
        assert all(len(ours) <= len(theirs) for ours, theirs in zip(messages, made.messages, strict=True))
    else:
        assert messages == made.messages


@common
@given(cases(), st.data())
def test_encodes_slices(made: Case, data: st.DataObject) -> None:
    batch = Decoder(made.schema).decode(pa.array(made.messages, pa.binary())).batch
    start = data.draw(st.integers(0, len(made.messages)))
    encoder = Encoder(made.schema, 7)
    assert encoder.encode(batch.slice(start)).equals(encoder.encode(batch).slice(start))


@common
@given(cases(max_rows=2))
def test_every_cut_message_is_bad_and_its_neighbours_are_not(made: Case) -> None:
    whole = made.messages[0]
    cuts = [whole[:n] for n in range(len(HEADER), len(whole))]
    decoded = Decoder(made.schema).decode(Guarded([whole, *cuts, whole]).values)
    assert decoded.bad.tolist() == list(range(1, 1 + len(cuts)))
    assert {rule_of(r) for r in decoded.reasons} <= {"truncated", "invalid item count"}
    decoded.batch.validate(full=True)
    assert decoded.batch.slice(0, 1).equals(decoded.batch.slice(1, 1)) or has_nan(decoded.batch)


@settings(deadline=None, max_examples=100)
@given(one_leaf())
def test_no_leaf_is_read_beyond_its_message(made: Case) -> None:
    whole = made.messages[0]
    for n in range(len(HEADER), len(whole)):
        assert Decoder(made.schema).decode(Guarded([whole[:n]]).values).reasons == ["truncated: f0"]


@settings(deadline=None, max_examples=10)
@given(one_of_each())
def test_every_cut_and_every_flipped_bit_of_every_type(made: Case) -> None:
    whole = made.messages[0]
    places = range(len(HEADER), len(whole))
    cuts = Decoder(made.schema).decode(Guarded([whole[:n] for n in places]).values)
    assert {rule_of(r) for r in cuts.reasons} <= {"truncated", "invalid item count"}
    assert len(cuts.rows) == 0
    flips = [whole[:n] + bytes([whole[n] ^ 1 << bit]) + whole[n + 1 :] for n in places for bit in range(8)]
    agree(made.schema, flips)


@common
@given(cases(max_rows=2), st.binary(min_size=1, max_size=20))
def test_trailing_bytes_are_bad(made: Case, more: bytes) -> None:
    decoded = Decoder(made.schema).decode(Guarded([made.messages[0] + more, made.messages[0]]).values)
    assert decoded.rows.tolist() == [1]
    assert decoded.reasons == ["trailing bytes"]


def agree(schema: dict[str, Any], messages: list[bytes]) -> None:
    """What the codec takes fastavro takes, as the same value; what it refuses fastavro refuses, or it is stricter."""
    decoded = Decoder(schema).decode(Guarded(messages).values)
    decoded.batch.validate(full=True)
    assert sorted(decoded.rows.tolist() + decoded.bad.tolist()) == list(range(len(messages)))
    read = oracle(schema)
    for row, index in zip(comparable_rows(schema, decoded.batch), decoded.rows.tolist(), strict=True):
        assert row == comparable(read(messages[index]))
    for reason, index in zip(decoded.reasons, decoded.bad.tolist(), strict=True):
        if rule_of(reason) not in STRICTER:
            with pytest.raises(Exception):  # noqa: B017, PT011 - fastavro raises what it likes
                read(messages[index])


@common
@given(cases(), st.randoms(use_true_random=False))
def test_mutations_never_crash_and_agree_with_fastavro(made: Case, rng: random.Random) -> None:
    messages = []
    for message in made.messages * 5:
        body = bytearray(message)
        for _ in range(rng.randint(1, 3)):
            if len(body) > len(HEADER):
                at = rng.randrange(len(HEADER), len(body))
                action = rng.randrange(4)
                if action == 0:
                    body[at] = rng.randrange(256)
                elif action == 1:
                    body[at] ^= 1 << rng.randrange(8)
                elif action == 2:
                    del body[at]
                else:
                    body[at:at] = rng.choice([b"\xff" * 9 + b"\x01", b"\x80", b"\x01", b"\xfe\xff\xff\xff\x0f", b"\0"])
        messages.append(bytes(body))
    agree(made.schema, messages)


@common
@given(cases(max_rows=1), st.lists(st.binary(max_size=60), min_size=1, max_size=20))
def test_random_bytes_never_crash_and_agree_with_fastavro(made: Case, bodies: list[bytes]) -> None:
    agree(made.schema, [HEADER + body for body in bodies])


@settings(deadline=None, max_examples=25)
@given(cases(max_rows=3), st.integers(0, 2**32))
def test_bad_and_null_rows_leave_no_trace(made: Case, seed: int) -> None:
    rng = np.random.default_rng(seed)
    good = made.messages * 40
    messages: list[bytes | None] = []
    for message in good:
        choice = rng.integers(4)
        if choice == 0:
            messages.append(None)
        elif choice == 1:
            messages.append(message + b"\0")
        messages.append(message)
    decoded = Decoder(made.schema).decode(Guarded(messages).values)
    assert [messages[i] for i in decoded.rows] == good
    assert all(messages[i] is None for i in decoded.nulls)
    clean = Decoder(made.schema).decode(pa.array(good, pa.binary())).batch
    again = Encoder(made.schema, 7)
    assert again.encode(decoded.batch).equals(again.encode(clean))


@common
@given(st.binary(max_size=24))
def test_utf8_is_what_python_says(data: bytes) -> None:
    schema = {"type": "record", "name": "R", "fields": [{"name": "s", "type": "string"}]}
    made = case({"type": "record", "name": "R", "fields": [{"name": "s", "type": "bytes"}]}, [{"s": data}])
    decoded = Decoder(schema).decode(Guarded(made.messages).values)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        assert decoded.reasons == ["invalid utf-8: s"]
    else:
        assert decoded.batch.to_pylist() == [{"s": text}]


@common
@given(st.lists(st.none() | st.binary(max_size=3), max_size=5), st.integers(0, 2))
def test_text_that_the_decoder_would_refuse_is_not_encoded(data: list[bytes | None], start: int) -> None:
    texts = pa.array(data, pa.binary()).view(pa.string()).slice(start)
    bad = [row for row, text in enumerate(data[start:]) if text is not None and not is_utf8(text)]
    keys = texts.drop_null()
    schema = {
        "type": "record",
        "name": "R",
        "fields": [
            {"name": "s", "type": ["null", "string"]},
            {"name": "a", "type": {"type": "array", "items": ["null", "string"]}},
            {"name": "m", "type": {"type": "map", "values": "string"}},
        ],
    }
    one = pa.record_batch(
        {
            "s": texts[:1] if len(texts) else pa.nulls(1, pa.string()),
            "a": pa.ListArray.from_arrays(pa.array([0, len(texts)], pa.int32()), texts),
            "m": pa.MapArray.from_arrays(pa.array([0, len(keys)], pa.int32()), keys, keys),
        }
    )
    encoder = Encoder(schema, 7)
    if bad:
        with pytest.raises(ContractError, match=f"row {bad[0]} has text that is not UTF-8"):
            encoder.encode(one)
    else:
        assert Decoder(schema).decode(encoder.encode(one)).batch.to_pylist() == one.to_pylist()


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@common
@given(resolutions())
def test_reads_under_another_schema_as_fastavro_does(made: Resolution) -> None:
    arrow = arrow_schema(made.reader)
    values = Guarded([*made.messages, made.messages[0] + b"!"]).values
    for decoder in (ChunkDecoder(lambda _: made.writer, arrow), ChunkDecoder(lambda _: made.writer, names=arrow)):
        assert decoder.decode(values.slice(len(made.messages))).reasons == ["trailing bytes"]
        decoded = decoder.decode(values)
        decoded.batch.validate(full=True)
        assert decoded.reasons == ["trailing bytes"]
        assert comparable_rows(made.reader, decoded.batch) == [comparable(row) for row in made.expected]
    assert ChunkDecoder(lambda _: made.writer, arrow).decode(values).batch.schema.equals(arrow)


@common
@given(cases(), cases(), st.randoms(use_true_random=False))
def test_mixed_schemas_give_each_row_what_it_had(one: Case, two: Case, rng: random.Random) -> None:
    chunk = [(1, m) for m in one.messages] + [(2, HEADER[:4] + b"\2" + m[5:]) for m in two.messages]
    rng.shuffle(chunk)
    chunk = [(1, one.messages[0]), *chunk]
    values = pa.array([message for _, message in chunk], pa.binary())
    found = ChunkDecoder({7: one.schema, 2: two.schema}.__getitem__)
    decoded = found.decode(values)
    decoded.batch.validate(full=True)
    assert {rule_of(r) for r in decoded.reasons} <= {"incompatible schema"}
    assert [chunk[i][0] for i in decoded.bad] in ([], [2] * len(two.messages))
    ids = np.array([chunk[i][0] for i in decoded.rows])
    for number, made in ((1, one), (2, two)):
        mine = decoded.batch.filter(pa.array(ids == number))
        messages = [message for i, message in chunk if i == number]
        own = Decoder(made.schema).decode(pa.array(messages, pa.binary())).batch.slice(0, mine.num_rows)
        for field in mine.schema:
            if field.name not in own.schema.names:
                assert mine.column(field.name).null_count == mine.num_rows
            elif own.schema.field(field.name).type == field.type:
                assert mine.column(field.name).to_pylist() == own.column(field.name).to_pylist() or has_nan(own)


def has_nan(batch: pa.RecordBatch) -> bool:
    return "nan" in repr(batch.to_pylist())
