"""Kafka topics as Iceberg tables, exactly once: offsets and data in one fenced commit.

Every topic lands in the tables that `plan` names. A table is an `OwnedTable`: append-only, or keyed (current state of a
database table, upserts) by position deletes that an in-memory key index locates. `commit` holds the numbered order.
"""
