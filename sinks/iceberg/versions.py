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


@dataclass(frozen=True)
class Sequence:
    """Changes sorted by key, then by epoch, those of both in their order: `order[i]` is the change at place i.

    `epochs` says how many truncations were before each change in the source's log. `alone[i]`: the change at place i is
    its key's first since a truncation.
    """

    order: Int64
    alone: Mask
    epochs: Int64

    def last_marked(self, marked: Mask) -> Int64:
        """For each change the last one up to it, itself included, of its key and epoch that is marked; `NONE` without
        one. By changes in their own order."""
        places = np.where(marked[self.order], np.arange(len(self.order)), NONE)
        starts = np.maximum.accumulate(np.where(self.alone, np.arange(len(self.order)), 0))
        last = np.maximum.accumulate(places)
        found = np.where(last >= starts, self.order[last], NONE)
        out = np.empty(len(found), np.int64)
        out[self.order] = found
        return out

    def previous(self) -> Int64:
        """For each change the one before it, of its key and epoch; else `NONE`."""
        out = np.empty(len(self.order), np.int64)
        out[self.order] = np.where(self.alone, NONE, np.concatenate(([NONE], self.order[:-1]))[: len(self.order)])
        return out


def sequence(keys: Keys, epochs: Int64) -> Sequence:
    """Changes by key and epoch."""
    order = np.lexsort((epochs, keys.low, keys.high))
    sorted_, of = keys.take(order), epochs[order]
    alone = np.ones(len(keys), np.bool_)
    alone[1:] = (sorted_.high[1:] != sorted_.high[:-1]) | (sorted_.low[1:] != sorted_.low[:-1]) | (of[1:] != of[:-1])
    return Sequence(order, alone, epochs)


def versions(changes: Sequence, times: Int64, present: Mask, left: Int64) -> tuple[Int64, Int64]:
    """From and until when the row that each change leaves is valid; `NEVER` where it still is.

    `times[i]` and `present[i]`: when change i was, and whether it leaves a row; `left[i]`: when what is left
    open in its epoch ends.
    """
    order = changes.order
    # A version that follows another one does not begin before it.
    alone = changes.alone.copy()
    alone[1:] |= ~present[order][:-1]
    begin = _highest_so_far(times[order], alone)
    end = np.maximum(begin, left[order])
    follows = np.flatnonzero(~changes.alone)
    end[follows - 1] = begin[follows]
    out_begin, out_end = np.empty_like(begin), np.empty_like(end)
    out_begin[order], out_end[order] = begin, end
    return out_begin, out_end


def _highest_so_far(values: Int64, first: Mask) -> Int64:
    """Running maximum that begins anew where `first` says so."""
    known, ranks = np.unique(values, return_inverse=True)
    group = np.cumsum(first) * len(known)
    highest: Int64 = known[np.maximum.accumulate(ranks + group) - group]
    return highest
