from __future__ import annotations

import pytest

from schemas.names import field_name, is_topic_of


@pytest.mark.parametrize(
    ("column", "field"),
    [("id", "id"), ("unit price", "unit_price"), ("1st", "_1st"), ("größe", "gr__e"), ("\U0001f600", "__")],
)
def test_a_field_has_the_column_s_name_as_avro_may_have_it(column: str, field: str) -> None:
    assert field_name(column) == field


@pytest.mark.parametrize(
    ("topic", "table", "same"),
    [
        ("shop.public.orders", "public.orders", True),
        ("public.orders", "public.orders", True),
        ("shop.public.order_items", "public.order$items", True),
        ("shop.nonpublic.orders", "public.orders", False),
        ("shop.public.orders", "lic.orders", False),
        ("shop.public.orders_old", "public.orders", False),
    ],
)
def test_a_topic_is_that_of_a_table_by_whole_names(topic: str, table: str, same: bool) -> None:
    assert is_topic_of(topic, table) is same
