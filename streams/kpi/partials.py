"""Partial aggregates: what rows of one group add up to, so that parts can be added, taken back and finished later.

All arithmetic is exact, so the order in which parts meet never shows in a value: sums are decimals of unbounded
precision (doubles are first rounded to the KPI's resolution), quantiles count values in buckets, distinct values are
kept as 64-bit hashes (two of n values collide with a probability of about n*n/2**65).
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_CEILING, Context, Decimal, Inexact
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import ContractError
from schemas.kpis import FLOAT_RESOLUTION, Kpi

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

ZERO = Decimal(0)
MAX_DISTINCT = 100_000
"""Distinct values that one group of one partition and window can hold: its state is one Kafka record."""

_EXACT = Context(prec=200, Emin=-999, Emax=999, traps=[Inexact])
_NO_MEMBERS = np.empty(0, np.uint64)


@dataclass(frozen=True, slots=True)
class Partial:
    """`rows` counted less those taken back, `count` of them with a value; the rest as the measure needs it."""

    rows: int = 0
    count: int = 0
    total: Decimal = ZERO
    low: Decimal | None = None
    high: Decimal | None = None
    buckets: dict[int, int] = field(default_factory=dict)
    members: npt.NDArray[np.uint64] = field(default_factory=lambda: _NO_MEMBERS)

    def plus(self, other: Partial) -> Partial:
        buckets = self.buckets
        if other.buckets:
            buckets = dict(buckets)
            for index, number in other.buckets.items():
                buckets[index] = buckets.get(index, 0) + number
        members = self.members
        if len(other.members):
            members = np.union1d(members, other.members) if len(members) else other.members
        return Partial(
            self.rows + other.rows,
            self.count + other.count,
            _EXACT.add(self.total, other.total),
            _pick(min, self.low, other.low),
            _pick(max, self.high, other.high),
            buckets,
            members,
        )

    def dump(self) -> dict[str, Any]:
        """As plain data for JSON; what is empty is left out."""
        out: dict[str, Any] = {"n": self.rows, "c": self.count}
        if self.total:
            out["t"] = str(self.total)
        if self.low is not None:
            out["l"] = str(self.low)
        if self.high is not None:
            out["h"] = str(self.high)
        if self.buckets:
            out["b"] = [list(self.buckets), list(self.buckets.values())]
        if len(self.members):
            out["m"] = b64encode(self.members.tobytes()).decode()
        return out

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> Partial:
        """Reads what `dump` made."""
        return cls(
            data["n"],
            data["c"],
            Decimal(data.get("t", 0)),
            Decimal(data["l"]) if "l" in data else None,
            Decimal(data["h"]) if "h" in data else None,
            dict(zip(*data["b"], strict=True)) if "b" in data else {},
            np.frombuffer(b64decode(data["m"]), np.uint64) if "m" in data else _NO_MEMBERS,
        )

    def same(self, other: Partial) -> bool:
        return self.dump() == other.dump()


EMPTY = Partial()


def _pick(choose: Any, a: Decimal | None, b: Decimal | None) -> Decimal | None:
    return (b if a is None else a) if a is None or b is None else choose(a, b)


def check_type(kpi: Kpi, kind: pa.DataType) -> str:
    """Why a field of this type cannot be measured so; "" when it can."""
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if kpi.measure in ("sum", "avg", "min", "max", "quantile") and not number:
        return f"{kpi.measure} needs a number, not {kind}"
    if kpi.measure == "distinct" and pa.types.is_nested(kind):
        return f"distinct needs a plain value, not {kind}"
    return ""


def aggregate(kpi: Kpi, values: pa.Array | None, signs: Ints, codes: Ints, groups: int) -> list[Partial]:
    """One partial per group code 0..groups-1 of rows that count (+1) or are taken back (-1).

    `values` is the measured field, None for a KPI that has none. Nulls, NaN and infinities count as rows without a
    value, and so do doubles too large for their resolution.
    """
    rows = _tally(signs, codes, groups)
    if values is None:
        return [Partial(n, n) for n in rows]
    if kpi.measure == "count":
        valid = _valid(values)
        return [Partial(n, c) for n, c in zip(rows, _tally(signs[valid], codes[valid], groups), strict=True)]
    if kpi.measure == "distinct":
        return _distinct(values, signs, codes, rows)
    if kpi.measure == "quantile":
        numbers, valid = _rounded(values.cast(pa.float64()), float(kpi.resolution or 1))
        return _buckets(numbers[valid], signs[valid], codes[valid], rows)
    if kpi.measure in ("min", "max"):
        return _extremes(values, signs, codes, rows)
    numbers, valid, digits = _scaled(values, kpi)
    counts = _tally(signs[valid], codes[valid], groups)
    totals = _sums(numbers[valid], signs[valid], codes[valid], groups)
    return [Partial(n, c, Decimal(t).scaleb(-digits, _EXACT)) for n, c, t in zip(rows, counts, totals, strict=True)]


def _tally(signs: Ints, codes: Ints, groups: int) -> list[int]:
    out = np.zeros(groups, np.int64)
    np.add.at(out, codes, signs)
    return [int(n) for n in out]


def _sums(numbers: npt.NDArray[Any], signs: Ints, codes: Ints, groups: int) -> list[int]:
    """Sums that cannot overflow: 32-bit halves are added apart, Python integers as they are."""
    if numbers.dtype == object:
        wide = np.zeros(groups, object)
        np.add.at(wide, codes, numbers * signs)
        return [int(n) for n in wide]
    low, high = np.zeros(groups, np.int64), np.zeros(groups, np.int64)
    np.add.at(low, codes, (numbers & 0xFFFFFFFF) * signs)
    np.add.at(high, codes, (numbers >> 32) * signs)
    return [(int(h) << 32) + int(n) for n, h in zip(low, high, strict=True)]


def _scaled(values: pa.Array, kpi: Kpi) -> tuple[npt.NDArray[Any], Mask, int]:
    """(numbers times 10**digits, which of them are values, digits); numbers that are no values are 0."""
    if pa.types.is_decimal(values.type):
        return _unscaled(values), _valid(values), values.type.scale
    if pa.types.is_integer(values.type):
        return _integers(values), _valid(values), 0
    digits = kpi.digits or 0
    numbers, valid = _rounded(values.cast(pa.float64()), 10.0**-digits if digits else 1.0, 10.0**digits)
    return numbers, valid, digits


def _rounded(values: pa.Array, width: float, per_unit: float | None = None) -> tuple[Ints, Mask]:
    """`floor(value / width + 0.5)`, which SQL engines compute alike; times `per_unit` where that is exact."""
    numbers = pc.fill_null(values, float("nan")).to_numpy(zero_copy_only=False)
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = np.floor((numbers / width if per_unit is None else numbers * per_unit) + 0.5)
        valid = np.abs(scaled) < 2.0**62
    return np.where(valid, scaled, 0).astype(np.int64), valid


def _unscaled(values: pa.Array) -> npt.NDArray[Any]:
    """Unscaled integers of decimals: int64 up to 18 digits, Python's beyond; 0 for nulls."""
    if values.type.precision <= 18 and pa.types.is_decimal128(values.type):
        words = np.frombuffer(values.buffers()[1], np.int64)[2 * values.offset : 2 * (values.offset + len(values)) : 2]
        return np.where(_valid(values), words, 0)
    scale = values.type.scale
    return np.array([0 if v is None else int(v.scaleb(scale, _EXACT)) for v in values.to_pylist()], object)


def _integers(values: pa.Array) -> Ints:
    out: Ints = pc.fill_null(values.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
    return out


def _valid(values: pa.Array) -> Mask:
    out: Mask = pc.is_valid(values).to_numpy(zero_copy_only=False)
    return out


def _extremes(values: pa.Array, signs: Ints, codes: Ints, rows: list[int]) -> list[Partial]:
    valid = _valid(values)
    digits = 0
    numbers: npt.NDArray[Any]
    if pa.types.is_decimal(values.type):
        numbers, digits = _unscaled(values), values.type.scale
    elif pa.types.is_integer(values.type):
        numbers = _integers(values)
    else:
        numbers = values.cast(pa.float64()).fill_null(0).to_numpy(zero_copy_only=False)
        valid = valid & np.isfinite(numbers)
    out = [Partial(n) for n in rows]
    numbers, codes, signs = numbers[valid], codes[valid], signs[valid]
    for code, part in _by_group(codes):
        chosen = numbers[part]
        low, high = (_decimal(v, digits) for v in (chosen.min(), chosen.max()))
        out[code] = replace(out[code], count=int(signs[part].sum()), low=low, high=high)
    return out


def _by_group(codes: Ints) -> Iterator[tuple[int, Ints]]:
    """Each code that occurs, with the rows that it occurs in."""
    order = np.argsort(codes, kind="stable")
    present, starts = np.unique(codes[order], return_index=True)
    parts = np.split(order, starts[1:]) if len(present) else []
    return zip(present.tolist(), parts, strict=True)


def _decimal(value: Any, digits: int) -> Decimal:
    if isinstance(value, float | np.floating):
        return Decimal(repr(float(value)))
    return Decimal(int(value)).scaleb(-digits, _EXACT)


def _buckets(numbers: Ints, signs: Ints, codes: Ints, rows: list[int]) -> list[Partial]:
    out = [Partial(n) for n in rows]
    if not len(numbers):
        return out
    pairs, where = np.unique(np.stack([codes, numbers]), axis=1, return_inverse=True)
    sizes = np.zeros(pairs.shape[1], np.int64)
    np.add.at(sizes, where.reshape(-1), signs)
    for code, index, size in zip(*pairs.tolist(), sizes.tolist(), strict=True):
        out[code].buckets[index] = size
    return [replace(p, count=sum(p.buckets.values())) for p in out]


def _distinct(values: pa.Array, signs: Ints, codes: Ints, rows: list[int]) -> list[Partial]:
    out = [Partial(n) for n in rows]
    valid = _valid(values)
    coded = values.filter(pa.array(valid)).dictionary_encode()
    hashes = np.array([hash_value(v) for v in coded.dictionary.to_pylist()], np.uint64)
    members = hashes[coded.indices.to_numpy(zero_copy_only=False)]
    signs = signs[valid]
    for code, part in _by_group(codes[valid]):
        out[code] = replace(out[code], count=int(signs[part].sum()), members=np.unique(members[part]))
    return out


def hash_value(value: Any) -> int:
    """64 bits of a plain value, the same on every machine."""
    return int.from_bytes(blake2b(str(value).encode(), digest_size=8).digest(), "little")


def check_size(kpi: Kpi, partial: Partial) -> None:
    """Raises `ContractError` when a group holds more distinct values than its state can."""
    if len(partial.members) > MAX_DISTINCT:
        raise ContractError(
            f"a group has more than {MAX_DISTINCT:,} distinct values in one partition",
            where=f"kpi {kpi.name}: field {kpi.field}",
            hint="shorten the window, add a dimension or count something coarser",
        )


def value_of(kpi: Kpi, partial: Partial) -> Decimal | None:
    """The KPI's value; None where there is no row to measure (counts, sums and distinct counts are then 0)."""
    if kpi.measure == "count":
        return Decimal(partial.count if kpi.field else partial.rows)
    if kpi.measure == "distinct":
        return Decimal(len(partial.members))
    if kpi.measure == "sum":
        return partial.total
    if kpi.measure == "min":
        return partial.low
    if kpi.measure == "max":
        return partial.high
    if partial.count <= 0:
        return None
    if kpi.measure == "avg":
        return partial.total / partial.count
    return _quantile(partial, kpi.q or 0.0, kpi.resolution or FLOAT_RESOLUTION)


def _quantile(partial: Partial, q: float, resolution: Decimal) -> Decimal:
    """The smallest value that at least a share q of all values does not exceed (nearest rank)."""
    rank = max(1, int((Decimal(str(q)) * partial.count).to_integral_value(ROUND_CEILING)))
    for index in sorted(partial.buckets):
        rank -= partial.buckets[index]
        if rank <= 0:
            return index * resolution
    raise ContractError("a histogram holds fewer values than it counts", where="kpi state")


def total_of(partials: Sequence[Partial]) -> Partial:
    out = EMPTY
    for partial in partials:
        out = out.plus(partial)
    return out
