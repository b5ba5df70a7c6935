from __future__ import annotations

import io

import fastavro
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


def test_of_several_baselines_the_highest_counts() -> None:
    assert baseline.highest(pa.array([baseline.key(1, n) for n in (5, 900, 30)], pa.binary())) == 900
