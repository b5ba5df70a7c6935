from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from connectors.connect import Connect, Problem, load_connector, refusals, summarize
from headrace.errors import ConfigError, ContractError, UnavailableError
from tests.integration.cdc.postgresql import ENGINE

SHOP = Path(__file__).parents[3] / "connectors" / "debezium" / "shop.json"


def write(folder: Path, **changes: object) -> Path:
    config = json.loads(SHOP.read_text())["config"] | changes
    path = folder / "one.json"
    path.write_text(json.dumps({"name": "one", "config": {k: v for k, v in config.items() if v is not None}}))
    return path


def test_the_demo_connector_keeps_its_secrets_out_and_its_transactions_in() -> None:
    connector = load_connector(SHOP)
    assert connector.config["provide.transaction.metadata"] == "true"
    assert "${env:POSTGRES_PASSWORD}" in connector.placeholders


def test_a_file_is_refused_with_its_field(tmp_path: Path) -> None:
    for changes, field in (
        ({"provide.transaction.metadata": "false"}, "provide.transaction.metadata"),
        ({"provide.transaction.metadata": None}, "provide.transaction.metadata"),
        ({"skipped.operations": None}, "skipped.operations"),
        ({"skipped.operations": "t"}, "skipped.operations"),
        ({"topic.creation.default.cleanup.policy": "compact,delete"}, "topic.creation.default.cleanup.policy"),
        ({"database.password": "hunter2"}, "database.password"),
        ({"connector.class": None}, "connector.class"),
        ({"tasks.max": ["1"]}, "tasks.max"),
        ({"decimal.handling.mode": "double"}, "decimal.handling.mode"),
        ({"time.precision.mode": "connect"}, "time.precision.mode"),
        ({"interval.handling.mode": "numeric"}, "interval.handling.mode"),
        ({"unavailable.value.placeholder": "?"}, "unavailable.value.placeholder"),
    ):
        with pytest.raises(ContractError) as e:
            load_connector(write(tmp_path, **changes))
        assert e.value.where.endswith("one.json:" + field)
        assert "hunter2" not in str(e.value)


def test_what_debezium_would_lose_by_default_is_asked_for(tmp_path: Path) -> None:
    settings = {setting.name: setting.value for setting in ENGINE.settings}
    assert load_connector(write(tmp_path)).config.items() >= settings.items()
    said = {"event.converting.failure.handling.mode": "warn"}
    assert load_connector(write(tmp_path, **said)).config.items() >= said.items()
    history = "schema.history.internal.kafka."
    mysql = {
        "connector.class": "io.debezium.connector.mysql.MySqlConnector",
        history + "topic": "one.schema-history",
        history + "bootstrap.servers": "${env:KAFKA_BOOTSTRAP_SERVERS}",
    }
    assert "include.unknown.datatypes" not in load_connector(write(tmp_path, **mysql)).config


def test_json_truth_values_become_connects_text(tmp_path: Path) -> None:
    connector = load_connector(write(tmp_path, **{"provide.transaction.metadata": True, "tasks.max": 1}))
    assert connector.config["provide.transaction.metadata"] == "true"
    assert connector.config["tasks.max"] == "1"


def test_a_file_that_is_no_connector_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    for text in ("{", "[]", '{"name": "x"}'):
        path.write_text(text)
        with pytest.raises(ConfigError):
            load_connector(path)


def test_validation_gives_fields_and_words_of_connect() -> None:
    answer = {
        "configs": [
            {"value": {"name": "database.hostname", "value": None, "errors": ["${env:NOPE} has invalid format"]}},
            {"value": {"name": "database.dbname", "value": "${env:NONE}", "errors": []}},
            {"value": {"name": "slot.name", "value": "A-B", "errors": ["Invalid value", "may hold only a-z"]}},
            {"value": {"name": "database.port", "value": "5432", "errors": []}},
        ]
    }
    assert refusals(answer) == [
        Problem("database.hostname", "Connect knows no 'NOPE' from its provider 'env'"),
        Problem("database.dbname", "Connect knows no 'NONE' from its provider 'env'"),
        Problem("slot.name", "Invalid value"),
        Problem("slot.name", "may hold only a-z"),
    ]


@pytest.mark.parametrize(
    ("states", "worst"),
    [
        (["RUNNING", "RUNNING"], "RUNNING"),
        (["RUNNING", "RUNNING", "FAILED"], "FAILED"),
        (["RUNNING", "PAUSED"], "PAUSED"),
        (["RUNNING", "UNASSIGNED", "RUNNING"], "UNASSIGNED"),
        (["RUNNING"], "STARTING"),
        (["RUNNING", "SOMETHING_NEW"], "SOMETHING_NEW"),
    ],
)
def test_the_worst_state_of_any_task_wins(states: list[str], worst: str) -> None:
    tasks = [{"id": i, "state": s, "worker_id": "w"} for i, s in enumerate(states[1:])]
    assert summarize("c", {"connector": {"state": states[0]}, "tasks": tasks}).state == worst


def test_the_reason_is_what_was_thrown_and_its_root() -> None:
    trace = "org.X: Task failed\n\tat a.b\nCaused by: org.Y: middle\n\tat c\nCaused by: psql: slot is active\n\tat d"
    found = summarize("c", {"connector": {"state": "RUNNING"}, "tasks": [{"id": 0, "state": "FAILED", "trace": trace}]})
    assert found.reason == "org.X: Task failed <- psql: slot is active"


def test_a_web_server_before_connect_is_there_is_not_an_answer() -> None:
    client = Connect("http://connect")
    starting = httpx.MockTransport(lambda _: httpx.Response(404, text="<html>Not Found</html>"))
    client._client = httpx.Client(base_url="http://connect", transport=starting)
    with pytest.raises(UnavailableError, match="still starting"):
        client.statuses()
