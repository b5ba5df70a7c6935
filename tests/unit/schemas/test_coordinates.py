import pyarrow as pa
import pytest

from headrace.errors import ContractError
from schemas.coordinates import MAX_ROWS, drop_replays


def batch(**columns):
    return pa.RecordBatch.from_pydict(columns)


def test_keeps_first_appearances_of_one_lane():
    mask, after = drop_replays(batch(source_offset=[4, 5, 6, 5, 6, 7]), {"": 4})
    assert mask.to_pylist() == [False, True, True, False, False, True]
    assert after == {"": 7}


def test_lanes_do_not_shadow_each_other():
    rows = batch(
        stage=["bronze", "agent:a", "bronze", "bronze"],
        source_topic=["t", "t", "u", "t"],
        source_partition=[0, 0, 0, 0],
        source_offset=[9, 3, 1, 9],
    )
    mask, after = drop_replays(rows, {"agent:a|t|0": 3})
    assert mask.to_pylist() == [True, False, True, False]
    assert after == {"bronze|t|0": 9, "agent:a|t|0": 3, "bronze|u|0": 1}


def test_a_topic_made_anew_begins_a_lane_and_rows_without_its_id_stay_in_theirs():
    rows = batch(
        stage=["bronze"] * 4,
        source_topic=["t"] * 4,
        source_partition=[0] * 4,
        source_offset=[7, 8, 2, 2],
        source_topic_id=[None, "old", "new", "new"],
    )
    mask, after = drop_replays(rows, {"bronze|t|0": 7, "bronze|t|0|old": 7})
    assert mask.to_pylist() == [False, True, True, False]
    assert after == {"bronze|t|0": 7, "bronze|t|0|old": 8, "bronze|t|0|new": 2}


def test_several_rows_of_one_record():
    rows = batch(source_offset=[1, 1, 1, 1, 2], source_index=[0, 1, 0, 1, 0])
    mask, after = drop_replays(rows, {})
    assert mask.to_pylist() == [True, True, False, False, True]
    assert after == {"": 2 * MAX_ROWS}


def test_nothing_in_nothing_out():
    mask, after = drop_replays(batch(source_offset=pa.array([], pa.int64())), {"": 3})
    assert (len(mask), after) == (0, {"": 3})


@pytest.mark.parametrize("columns", [{"x": [1]}, {"source_offset": [1, None]}, {"source_offset": ["1"]}])
def test_rows_without_coordinates_are_refused(columns):
    with pytest.raises(ContractError, match="source_offset"):
        drop_replays(batch(**columns), {})
