"""From changes to versions: when each row that a run of changes leaves began to be valid, and when it ended. Pure.

A version is valid from the time of the change that made it until that of the key's next change, its end excluded.
Where the source's clock was set back, a change counts as of the time at which the version that it ends began. So
versions that follow one another never overlap. Those between changes of the same time have no length; they are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.keyindex import Keys

Int64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

NEVER = np.iinfo(np.int64).max
NONE = -1
BEFORE_ALL = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Sequence:
    """Changes sorted by key, those of a key in their order: `order[i]` is the change at place i.

    `first[i]`: it is the key's first; `alone[i]`: the key's first since a truncate, of which `epochs` counts those
    before each change.
    """

    order: Int64
    first: Mask
    alone: Mask
    epochs: Int64

    def last_marked(self, marked: Mask) -> Int64:
        """For each change the last one up to it, itself included, of its key and since the last truncate that is
        marked; `NONE` without one. By changes in their own order."""
        places = np.where(marked[self.order], np.arange(len(self.order)), NONE)
        starts = np.maximum.accumulate(np.where(self.alone, np.arange(len(self.order)), 0))
        last = np.maximum.accumulate(places)
        found = np.where(last >= starts, self.order[last], NONE)
        out = np.empty(len(found), np.int64)
        out[self.order] = found
        return out

    def previous(self) -> Int64:
        """For each change the one before it, of its key and since the last truncate; else `NONE`."""
        out = np.empty(len(self.order), np.int64)
        out[self.order] = np.where(self.alone, NONE, np.concatenate(([NONE], self.order[:-1]))[: len(self.order)])
        return out


def sequence(keys: Keys, epochs: Int64) -> Sequence:
    """Changes by key. `epochs` never falls: how many truncates were before each change."""
    order = np.lexsort((keys.low, keys.high))
    sorted_ = keys.take(order)
    first = np.ones(len(keys), np.bool_)
    first[1:] = (sorted_.high[1:] != sorted_.high[:-1]) | (sorted_.low[1:] != sorted_.low[:-1])
    alone = first.copy()
    alone[1:] |= np.diff(epochs[order]) != 0
    return Sequence(order, first, alone, epochs)


@dataclass(frozen=True)
class Versions:
    """`write`: changes that leave a row, ascending, with the time from and until which it is valid (`NEVER` ends).

    `closing[i]`: change i is the first of its key since the table's state, and ends the row that the table has; `ends`
    says when.
    """

    write: Int64
    begin: Int64
    end: Int64
    closing: Mask
    ends: Int64


def versions(changes: Sequence, times: Int64, present: Mask, truncates: Int64, stored: Int64) -> Versions:
    """Versions that changes make. `times[i]` and `present[i]`: when change i was, and whether it leaves a row.

    `truncates` are the times of truncates, in order. `stored[i]`: since when the row of change i's key is valid that
    the table has, the smallest int64 when it has none.
    """
    n = len(times)
    order = changes.order
    # A version that follows another one does not begin before it.
    alone = changes.alone.copy()
    alone[1:] |= ~present[order][:-1]
    known = np.where(changes.first, stored[order], BEFORE_ALL)
    begin = _highest_so_far(np.maximum(times[order], known), alone)
    end = np.full(n, NEVER)
    end[:-1] = np.where(changes.alone[1:], NEVER, begin[1:])
    emptied = np.flatnonzero((end == NEVER) & (changes.epochs[order] < len(truncates)))
    end[emptied] = np.maximum(begin[emptied], truncates[changes.epochs[order][emptied]])
    out_begin, out_end, first = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.bool_)
    out_begin[order], out_end[order], first[order] = begin, end, changes.first
    write = np.flatnonzero(present)
    closing = first & (stored != BEFORE_ALL)
    return Versions(write, out_begin[write], out_end[write], closing, np.where(closing, out_begin, NEVER))


def _highest_so_far(values: Int64, first: Mask) -> Int64:
    """Running maximum that begins anew where `first` says so."""
    known, ranks = np.unique(values, return_inverse=True)
    group = np.cumsum(first) * len(known)
    highest: Int64 = known[np.maximum.accumulate(ranks + group) - group]
    return highest
