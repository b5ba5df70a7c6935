"""What a run of changes leaves behind: for each key the row to write, or that it is gone. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.keyindex import Keys, last_of_each

Int64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Folded:
    """`write`: rows that are some key's state afterwards, one a key, ascending; `keys` are theirs, in that order.

    `touched`: every key that changed, whose row of before is obsolete.
    """

    write: Int64
    keys: Keys
    touched: Keys


def fold(keys: Keys, present: Mask) -> Folded:
    """Fold changes in their order, the last of each key wins: `present[i]` says that change i leaves a row."""
    last = last_of_each(keys)
    write = np.flatnonzero(last & present)
    return Folded(write, keys.take(write), keys.take(np.flatnonzero(last)))


def newest(keys: Keys, versions: Int64, known: Int64) -> Folded:
    """The row with the highest version of each key (the last of equals), unless `known[i]` is at least as high."""
    order = np.argsort(versions, kind="stable")
    fresh = order[versions[order] > known[order]]
    write = np.sort(fresh[last_of_each(keys.take(fresh))])
    chosen = keys.take(write)
    return Folded(write, chosen, chosen)


def join(parts: list[Keys]) -> Keys:
    """Keys of several batches one after the other."""
    if not parts:
        return Keys(np.empty(0, np.uint64), np.empty(0, np.uint64))
    return Keys(np.concatenate([k.high for k in parts]), np.concatenate([k.low for k in parts]))
