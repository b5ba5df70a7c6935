"""In-band maintenance: small and half-dead files rewritten, old snapshots expired, by the process that owns the table.

A separate compactor would lose every race against a writer that commits each second. Rewriting is size-tiered: files of
one partition are merged once several of about the same size exist, so each row is rewritten a few times in its life,
whatever the table's size; what one rewrite reads is bounded, so a commit never waits long behind it, and it is read in
steps (`rewrite`), so it needs little memory. Rows are decoded for it while their row groups are small, and then only to
leave out dead ones (`splice`).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pyiceberg.exceptions import CommitFailedException
from pyiceberg.table import FileScanTask
from pyiceberg.table.update.snapshot import ExpireSnapshots

from headrace.logs import get_logger
from sinks.iceberg.commit import TableCommitter, name_of, trouble
from sinks.iceberg.metadata_cache import transaction

EXPIRE_EVERY = 25
KEEP_SNAPSHOTS = 20
# Further ones that are kept for as long as snapshots are to be read, evenly over that time.
KEPT_OVER_AGE = 60
# Compressed bytes: files of this size are left alone, and a rewrite reads at most as many.
TARGET_BYTES = 64 << 20
SMALLEST_TIER_BYTES = 256 << 10
TIER_FACTOR = 8
FILES_TO_MERGE = 4
DEAD_SHARE = 0.2

log = get_logger("iceberg")


def dead_rows(task: FileScanTask) -> int:
    """Rows of the task's file that position deletes have removed."""
    return sum(file.record_count for file in task.delete_files)


def choose(
    tasks: Iterable[FileScanTask],
    *,
    target: int = TARGET_BYTES,
    allowance: int = 0,
    apart: Callable[[FileScanTask], Any] = lambda _: None,
) -> list[list[FileScanTask]]:
    """The files to rewrite now, in groups that become one file each: at most `target` bytes a group, or one file.

    Worth it are tiers of at least `FILES_TO_MERGE` small files of a partition, and files with many dead rows. All
    groups together have at most `allowance` bytes, or `target` where that is more. Files for which `apart` differs are
    not merged.
    """
    groups: dict[tuple[Any, ...], list[FileScanTask]] = defaultdict(list)
    for task in tasks:
        size = task.file.file_size_in_bytes
        if dead_rows(task) > DEAD_SHARE * task.file.record_count:
            tier = -1
        elif size < target // 2:
            tier = _tier(size)
        else:
            continue
        groups[apart(task), task.file.spec_id, task.file.partition, tier].append(task)
    worth = {key: group for key, group in groups.items() if key[-1] < 0 or len(group) >= FILES_TO_MERGE}
    chosen: list[list[FileScanTask]] = []
    left = max(target, allowance)
    for (*_, tier), group in sorted(worth.items(), key=lambda item: len(item[1]), reverse=True):
        fitting: list[list[FileScanTask]] = [[]]
        size = 0
        for task in sorted(group, key=lambda t: t.file.file_size_in_bytes):
            nbytes = task.file.file_size_in_bytes
            if nbytes > left and (chosen or fitting[0]):
                break
            if fitting[-1] and size + nbytes > target:
                fitting.append([])
                size = 0
            fitting[-1].append(task)
            size += nbytes
            left -= nbytes
        chosen += [files for files in fitting if len(files) > 1 or (files and tier < 0)]
    return chosen


def _tier(size: int) -> int:
    tier, limit = 0, SMALLEST_TIER_BYTES
    while size >= limit:
        tier, limit = tier + 1, limit * TIER_FACTOR
    return tier


def paths_of(tasks: Sequence[FileScanTask]) -> frozenset[str]:
    """These data files and the delete files that apply to them (file-scoped, so to nothing else)."""
    return frozenset(path for t in tasks for path in (t.file.file_path, *(file.file_path for file in t.delete_files)))


def superseded(
    times: Sequence[tuple[int, int]], now: int, *, keep: int = KEEP_SNAPSHOTS, age: int = 0, most: int = KEPT_OVER_AGE
) -> list[int]:
    """Ids of snapshots to forget. `times` are (id, milliseconds), oldest first; `age` and `now` in milliseconds.

    The newest `keep` stay. Of the others that are younger than `age`, the newest in each of `most` slots of it does, so
    the metadata that every commit writes is bounded, however long the age and however often commits are made.
    """
    old = times[:-keep]
    kept = {at * most // age: number for number, at in old if at > now - age}
    return [number for number, _ in old if number not in kept.values()]


def expire(committer: TableCommitter, *, keep: int = KEEP_SNAPSHOTS, seconds: float = 0.0) -> int:
    """Forget snapshots of the table but the newest and some of those younger than `seconds` (`superseded`); their files
    stay for the sweep. Returns how many."""
    table = committer.table
    snapshots = sorted(table.metadata.snapshots, key=lambda s: s.sequence_number or 0)
    pinned = {ref.snapshot_id for ref in table.metadata.refs.values()}
    times = [(s.snapshot_id, s.timestamp_ms) for s in snapshots]
    gone = superseded(times, int(time.time() * 1000), keep=keep, age=int(seconds * 1000))
    old = [number for number in gone if number not in pinned]
    if not old:
        return 0
    staged = transaction(table)
    ExpireSnapshots(staged).by_ids(old).commit()
    with trouble(name_of(table)):
        try:
            committer.table = staged.commit_transaction()
        except CommitFailedException as e:
            # Someone else changed the table: expiring can wait for the next time.
            log.info("expiry postponed", table=name_of(table), reason=str(e))
            committer.reload()
            return 0
    return len(old)
