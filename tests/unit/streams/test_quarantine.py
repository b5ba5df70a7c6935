from __future__ import annotations

import numpy as np
import pyarrow as pa

from schemas.codec import Decoder, Encoder
from schemas.contracts import load_contracts
from streams.quarantine import TOPIC, Departure, quarantine_batch, texts
from tests.unit.streams.support import make_chunk


def test_rows_are_in_offset_order_and_whole_only_when_quarantined() -> None:
    chunk = make_chunk([b"v0", b"v1", None, b"v3"])
    departures = [
        Departure(np.array([1, 3]), "quarantined", "rule", texts(["one", "three"], 2), "Reading"),
        Departure(np.array([], np.int64), "dropped", "nobody", texts("", 0)),
        Departure(np.array([0, 2]), "dropped", "other", texts("why", 2)),
    ]
    batch = quarantine_batch("agent:a", chunk, departures, np.array([7, 7, -1, 8]), "id", now=1.5)
    assert batch is not None
    contract = load_contracts([]).by_topic[TOPIC].avro
    rows = Decoder(contract).decode(Encoder(contract, 1).encode(batch)).batch.to_pylist()
    assert [(r["source_offset"], r["disposition"], r["rule"], r["reason"], r["contract"]) for r in rows] == [
        (100, "dropped", "other", "why", None),
        (101, "quarantined", "rule", "one", "Reading"),
        (102, "dropped", "other", "why", None),
        (103, "quarantined", "rule", "three", "Reading"),
    ]
    assert [(r["key"], r["value"], r["schema_id"]) for r in rows] == [
        (None, None, 7),
        (b"k1", b"v1", 7),
        (None, None, None),
        (b"k3", b"v3", 8),
    ]
    assert {(r["stage"], r["source_topic"], r["source_topic_id"], r["source_partition"]) for r in rows} == {
        ("agent:a", "src", "id", 2)
    }
    assert rows[0]["quarantined_at"].timestamp() == 1.5


def test_nothing_left_is_nothing_to_send() -> None:
    assert quarantine_batch("agent:a", make_chunk([b"v"]), [], np.array([1]), None) is None


def test_texts_take_one_text_an_array_or_a_list() -> None:
    assert texts("a", 2).to_pylist() == ["a", "a"]
    assert texts(pa.array([1.5, None]), 2).to_pylist() == ["1.5", "null"]
    assert texts(pa.chunked_array([["a"], ["b"]]), 2).to_pylist() == ["a", "b"]
