"""The benchmark of keyed tables in small: its rows are right, its figures are those of the table."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.index import KEYS, run
from sinks.iceberg.keyed import DELETE_FILES_TO_MERGE


@pytest.mark.parametrize("kind", KEYS)
def test_all_keys_are_found_and_changes_stay_bounded(tmp_path: Path, kind: str) -> None:
    figures = run(tmp_path, kind, 3000, 9 if kind == "composite" else 0, 100)
    index = figures["index"]
    assert index["keys"] == 3000
    assert index["bytes_per_key"] == pytest.approx(36, rel=0.02)
    if kind == "composite":
        changes = figures["changes"]
        assert 0 < changes["delete_files_a_commit"] <= changes["files"] + 9
        assert changes["delete_files_of_a_data_file_worst"] < DELETE_FILES_TO_MERGE
        assert changes["dead_share"] < 1
