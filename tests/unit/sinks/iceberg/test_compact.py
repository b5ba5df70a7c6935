"""Which files are rewritten, by their sizes and dead rows alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from sinks.iceberg.compact import choose

KB, MB = 1 << 10, 1 << 20


@dataclass(eq=False)
class File:
    file_size_in_bytes: int
    record_count: int = 100
    spec_id: int = 0
    partition: int = 0


@dataclass(eq=False)
class Task:
    file: File
    delete_files: list[File] = field(default_factory=list)


def files(*sizes: int, dead: int = 0, **more: int) -> list[Any]:
    return [Task(File(size, **more), [File(1, record_count=dead)] if dead else []) for size in sizes]


def sizes(groups: list[list[Any]]) -> list[list[int]]:
    return [[task.file.file_size_in_bytes for task in group] for group in groups]


@pytest.mark.parametrize(
    ("tasks", "chosen"),
    [
        (files(*[100 * KB] * 3), []),
        (files(*[100 * KB] * 4), [[100 * KB] * 4]),
        (files(255 * KB, 10 * KB, KB, 256 * KB, 2 * MB), []),
        (files(255 * KB, 10 * KB, KB, 2 * KB, 256 * KB), [[KB, 2 * KB, 10 * KB, 255 * KB]]),
        (files(*[32 * MB] * 9), []),
        (files(*[100 * KB] * 3, *[MB] * 3), []),
        (files(*[100 * KB] * 3) + files(*[100 * KB] * 3, partition=1), []),
        (files(*[100 * KB] * 3) + files(*[100 * KB] * 3, spec_id=1), []),
        (files(64 * MB, dead=20), []),
        (files(64 * MB, dead=21), [[64 * MB]]),
        (files(KB, MB, dead=21) + files(KB, MB), [[KB, MB]]),
    ],
)
def test_tiers_of_several_small_files_and_files_with_many_dead_rows_are_rewritten(
    tasks: list[Any], chosen: list[list[int]]
) -> None:
    assert sizes(choose(tasks, target=64 * MB)) == chosen


def test_a_group_has_as_many_bytes_as_a_file_may_have_and_all_as_many_as_are_allowed() -> None:
    tasks = files(*[20 * MB] * 8)
    assert sizes(choose(tasks, target=64 * MB)) == [[20 * MB] * 3]
    assert sizes(choose(tasks, target=64 * MB, allowance=140 * MB)) == [[20 * MB] * 3, [20 * MB] * 3]
    assert sizes(choose(files(200 * MB, dead=90), target=64 * MB)) == [[200 * MB]], "or one file"


def test_files_that_are_to_stay_apart_are_not_merged() -> None:
    tasks = files(*range(KB, KB + 8))
    groups = choose(tasks, target=64 * MB, apart=lambda task: task.file.file_size_in_bytes % 2)
    assert sorted(sizes(groups)) == [[KB, KB + 2, KB + 4, KB + 6], [KB + 1, KB + 3, KB + 5, KB + 7]]
