"""Settings: precedence of layers, errors that name the key and never the value."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace.config import explain, load_settings, mask
from headrace.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / ".headrace").mkdir()
    (tmp_path / ".headrace" / "endpoints.json").write_text(
        json.dumps({"kafka": {"bootstrap_servers": "stack:1"}, "redis": {"url": "redis://stack"}})
    )
    (tmp_path / "headrace.toml").write_text('[kafka]\nbootstrap_servers = "file:1"\npartitions = 7\n')
    return tmp_path


def test_flag_beats_environment_beats_file_beats_stack(folder: Path) -> None:
    def bootstrap(flags: dict[str, object], environ: dict[str, str]) -> str:
        return load_settings(flags, environ=environ, folder=folder).kafka.bootstrap_servers

    said = {"HEADRACE_KAFKA__BOOTSTRAP_SERVERS": "env:1"}
    assert bootstrap({}, {}) == "file:1"
    assert bootstrap({}, said) == "env:1"
    assert bootstrap({"kafka": {"bootstrap_servers": "flag:1"}}, said) == "flag:1"
    settings = load_settings(environ={}, folder=folder)
    assert (settings.redis.url, settings.kafka.partitions) == ("redis://stack", 7)


def test_explain_says_where_each_value_came_from(folder: Path) -> None:
    found = {o.key: o for o in explain(environ={"HEADRACE_REGISTRY__URL": "http://r"}, folder=folder)}
    assert found["registry.url"].source == "environment"
    assert found["kafka.partitions"].source == "headrace.toml"
    assert found["redis.url"].source == "local stack"
    assert found["connect.url"].source == "default"


def test_an_error_names_the_key_and_hides_the_value(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(environ={"HEADRACE_KAFKA__PARTITIONS": "hunter2"}, folder=folder)
    assert caught.value.where == "kafka.partitions"
    assert "hunter2" not in str(caught.value)


def test_unknown_keys_are_refused(folder: Path) -> None:
    (folder / "headrace.toml").write_text("[kafka]\nbotstrap = 1\n")
    with pytest.raises(ConfigError, match=r"kafka\.botstrap"):
        load_settings(environ={}, folder=folder)


def test_lists_and_tables_come_as_json(folder: Path) -> None:
    settings = load_settings(environ={"HEADRACE_DATABASES": '{"shop": "postgresql://x"}'}, folder=folder)
    assert settings.databases == {"shop": "postgresql://x"}
    with pytest.raises(ConfigError, match="HEADRACE_DATABASES"):
        load_settings(environ={"HEADRACE_DATABASES": "{oops"}, folder=folder)


@pytest.mark.parametrize(
    ("key", "value", "masked"),
    [
        ("postgres.url", "postgresql://me:secret@host/db", "postgresql://me:***@host/db"),
        ("kafka.sasl_password", "secret", "***"),
        ("lake.properties.s3.secret-access-key", "secret", "***"),
        ("redis.url", "redis://host:1/0", "redis://host:1/0"),
    ],
)
def test_secrets_are_masked(key: str, value: str, masked: str) -> None:
    assert mask(key, value) == masked
