"""Contracts against a real registry and a real Kafka: register, list, and draft from what a topic holds."""

import io
import json
from uuid import uuid4

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from fastavro import parse_schema, schemaless_writer
from typer.testing import CliRunner

from cli.contract import app
from headrace.errors import ContractError, SchemaNotFoundError
from schemas.registry import Registry

CONTRACT = {
    "type": "record",
    "name": "Visit",
    "doc": "One visit.",
    "owner": "web",
    "fields": [{"name": "page", "type": "string", "rules": ["not_empty"]}, {"name": "n", "type": "int"}],
}


@pytest.fixture
def content(tmp_path, monkeypatch, registry_url):
    folder = tmp_path / "schemas" / "contracts"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADRACE_REGISTRY__URL", registry_url)
    return folder


def run(*arguments):
    result = CliRunner().invoke(app, [*arguments, "--json"])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return json.loads(result.stdout)


def test_register_release_and_hold_to_it(content, registry_url):
    topic = f"visits-{uuid4().hex}"
    path = content / "visit.avsc"
    path.write_text(json.dumps(CONTRACT | {"topic": topic}))
    registry = Registry(registry_url)

    planned = run("register", "Visit", "--dry-run")["registered"]
    assert (planned[0]["change"], planned[0]["id"], registry.versions(f"{topic}-value")) == ("new", None, [])

    first = run("register", "Visit", "--release")
    assert (first["registered"][0]["change"], first["registered"][0]["version"], first["released"]) == (
        "new",
        1,
        ["Visit"],
    )
    assert registry.latest(f"{topic}-value").schema == CONTRACT | {"topic": topic}
    assert (content / "released" / "Visit.avsc").read_text() == path.read_text()
    again = run("register", "Visit", "--release")
    assert (again["registered"][0]["change"], again["registered"][0]["id"], again["released"]) == (
        "unchanged",
        first["registered"][0]["id"],
        [],
    )
    assert next(r for r in run("list") if r["name"] == "Visit")["version"] == 1

    wider = CONTRACT | {"topic": topic, "fields": [CONTRACT["fields"][0], {"name": "n", "type": "long"}]}
    path.write_text(json.dumps(wider))
    assert run("register", "Visit")["registered"][0]["version"] == 2

    path.write_text(
        json.dumps(CONTRACT | {"topic": topic, "fields": [*CONTRACT["fields"], {"name": "m", "type": "int"}]})
    )
    with pytest.raises(ContractError, match="nothing was registered"):
        run("register", "Visit")
    (content / "released" / "Visit.avsc").unlink()
    with pytest.raises(ContractError, match="incompatible"):
        run("register", "Visit")
    assert registry.versions(f"{topic}-value") == [1, 2]


ROW = {
    "type": "record",
    "name": "Value",
    "fields": [{"name": "id", "type": "long"}, {"name": "state", "type": ["null", "string"], "default": None}],
}
ENVELOPE = {
    "type": "record",
    "name": "Envelope",
    "fields": [
        {"name": "before", "type": ["null", ROW], "default": None},
        {"name": "after", "type": ["null", "Value"], "default": None},
        {"name": "source", "type": {"type": "record", "name": "Source", "fields": [{"name": "lsn", "type": "long"}]}},
        {"name": "op", "type": "string"},
    ],
}


def framed(schema_id, record):
    out = io.BytesIO()
    schemaless_writer(out, parse_schema(ENVELOPE), record)
    return b"\0" + schema_id.to_bytes(4, "big") + out.getvalue()


def test_draft_a_contract_from_a_topic(content, kafka, registry_url, monkeypatch):
    monkeypatch.setenv("HEADRACE_KAFKA__BOOTSTRAP_SERVERS", kafka)
    topic = f"d{uuid4().hex[:8]}.public.things"
    registry = Registry(registry_url)
    with pytest.raises(SchemaNotFoundError, match="no schema is registered"):
        run("draft", topic, "--owner", "me")

    schema_id = registry.register(f"{topic}-value", ENVELOPE)
    registry.register(f"{topic}-key", {"type": "record", "name": "Key", "fields": [{"name": "id", "type": "long"}]})
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.create_topics([NewTopic(topic, 3, 1)])[topic].result(30)
    producer = Producer({"bootstrap.servers": kafka})
    for n in range(60):
        row = {"id": n, "state": "on" if n % 2 else "off"}
        event = {"before": None, "after": row, "source": {"lsn": n}, "op": "c"}
        producer.produce(topic, framed(schema_id, event), str(n), partition=n % 2)
    producer.produce(topic, None, "tombstone", partition=0)
    producer.produce(topic, b"\0\0\0\0\0garbage", partition=0)
    assert producer.flush(30) == 0

    made = run("draft", topic, "--owner", "me")
    assert made["records"] == 60
    assert json.loads((content / "things.avsc").read_text()) == made["schema"]
    assert (made["schema"]["key"], made["schema"]["storage"]["mode"]) == (["id"], "current")
    assert made["schema"]["fields"][1]["suggestions"] == ["one_of [off, on]"]
    checked = CliRunner().invoke(app, ["check", "--json"])
    assert checked.exit_code == 1
    assert [p["at"] for p in json.loads(checked.stdout)["problems"] if p["severity"] == "error"] == ["doc"]
    with pytest.raises(ContractError, match=r"has the contract Things"):
        run("draft", topic, "--owner", "me")


def test_diff_shows_what_each_version_changed_and_when(content, registry_url):
    """Two versions of a row in an envelope, of its key, and a contract that says otherwise."""
    name = f"d{uuid4().hex[:10]}"
    topic = f"{name}.public.things"
    registry = Registry(registry_url)

    def register(part, *fields):
        row = {"type": "record", "name": "Value", "fields": list(fields)}
        source = {"type": "record", "name": "Source", "fields": [{"name": "lsn", "type": "long"}]}
        envelope = {"type": "record", "name": "Envelope", "fields": [
            {"name": "before", "type": ["null", row], "default": None},
            {"name": "after", "type": ["null", "Value"], "default": None},
            {"name": "source", "type": source},
            {"name": "op", "type": "string"},
        ]}  # fmt: skip
        registry.register(f"{topic}-{part}", envelope if part == "value" else row)

    with pytest.raises(SchemaNotFoundError):
        run("diff", topic)
    key, text = {"name": "id", "type": "int"}, {"name": "b", "type": ["null", "string"], "default": None}
    register("key", key)
    register("value", key, {"name": "n", "type": "int"}, text)
    register("value", key, {"name": "n", "type": "long"}, {"name": "c", "type": "int", "default": 5})
    contract = CONTRACT | {"name": f"Thing{name}", "topic": topic, "envelope": "debezium", "key": ["id"]}
    contract["fields"] = [key, {"name": "n", "type": "long"}, {"name": "d", "type": ["null", "int"], "default": None}]
    (content / "thing.avsc").write_text(json.dumps(contract))
    found = run("diff", topic)
    assert [(v["part"], v["version"], len(v["differences"])) for v in found["versions"]] == [
        ("key", 1, 1), ("value", 1, 3), ("value", 2, 3)
    ]  # fmt: skip
    assert all(v["created"][:2] == "20" for v in found["versions"])
    assert found["versions"][2]["differences"] == [
        {"field": "n", "change": "changed", "was": "int", "now": "long"},
        {"field": "c", "change": "added", "was": None, "now": "int, default 5"},
        {"field": "b", "change": "removed", "was": "string, nullable", "now": None},
    ]
    assert run("diff", f"Thing{name}")["contract"]["differences"] == [
        {"field": "d", "change": "added", "was": None, "now": "int, nullable"},
        {"field": "c", "change": "removed", "was": "int, default 5", "now": None},
    ]
    text = CliRunner().invoke(app, ["diff", topic]).stdout
    assert "value 2" in text
    assert "string, nullable" in text
