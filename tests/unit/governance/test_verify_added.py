"""The copy in hand follows new columns with a default, as the source's rows do."""

from __future__ import annotations

import json
from typing import Any

import pytest

from governance.verify.added import Added
from governance.verify.kafka import Record
from governance.verify.states import Keyed, Keyless

ID = {"name": "id", "type": "int"}
RATED = {"name": "rated", "type": "int", "default": 7}
NOTE = {"name": "note", "type": ["null", "string"], "default": None}
NARROW = {"id": ID}
WIDE = {"id": ID, "rated": RATED, "note": NOTE}


def apply(state: Any, added: Added, lsn: int, fields: dict[str, Any], **event: Any) -> None:
    """As `check_current` does."""
    state.fill(added.learn(fields))
    sides = {side: added.filled(event[side], fields) for side in ("before", "after") if side in event}
    state.apply(Record("t", 0, lsn, 0, None, None), event | sides, (lsn, 0))


@pytest.mark.parametrize("kind", ["keyed", "keyless"])
def test_rows_of_before_hold_the_default_of_a_column_that_the_table_has_not(kind: str) -> None:
    held: list[dict[str, Any]] = [{"id": 1}, {"id": 2}]
    state = Keyed(("id",), held) if kind == "keyed" else Keyless(held)
    added = Added(["id"], {})
    apply(state, added, 5, NARROW, op="c", after={"id": 3})
    assert not state.differs([{"id": 1}, {"id": 2}, {"id": 3}])
    apply(state, added, 10, WIDE, op="d", before={"id": 2, "rated": 7})
    # One that became null is no row of before.
    apply(state, added, 11, WIDE, op="u", before={"id": 1, "rated": 7}, after={"id": 1})
    # A partition that was behind.
    apply(state, added, 6, NARROW, op="c", after={"id": 4})
    apply(state, added, 7, NARROW, op="u", before={"id": 4}, after={"id": 6})
    expected = [{"id": 1}, {"id": 3, "rated": 7}, {"id": 6, "rated": 7}]
    assert not state.differs(expected)
    assert state.differs([{"id": 1, "rated": 7}, *expected[1:]])


def test_a_change_owed_from_before_is_owed_with_the_default() -> None:
    state, added = Keyless([]), Added(["id"], {})
    apply(state, added, 5, NARROW, op="d", before={"id": 1})
    apply(state, added, 6, WIDE, op="c", after={"id": 2, "rated": 1})
    state.report(check := Offences(), "t", [{"id": 2, "rated": 1}])  # type: ignore[arg-type]  # what it needs of one
    assert check.found == ["1 x in the database, not in the table: (('id', '1'), ('rated', '7'))"]


class Offences:
    def __init__(self) -> None:
        self.found: list[str] = []

    def offend(self, where: str, what: str) -> None:
        self.found.append(what)


def test_a_table_that_is_not_there_yet_begins_with_the_defaults_of_its_writers() -> None:
    """Of several definitions of a column the one that comes first in the log counts."""
    state, added = Keyed(("id",), []), Added([], {})
    apply(state, added, 5, NARROW, op="c", after={"id": 1})
    apply(state, added, 10, WIDE, op="c", after={"id": 2, "rated": 1})
    apply(state, added, 11, WIDE | {"rated": RATED | {"default": 8}}, op="c", after={"id": 3, "rated": 8})
    apply(state, added, 6, NARROW, op="c", after={"id": 4})
    assert not state.differs(
        [{"id": 1, "rated": 7}, {"id": 2, "rated": 1}, {"id": 3, "rated": 8}, {"id": 4, "rated": 7}]
    )


def test_a_writer_that_does_not_have_a_column_of_the_table_means_its_default() -> None:
    added = Added(["id", "rated"], {"headrace.added.rated": json.dumps({"field": RATED}), "other": "1"})
    assert added.learn(WIDE) == {}
    assert added.filled({"id": 1}, NARROW) == {"id": 1, "rated": 7}
    assert added.filled({"id": 1}, WIDE) == {"id": 1}
