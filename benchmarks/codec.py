"""`python -m benchmarks.codec`: CPU time of decoding and encoding against fastavro with pyarrow, in turns, one core.

Both sides take the same messages to the same columns, and back; that they do is checked before anything is timed.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable
from typing import Any

import fastavro
import pyarrow as pa

from benchmarks.data import changes, order_events, readings
from benchmarks.shapes import ORDER, READING, envelope
from schemas.codec import Decoder, Encoder, warm

PLAIN_SHARE = 20


def fastavro_decode(schema: dict[str, Any], arrow: pa.Schema) -> Callable[[pa.BinaryArray], pa.RecordBatch]:
    parsed = fastavro.parse_schema(schema)

    def decode(values: pa.BinaryArray) -> pa.RecordBatch:
        rows = [fastavro.schemaless_reader(io.BytesIO(value[5:]), parsed, None) for value in values.to_pylist()]
        return pa.RecordBatch.from_pylist(rows, schema=arrow)

    return decode


def fastavro_encode(schema: dict[str, Any]) -> Callable[[pa.RecordBatch], pa.BinaryArray]:
    parsed = fastavro.parse_schema(schema)

    def encode(batch: pa.RecordBatch) -> pa.BinaryArray:
        out = []
        for row in batch.to_pylist():
            body = io.BytesIO()
            body.write(b"\0\0\0\0\1")
            fastavro.schemaless_writer(body, parsed, row)
            out.append(body.getvalue())
        return pa.array(out, pa.binary())

    return encode


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(name: str, schema: dict[str, Any], batch: pa.RecordBatch, rounds: int) -> None:
    decoder, encoder = Decoder(schema), Encoder(schema, 1)
    plain_decode, plain_encode = fastavro_decode(schema, decoder.schema), fastavro_encode(schema)
    messages = encoder.encode(batch)
    few, rows = messages.slice(0, max(1, len(messages) // PLAIN_SHARE)), decoder.decode(messages).batch
    if not plain_decode(few).equals(rows.slice(0, len(few))):
        raise SystemExit(f"{name}: the two sides do not decode the same")
    kinds: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "decode": (lambda: decoder.decode(messages), lambda: plain_decode(few)),
        "encode": (lambda: encoder.encode(rows), lambda: plain_encode(rows.slice(0, len(few)))),
    }
    for kind, (ours, plain) in kinds.items():
        taken = [(cpu_seconds(ours) / len(messages), cpu_seconds(plain) / len(few)) for _ in range(rounds)]
        mine, theirs = (statistics.median(side) * 1e9 for side in zip(*taken, strict=True))
        size = len(messages.buffers()[2]) / len(messages)
        costs = f"{mine:7.0f} ns  {theirs:8.0f} ns  {theirs / mine:6.1f}x  {1e3 / mine:6.2f} M/s"
        print(f"{name:9} {size:4.0f} B  {kind}  {costs}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000, help="messages in a batch")
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    pa.set_cpu_count(1)
    warm()
    print("messages  size  what    headrace  fastavro+pyarrow  cost   headrace, one core")
    compare("reading", READING, next(readings(asked.rows, 0, 1, asked.rows)), asked.rounds)
    compare(
        "change", envelope("orders", ORDER), order_events(next(changes(asked.rows, 0, 1, asked.rows))), asked.rounds
    )


if __name__ == "__main__":
    main()
