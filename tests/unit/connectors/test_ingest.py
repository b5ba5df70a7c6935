from __future__ import annotations

import pytest

from connectors.ingest import Problem, parse_rows


def test_json_bodies() -> None:
    assert parse_rows(b'{"a":1}', "application/json; charset=utf-8") == ([{"a": 1}], [0], [])
    assert parse_rows(b"[1,2]", "") == ([1, 2], [0, 1], [])
    assert parse_rows(b"[]", "application/json") == ([], [], [])


def test_ndjson_keeps_the_places_of_its_lines() -> None:
    rows, indexes, errors = parse_rows(b'{"a":1}\n{"a":\n\n\r\n{"a":2}\r\n', "application/x-ndjson")
    assert (rows, indexes) == ([{"a": 1}, {"a": 2}], [0, 2])
    assert [(e.index, e.message.startswith("not JSON")) for e in errors] == [(1, True)]


@pytest.mark.parametrize(
    ("body", "kind", "status"), [(b"{", "", 400), (b'"a"', "", 400), (b"", "", 400), (b"{}", "text/csv", 415)]
)
def test_bodies_that_are_none(body: bytes, kind: str, status: int) -> None:
    with pytest.raises(Problem) as e:
        parse_rows(body, kind)
    answer = e.value.response()
    assert (answer.status_code, answer.media_type) == (status, "application/problem+json")
