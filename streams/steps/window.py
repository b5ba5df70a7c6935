"""Which numbers of a sequence were seen, by key: a window of bits below the highest, as in IPsec's replay protection.

Numbers may come late and out of order, as long as they are less than a window behind; older ones cannot be told apart
from repeats and are called `OLD`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headrace.kernels import kernel
from headrace.keyindex import KeyIndex, Keys, last_of_each

NEW, SEEN, OLD = 0, 1, 2
NOTHING = np.iinfo(np.int64).min


@kernel("void(i8[::1],i8[::1],i8[::1],u8[:,::1],u1[::1])", reads=("keys", "numbers"))
def _judge(
    keys: npt.NDArray[np.int64],
    numbers: npt.NDArray[np.int64],
    highest: npt.NDArray[np.int64],
    bits: npt.NDArray[np.uint64],
    verdicts: npt.NDArray[np.uint8],
) -> None:
    one = np.uint64(1)
    window = bits.shape[1] * 64
    # Distances are unsigned: two numbers may be further apart than a signed one can say.
    reach = np.uint64(window)
    for i in range(len(keys)):
        key, number = keys[i], numbers[i]
        top = highest[key]
        slot = number % window
        mask = one << np.uint64(slot & 63)
        if top == NOTHING or number > top:
            if top == NOTHING or np.uint64(number) - np.uint64(top) >= reach:
                bits[key, :] = 0
            else:
                for between in range(top + 1, number):
                    gap = between % window
                    bits[key, gap >> 6] &= ~(one << np.uint64(gap & 63))
            highest[key] = number
            bits[key, slot >> 6] |= mask
            verdicts[i] = NEW
        elif np.uint64(top) - np.uint64(number) >= reach:
            verdicts[i] = OLD
        elif bits[key, slot >> 6] & mask:
            verdicts[i] = SEEN
        else:
            bits[key, slot >> 6] |= mask
            verdicts[i] = NEW


class Seen:
    """Numbers seen of each key. `window` is rounded up to a multiple of 64; it costs an eighth of it in bytes a key."""

    def __init__(self, window: int) -> None:
        self.words = -(-window // 64)
        self._index = KeyIndex()
        self._highest = np.full(64, NOTHING, np.int64)
        self._bits = np.zeros((64, self.words), np.uint64)

    def judge(self, keys: Keys, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """`NEW`, `SEEN` or `OLD` for each row in order; new ones are seen from then on."""
        ids = self._index.locations(keys)
        if (ids < 0).any():
            self._meet(keys.take(np.flatnonzero(ids < 0)))
            ids = self._index.locations(keys)
        verdicts = np.empty(len(keys), np.uint8)
        _judge(ids, np.ascontiguousarray(numbers, np.int64), self._highest, self._bits, verdicts)
        return verdicts

    def _meet(self, keys: Keys) -> None:
        keys = keys.take(last_of_each(keys))
        first = len(self._index)
        self._index.put(keys, np.arange(first, first + len(keys)))
        if len(self._index) > len(self._highest):
            more = max(len(self._index), 2 * len(self._highest)) - len(self._highest)
            self._highest = np.append(self._highest, np.full(more, NOTHING, np.int64))
            self._bits = np.concatenate([self._bits, np.zeros((more, self.words), np.uint64)])
