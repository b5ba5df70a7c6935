"""A map from keys, given as columns, to numbers: open addressing over 128-bit hashes of the keys.

24 bytes a slot (32 with versions), whatever the key's own size: keys are not stored, their hashes are, salted anew in
every process. A table made for its keys takes 32 bytes a key (43 with versions), one that has grown up to half as much
again, and both its sizes for the second or so in which it grows. Two of 10^9 keys collide with a probability below
10^-20. All operations take columns and release the GIL.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import TerminalError
from headrace.kernels import kernel
from headrace.native import load_i32, load_i64, load_u8

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

ABSENT = -1
_REMOVED = -2
_MAX_FULL = 0.75
# Room made for new keys at least, and slots moved at a time, when a table grows.
_STEP = 1 << 16
_NULL = np.uint64(0x8C62FA0B5C1E39D7)
_SALT = (secrets.randbits(64), secrets.randbits(64))


@dataclass(frozen=True)
class Keys:
    """Hashes of n keys, 128 bits each."""

    high: UInt64
    low: UInt64

    def __len__(self) -> int:
        return len(self.high)

    def take(self, rows: Any) -> Keys:
        return Keys(self.high[rows], self.low[rows])


def hash_keys(columns: list[Any]) -> Keys:
    """Hash rows of key columns (arrays of equal length). Equal values hash equally whatever the width of their type.

    Raises `TerminalError` for types that can't be keys (nested ones).
    """
    n = len(columns[0])
    high = np.full(n, _SALT[0], np.uint64)
    low = np.full(n, _SALT[1], np.uint64)
    for column in columns:
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        if isinstance(array, pa.ChunkedArray):  # combine_chunks of no chunks
            array = pa.array([], column.type)
        _mix_column(high, low, array)
        if array.null_count:
            # Only null rows are touched: a key hashes the same in a batch with nulls and in one without.
            high[pc.is_null(array).to_numpy(zero_copy_only=False)] ^= _NULL
    return Keys(high, low)


def _mix_column(high: UInt64, low: UInt64, array: Any) -> None:
    kind = array.type
    t = pa.types
    if t.is_fixed_size_binary(kind):
        _mix_column(high, low, array.cast(pa.binary()))
    elif t.is_string(kind) or t.is_binary(kind):
        array = pc.fill_null(array, "" if t.is_string(kind) else b"") if array.null_count else array
        _, offsets, data = array.buffers()
        if len(array):
            where = (0, 0) if data is None else (data.address, data.size)
            _mix_bytes(high, low, offsets.address + 4 * array.offset, *where)
    elif t.is_decimal(kind):
        wide = array.cast(pa.decimal128(38, kind.scale))
        wide = pc.fill_null(wide, 0) if wide.null_count else wide
        words = np.frombuffer(wide.buffers()[1], np.uint64)[wide.offset * 2 : (wide.offset + len(wide)) * 2]
        _mix_words(high, low, np.ascontiguousarray(words[0::2]))
        _mix_words(high, low, np.ascontiguousarray(words[1::2]))
    elif t.is_floating(kind):
        floats = pc.fill_null(array, 0).cast(pa.float64()).to_numpy(zero_copy_only=False) + 0.0  # -0.0 becomes 0.0
        floats[np.isnan(floats)] = np.nan
        _mix_words(high, low, floats.view(np.uint64))
    elif t.is_boolean(kind) or t.is_integer(kind) or t.is_temporal(kind):
        if t.is_temporal(kind):
            array = array.view(pa.int32() if kind.bit_width == 32 else pa.int64())
        values = pc.fill_null(array.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
        _mix_words(high, low, values.view(np.uint64))
    else:
        raise TerminalError(f"a column of type {kind} cannot be part of a key")


@kernel("UniTuple(u8,2)(u8,u8,u8)")
def _stir(high: Any, low: Any, word: Any) -> Any:
    """One step of a 128-bit mixing: both halves depend on all bits of word and of both halves before."""
    a = (high ^ word) * np.uint64(0x9E3779B97F4A7C15)
    a ^= a >> np.uint64(32)
    b = (low + word) * np.uint64(0xC2B2AE3D27D4EB4F)
    b ^= b >> np.uint64(29)
    a = (a + b) * np.uint64(0xBF58476D1CE4E5B9)
    b = (b ^ (a >> np.uint64(31))) * np.uint64(0x94D049BB133111EB)
    return a ^ (b >> np.uint64(27)), b ^ (a << np.uint64(17))


@kernel("void(u8[::1],u8[::1],u8[::1])", reads=("words",))
def _mix_words(high: Any, low: Any, words: Any) -> None:
    for i in range(len(words)):
        high[i], low[i] = _stir(high[i], low[i], words[i])


@kernel("void(u8[::1],u8[::1],i8,i8,i8)")
def _mix_bytes(high: UInt64, low: UInt64, offsets: int, data: int, size: int) -> None:
    """Eight bytes at a time, zeros after the last. `offsets` (i32) and `data` are addresses; nothing is read beyond
    `size` bytes of data."""
    end = load_i32(offsets)
    for i in range(len(high)):
        at, end = end, load_i32(offsets + 4 * i + 4)
        a, b = _stir(high[i], low[i], np.uint64(end - at))
        while at < end:
            word = np.uint64(0)
            if at + 8 <= size:
                word = np.uint64(load_i64(data + at))
                if end - at < 8:
                    word &= (np.uint64(1) << np.uint64(8 * (end - at))) - np.uint64(1)
            else:
                for k in range(end - at):
                    word |= np.uint64(load_u8(data + at + k)) << np.uint64(8 * k)
            a, b = _stir(a, b, word)
            at += 8
        high[i], low[i] = a, b


@kernel(
    "void(u8[::1],u8[::1],u8[::1],u8[::1],i8[::1],i8[::1])", reads=("high", "low", "slots_high", "slots_low", "where")
)
def _find(high: Any, low: Any, slots_high: Any, slots_low: Any, where: Any, out: Any) -> None:
    size = np.uint64(len(where))
    for i in range(len(high)):
        at = ((high[i] >> np.uint64(32)) * size) >> np.uint64(32)
        out[i] = -1
        while where[at] != -1:
            if where[at] != -2 and slots_high[at] == high[i] and slots_low[at] == low[i]:
                out[i] = np.int64(at)
                break
            at += np.uint64(1)
            if at == size:
                at = np.uint64(0)


@kernel(
    "UniTuple(i8,3)(u8[::1],u8[::1],i8[::1],u8[::1],u8[::1],i8[::1],i8[::1],i8)", reads=("high", "low", "locations")
)
def _insert(
    high: Any, low: Any, locations: Any, slots_high: Any, slots_low: Any, where: Any, out: Any, room: Any
) -> Any:
    """Put keys in order, the last location wins; `out` gets their slots. Stops at a key that would take a slot more
    than `room`. Returns (keys put, new keys, newly used slots)."""
    size = np.uint64(len(where))
    added = 0
    used = 0
    for i in range(len(high)):
        at = ((high[i] >> np.uint64(32)) * size) >> np.uint64(32)
        free = np.int64(-1)
        while where[at] != -1:
            if where[at] == -2:
                if free < 0:
                    free = np.int64(at)
            elif slots_high[at] == high[i] and slots_low[at] == low[i]:
                break
            at += np.uint64(1)
            if at == size:
                at = np.uint64(0)
        if where[at] == -1:
            if free < 0 and used == room:
                return i, added, used
            added += 1
            if free >= 0:
                at = np.uint64(free)
            else:
                used += 1
            slots_high[at] = high[i]
            slots_low[at] = low[i]
        where[at] = locations[i]
        out[i] = np.int64(at)
    return len(high), added, used


@kernel("i8(i8[::1],i8[::1])", reads=("slots",))
def _forget(slots: Any, where: Any) -> Any:
    """Mark slots as removed, -1 and removed ones left out; returns how many."""
    count = 0
    for slot in slots:
        if slot >= 0 and where[slot] != -2:
            where[slot] = -2
            count += 1
    return count


@kernel("void(i8[::1],i8[::1],b1[::1])", reads=("slots",))
def _mark_last(slots: Any, last: Any, keep: Any) -> None:
    for i in range(len(slots)):
        last[slots[i]] = i
    for i in range(len(slots)):
        keep[i] = last[slots[i]] == i


def slots_for(keys: int) -> int:
    """Slots of a table that takes this many keys without growing."""
    return max(16, int(keys / _MAX_FULL) + 1)


class KeyIndex:
    """A map from keys to locations, and to versions when `versioned`. Not thread-safe.

    `claim` is told how many bytes the table will take before it takes them, and may raise: then nothing has changed.
    """

    def __init__(
        self, capacity: int = 1024, *, versioned: bool = False, claim: Callable[[int], None] | None = None
    ) -> None:
        self._versioned = versioned
        self._claim = claim
        self._live = 0
        self._used = 0
        self._allocate(capacity)

    def __len__(self) -> int:
        return self._live

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (self._high, self._low, self._where, self._versions))

    def locations(self, keys: Keys) -> Int64:
        """Location of each key, `ABSENT` for unknown ones."""
        slots = self._slots(keys)
        found: Int64 = np.where(slots >= 0, self._where[slots], ABSENT)
        return found

    def versions(self, keys: Keys) -> Int64:
        """Version of each key, the smallest int64 for unknown ones."""
        slots = self._slots(keys)
        found: Int64 = np.where(slots >= 0, self._versions[slots], np.iinfo(np.int64).min)
        return found

    def put(self, keys: Keys, locations: Int64, versions: Int64 | None = None) -> int:
        """Set locations (and versions); the last of equal keys wins. Returns how many keys are new."""
        new = done = 0
        while True:
            count, added = self._put(keys.take(slice(done, None)), locations[done:], versions, done)
            new, done = new + added, done + count
            if done == len(keys):
                return new
            self.reserve(min(len(keys) - done, _STEP))

    def _put(self, keys: Keys, locations: Int64, versions: Int64 | None, skip: int = 0) -> tuple[int, int]:
        """Put keys as long as there is room; returns how many, and how many of these are new."""
        slots = np.empty(len(keys), np.int64)
        room = int(len(self._where) * _MAX_FULL) - self._used
        done, added, used = _insert(keys.high, keys.low, locations, self._high, self._low, self._where, slots, room)
        self._live += added
        self._used += used
        if versions is not None:
            self._versions[slots[:done]] = versions[skip : skip + done]
        return int(done), int(added)

    def remove(self, keys: Keys) -> None:
        """Forget keys; unknown ones are no error."""
        self._live -= int(_forget(self._slots(keys), self._where))

    def entries(self) -> tuple[Keys, Int64]:
        """All keys with their locations, in no order."""
        taken = self._where >= 0
        return Keys(self._high[taken], self._low[taken]), self._where[taken]

    def clear(self) -> None:
        self._live = self._used = 0
        self._allocate(1024)

    def _slots(self, keys: Keys) -> Int64:
        out = np.empty(len(keys), np.int64)
        _find(keys.high, keys.low, self._high, self._low, self._where, out)
        return out

    def _allocate(self, capacity: int) -> None:
        if self._claim is not None:
            self._claim(capacity * (32 if self._versioned else 24))
        self._high = np.empty(capacity, np.uint64)
        self._low = np.empty(capacity, np.uint64)
        self._where = np.full(capacity, ABSENT, np.int64)
        self._versions = np.empty(capacity if self._versioned else 0, np.int64)

    def reserve(self, more: int) -> None:
        """Make room for new keys: grow by half when keys fill the table, rebuild at the same size when removed slots
        do."""
        if self._used + more <= len(self._where) * _MAX_FULL:
            return
        high, low, where, versions = self._high, self._low, self._where, self._versions
        needed = slots_for(self._live + more)
        capacity = len(where)
        self._allocate(capacity if needed * 5 <= capacity * 4 else max(needed, capacity + capacity // 2))
        self._live = self._used = 0
        for start in range(0, capacity, 16 * _STEP):
            part = slice(start, start + 16 * _STEP)
            taken = where[part] >= 0
            moved = Keys(high[part][taken], low[part][taken])
            self._put(moved, where[part][taken], versions[part][taken] if self._versioned else None)


def last_of_each(keys: Keys) -> Mask:
    """True for the last row of each key."""
    index = KeyIndex(slots_for(len(keys)))
    slots = np.empty(len(keys), np.int64)
    _insert(keys.high, keys.low, np.arange(len(keys)), index._high, index._low, index._where, slots, len(keys))
    keep: Mask = np.empty(len(keys), np.bool_)
    _mark_last(slots, index._where, keep)
    return keep
