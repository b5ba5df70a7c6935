"""Mutated messages by the thousand, or by the million: no crash, no hang, no byte read that is not the message's.

`HEADRACE_FUZZ_MESSAGES=10000000 pytest tests/property/schemas/test_codec_fuzz.py` is the long form.
"""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.errors import ContractError
from schemas.codec import Decoder, Encoder
from tests.property.schemas.avro_cases import HEADER, Case, Guarded, cases
from tests.property.schemas.test_codec import agree

MESSAGES = int(os.environ.get("HEADRACE_FUZZ_MESSAGES", "100000"))
A_CASE = min(20_000, MESSAGES // 10)
COMPARED = 10
HEADER_SIZE = len(HEADER)

# The ends of the number line and lengths that nobody has, as varints.
NASTY = [b"\xff" * 9 + b"\x01", b"\xfe" + b"\xff" * 8 + b"\x01", b"\xfe\xff\xff\xff\x0f", b"\x80" * 10, b"\xff" * 10]


def mutated(messages: list[bytes], count: int, random: np.random.Generator) -> list[bytes]:
    """`count` messages, each one of the given with bytes overwritten, and some of them cut or prolonged."""
    source = np.frombuffer(b"".join(messages), np.uint8)
    sizes = np.array([len(m) for m in messages])
    starts = np.cumsum(sizes) - sizes
    chosen = random.integers(0, len(messages), count)
    room = int(sizes.max()) + 10
    data = source[np.minimum(starts[chosen, None] + np.arange(room), len(source) - 1)]
    lengths = sizes[chosen]
    rows = np.arange(count)
    for _ in range(int(random.integers(1, 4))):
        place = HEADER_SIZE + (random.random(count) * np.maximum(lengths - HEADER_SIZE, 1)).astype(np.int64)
        data[rows, np.minimum(place, room - 1)] ^= _some(random, count)
    nasty = np.flatnonzero(random.random(count) < 0.2)
    for row in nasty.tolist():
        pattern = NASTY[int(random.integers(len(NASTY)))]
        place = int(random.integers(HEADER_SIZE, room - len(pattern) + 1))
        data[row, place : place + len(pattern)] = np.frombuffer(pattern, np.uint8)
    change = random.random(count)
    lengths = np.where(change < 0.2, HEADER_SIZE + (random.random(count) * (lengths - HEADER_SIZE)), lengths)
    lengths = np.where(change > 0.8, np.minimum(room, lengths + random.integers(1, 10, count)), lengths).astype(int)
    return [data[row, :length].tobytes() for row, length in zip(rows, lengths.tolist(), strict=True)]


def _some(random: np.random.Generator, count: int) -> npt.NDArray[np.uint8]:
    """Bytes to change others by: single bits half of the time."""
    bits = np.uint8(1) << random.integers(0, 8, count).astype(np.uint8)
    return np.where(random.random(count) < 0.5, bits, random.integers(1, 256, count).astype(np.uint8)).astype(np.uint8)


@pytest.mark.timeout(7200)
@settings(deadline=None, max_examples=-(-MESSAGES // A_CASE), suppress_health_check=[HealthCheck.too_slow])
@given(cases(), st.integers(0, 2**32))
def test_mutated_messages(made: Case, seed: int) -> None:
    messages = mutated(made.messages, A_CASE, np.random.default_rng(seed))
    decoded = Decoder(made.schema).decode(Guarded(messages).values)
    decoded.batch.validate(full=True)
    assert sorted([*decoded.rows.tolist(), *decoded.bad.tolist()]) == list(range(len(messages)))
    assert len(decoded.reasons) == len(decoded.bad)
    # What was taken is written, read and written again as the same bytes.
    encoder = Encoder(made.schema, 7)
    try:
        written = encoder.encode(decoded.batch)
    except ContractError:
        # Rounded down, the first nanoseconds of all are a microsecond that begins before them.
        assert "nanos" in str(made.schema)
    else:
        again = Decoder(made.schema).decode(Guarded(written.to_pylist()).values)
        assert len(again.bad) == 0
        assert encoder.encode(again.batch).equals(written)
    agree(made.schema, messages[:COMPARED])
