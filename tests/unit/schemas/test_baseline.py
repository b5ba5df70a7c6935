from __future__ import annotations

import io

import fastavro
import numpy as np
import pyarrow as pa
import pytest

from headrace.errors import DecodeError
from schemas import baseline


@pytest.mark.parametrize("offset", [0, 1, 63, 64, 127, 128, 1 << 20, (1 << 62) + 7])
def test_a_key_is_avro_and_comes_back(offset: int) -> None:
    key = baseline.key(7, offset)
    assert key[:5] == b"\0\0\0\0\x07"
    assert fastavro.schemaless_reader(io.BytesIO(key[5:]), baseline.KEY, None) == {baseline.FIELD: offset}
    assert baseline.offset_of(key) == offset


@pytest.mark.parametrize("body", [b"", b"\x80", b"\x03", b"\x02\x00", b"\xff" * 11])
def test_other_bytes_are_refused(body: bytes) -> None:
    with pytest.raises(DecodeError):
        baseline.offset_of(b"\0\0\0\0\x07" + body)


def test_what_is_no_key_of_a_baseline_or_is_ahead_of_its_record_says_nothing() -> None:
    bodies = [b"", b"\x80", b"\x03", b"\x02\x00", b"\xff" * 9 + b"\x7e"]
    keys = [baseline.key(1, n) for n in (5, 30, 31)] + [baseline.key(1, 0)[:5] + body for body in bodies]
    assert baseline.offsets(pa.array(keys, pa.binary()), np.full(8, 30)).tolist() == [5, 30, -1, *[-1] * 5]
    assert baseline.offsets(pa.array([], pa.binary()), np.empty(0, np.int64)).tolist() == []
