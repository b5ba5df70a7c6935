from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from connectors.binlog import BinlogSource
from connectors.connect import load_connector
from connectors.mysql import HISTORY
from connectors.source import LogState
from headrace.errors import ContractError
from headrace.mysql import is_mysql, log_problem

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "inventory.json"


def test_the_example_of_the_docs_is_accepted() -> None:
    connector = load_connector(EXAMPLE)
    assert {"${env:KAFKA_BOOTSTRAP_SERVERS}", "${env:MARIADB_PASSWORD}"} <= set(connector.placeholders)


@pytest.mark.parametrize("engine", ["mariadb.MariaDbConnector", "mysql.MySqlConnector"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        (HISTORY + "topic", None),
        (HISTORY + "bootstrap.servers", None),
        ("skipped.operations", None),
        ("skipped.operations", "t"),
        ("topic.creation.default.cleanup.policy", "compact"),
        ("provide.transaction.metadata", None),
        ("bigint.unsigned.handling.mode", "long"),
        ("enable.time.adjuster", "true"),
    ],
)
def test_what_would_lose_changes_is_refused_with_its_field(
    tmp_path: Path, engine: str, field: str, value: str | None
) -> None:
    config = json.loads(EXAMPLE.read_text())["config"] | {
        "connector.class": f"io.debezium.connector.{engine}",
        field: value,
    }
    path = tmp_path / "one.json"
    path.write_text(json.dumps({"name": "one", "config": {k: v for k, v in config.items() if v is not None}}))
    with pytest.raises(ContractError) as e:
        load_connector(path)
    assert e.value.where == f"{path}:{field}"


GOOD = {"log_bin": "ON", "binlog_format": "ROW", "binlog_row_image": "FULL"}


@pytest.mark.parametrize(
    ("variables", "statement"),
    [
        (GOOD, None),
        (GOOD | {"binlog_legacy_event_pos": "ON"}, None),
        (GOOD | {"binlog_legacy_event_pos": "OFF"}, "SET GLOBAL binlog_legacy_event_pos = ON"),
        (GOOD | {"binlog_transaction_compression": "ON"}, "SET GLOBAL binlog_transaction_compression = OFF"),
        (GOOD | {"binlog_row_image": "NOBLOB"}, "SET GLOBAL binlog_row_image = FULL"),
        (GOOD | {"log_bin": "OFF"}, "start the server with log_bin"),
    ],
)
def test_a_log_is_judged_by_the_servers_variables(variables: dict[str, str], statement: str | None) -> None:
    problem = log_problem(variables)
    assert (problem and problem[1].partition(";")[0]) == statement


def test_urls_of_mariadb_and_mysql() -> None:
    assert is_mysql("mysql://root@127.0.0.1:3306")
    assert is_mysql("mariadb://u:p@db.example/inventory")
    assert not is_mysql("postgresql://u@db.example/inventory")


FILES = {"binlog.000009": 100, "binlog.000010": 5000, "binlog.000011": 70}


@pytest.mark.parametrize(
    ("offset", "lag", "words"),
    [
        ({"file": "binlog.000011", "pos": 70}, 0, ""),
        ({"file": "binlog.000010", "pos": 4990}, 80, ""),
        ({"file": "binlog.000009", "pos": 4}, 5166, ""),
        ({"file": "binlog.000008", "pos": 4}, None, "has purged binlog.000008"),
        # Said only of a log that was read after the offset: the watch asks again.
        ({"file": "binlog.000012", "pos": 4}, 0, "does not reach binlog.000012:4"),
        ({"file": "binlog.000011", "pos": 99}, 0, "does not reach binlog.000011:99"),
        ({"file": "binlog.000009", "pos": 9999}, 0, "does not reach binlog.000009:9999"),
        ({}, None, ""),
    ],
)
def test_lag_and_loss_follow_from_the_files_of_the_log(offset: dict[str, Any], lag: int | None, words: str) -> None:
    source, log = BinlogSource("mysql://nobody@127.0.0.1:1"), LogState(files=FILES)
    assert source.behind(log, offset).lag_bytes == lag
    said = source.missing(log, offset)
    assert words in said
    assert bool(said) == bool(words)


@pytest.mark.parametrize(
    ("held", "read", "unreached"),
    [
        ("0-1-25", "0-1-25", None),
        ("0-1-25", "0-1-26", "0-1-26"),
        ("", "0-1-1", "0-1-1"),
        ("0-1-9,7-2-5", "0-1-9,7-2-6", "7-2-6"),
        # Another server of the domain has written since, and counts for itself.
        ("0-2-9", "0-1-25", None),
        ("0-1-25", "", None),
        ("0-1-25", "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-77", None),
        (None, "0-1-26", None),
    ],
)
def test_a_log_begun_anew_shows_by_its_transactions(held: str | None, read: str, unreached: str | None) -> None:
    source = BinlogSource("mysql://nobody@127.0.0.1:1")
    said = source.missing(LogState(files=FILES, gtids=held), {"file": "binlog.000011", "pos": 4, "gtids": read})
    assert bool(said) == (unreached is not None)
    assert f"does not reach {unreached}" in said or not said


def test_places_go_on_before_a_snapshot_can_mend() -> None:
    source, place = BinlogSource("mysql://nobody@127.0.0.1:1"), {"file": "binlog.000042", "pos": 99}
    for files, first in (
        ({"binlog.000001": 500}, "RESET MASTER TO 142"),
        ({"binlog.000042": 98}, "RESET MASTER TO 142"),
        ({"binlog.000042": 99}, ""),
        ({"binlog.000042": 98, "binlog.000043": 4}, ""),
        ({"binlog.000142": 4}, ""),
    ):
        said = source.obstacle(LogState(files=files), place)
        assert first in said
        assert bool(said) == bool(first)
    assert source.obstacle(LogState(files={"binlog.000001": 500}), {}) == ""


def test_files_of_seven_digits_come_after_those_of_six() -> None:
    source, log = BinlogSource("mysql://nobody@127.0.0.1:1"), LogState(files={"b.999999": 10, "b.1000000": 5})
    assert source.behind(log, {"file": "b.999999", "pos": 8}).lag_bytes == 7
    assert source.missing(log, {"file": "b.1000000", "pos": 4}) == ""
