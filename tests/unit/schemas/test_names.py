from __future__ import annotations

import pytest

from schemas.names import field_name


@pytest.mark.parametrize(
    ("column", "field"),
    [("id", "id"), ("unit price", "unit_price"), ("1st", "_1st"), ("größe", "gr__e"), ("\U0001f600", "__")],
)
def test_a_field_has_the_column_s_name_as_avro_may_have_it(column: str, field: str) -> None:
    assert field_name(column) == field
