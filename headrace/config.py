"""One resolver for every setting: flag > environment > file > the local stack's own endpoints > default.

The file is `headrace.toml` in the current folder; environment variables are `HEADRACE_SECTION__KEY`. A running
local stack writes its endpoints to `<home>/endpoints.json`, in the same shape as the file, so that commands find the
servers that `headrace up` started without being told; anything said elsewhere wins over it.
Secrets (passwords in URLs, S3 keys) come from environment or files outside the repository, never from flags.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from headrace.errors import ConfigError

ENV_PREFIX = "HEADRACE_"


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KafkaSettings(Section):
    bootstrap_servers: str = "127.0.0.1:9092"
    security_protocol: str = "PLAINTEXT"
    sasl_mechanism: str | None = None
    sasl_username: str | None = None
    sasl_password: str | None = Field(None, repr=False)
    ssl_cafile: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_keypassword: str | None = Field(None, repr=False)
    partitions: int = Field(4, ge=1, description="partitions of topics that Headrace creates")
    replication_factor: int = Field(1, ge=1)


class RegistrySettings(Section):
    url: str = Field("http://127.0.0.1:8081/apis/ccompat/v7", description="a Confluent-compatible API")


class ConnectSettings(Section):
    url: str = "http://127.0.0.1:8083"


class PostgresSettings(Section):
    url: str = Field("postgresql://postgres@127.0.0.1:5432/postgres", description="admin URL of the server")


class MariadbSettings(Section):
    url: str = Field("mysql://root@127.0.0.1:3306", description="admin URL of the server")


class RedisSettings(Section):
    url: str = "redis://127.0.0.1:6379/0"


class MqttSettings(Section):
    url: str = "mqtt://127.0.0.1:1883"
    topics: dict[str, str] = Field(
        default_factory=dict, description="MQTT topic filter -> name of the contract its messages follow"
    )


class LakeSettings(Section):
    catalog: str = "headrace"
    uri: str = Field("", description="catalog: postgresql+psycopg://..., sqlite:///... or an Iceberg REST URL")
    warehouse: str = Field("", description="file:///folder or s3://bucket/prefix")
    properties: dict[str, str] = Field(default_factory=dict, description="further pyiceberg catalog properties")


Retyped = Literal["quarantine", "column"]


class SinkSettings(Section):
    freshness_seconds: float = Field(5.0, gt=0, description="a table is committed at least this often")
    max_rows: int = Field(1_000_000, ge=1, description="or when this many rows wait")
    compact_every: int = Field(30, ge=2, description="commits of a table between compactions")
    file_bytes: int = Field(64 << 20, ge=1 << 20, description="size that compaction makes of small files")
    keep_snapshots_seconds: float = Field(3600.0, ge=0, description="how long `sql --as-of` finds snapshots")
    max_index_bytes: int = Field(4 << 30, ge=1 << 20, description="memory for the key indexes of all tables together")
    exclude: list[str] = Field(default_factory=list, description="topics (regular expressions) never landed")
    retyped: Retyped = Field(
        "quarantine", description="rows whose column has another type now: quarantine, or column for one of its own"
    )


class WorkerSettings(Section):
    application: str = "headrace"
    session_timeout_seconds: float = Field(10.0, gt=0)
    commit_interval_seconds: float = Field(1.0, gt=0)


class ProcessSettings(Section):
    name: str = "headrace"
    host: str = "127.0.0.1"
    port: int = Field(0, ge=0, le=65535, description="of metrics and health; 0 takes a free one")


class Settings(Section):
    """Everything a process may be told. `databases` names the source databases that `verify` may read."""

    home: Path = Field(Path(".headrace"), description="state of the local stack")
    content: list[Path] = Field(
        default_factory=lambda: [Path(".")],
        description="folders with contracts, connectors, agents, KPIs, syncs",
    )
    kafka: KafkaSettings = KafkaSettings()
    registry: RegistrySettings = RegistrySettings()
    connect: ConnectSettings = ConnectSettings()
    postgres: PostgresSettings = PostgresSettings()
    mariadb: MariadbSettings = MariadbSettings()
    redis: RedisSettings = RedisSettings()
    mqtt: MqttSettings = MqttSettings()
    lake: LakeSettings = LakeSettings()
    sink: SinkSettings = SinkSettings()
    worker: WorkerSettings = WorkerSettings()
    process: ProcessSettings = ProcessSettings()
    databases: dict[str, str] = Field(
        default_factory=dict, description="connector's topic.prefix -> URL of its source database"
    )
    targets: dict[str, str] = Field(default_factory=dict, description="reverse-ETL target name -> URL")
    endpoints: dict[str, str] = Field(
        default_factory=dict, description="Headrace process -> base URL of its metrics and health"
    )

    @property
    def state(self) -> Path:
        return self.home.resolve()


@dataclass(frozen=True)
class Origin:
    """One resolved value and the layer it came from, for `headrace config explain`."""

    key: str
    value: Any
    source: str


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        out[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return out


def _environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """`HEADRACE_KAFKA__BOOTSTRAP_SERVERS=x` -> {"kafka": {"bootstrap_servers": "x"}}; lists and tables are JSON."""
    out: dict[str, Any] = {}
    for name, raw in environ.items():
        if not name.startswith(ENV_PREFIX):
            continue
        path = name[len(ENV_PREFIX) :].lower().split("__")
        if path[0] not in Settings.model_fields:
            continue
        value: Any = raw
        if raw[:1] in "[{":
            try:
                value = json.loads(raw)
            except json.JSONDecodeError as e:
                raise ConfigError("not valid JSON", where=name) from e
        elif path == ["content"]:
            value = raw.split(os.pathsep)
        at = out
        for part in path[:-1]:
            at = at.setdefault(part, {})
        at[path[-1]] = value
    return out


def _read(path: Path, parse: Any) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = parse(path.read_text())
    except ValueError as e:
        raise ConfigError(f"cannot be read: {e}", where=str(path)) from e
    if not isinstance(data, dict):
        raise ConfigError("must hold a table", where=str(path))
    return data


def _layers(
    flags: Mapping[str, Any] | None, environ: Mapping[str, str], folder: Path
) -> list[tuple[str, dict[str, Any]]]:
    """Lowest precedence first."""
    file = _read(folder / "headrace.toml", tomllib.loads)
    env = _environment(environ)
    said = dict(flags or {})
    home = Path(said.get("home") or env.get("home") or file.get("home") or Settings.model_fields["home"].default)
    if not home.is_absolute():
        home = folder / home
    stack = _read(home / "endpoints.json", json.loads)
    layers = [("local stack", stack), ("headrace.toml", file), ("environment", env), ("flag", said)]
    return [*layers, ("resolved", {"home": home})]


def load_settings(
    flags: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Settings:
    """Resolve all layers into one object.

    Raises `ConfigError` naming the key, never its value (it may be a secret).
    """
    merged: dict[str, Any] = {}
    for _, layer in _layers(flags, os.environ if environ is None else environ, folder or Path.cwd()):
        merged = _merge(merged, layer)
    try:
        return Settings.model_validate(merged)
    except ValidationError as e:
        first = e.errors(include_input=False, include_url=False)[0]
        raise ConfigError(
            first["msg"], where=".".join(map(str, first["loc"])), hint="see `headrace config explain`"
        ) from None


def _flatten(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, name + ".")
        else:
            yield name, value


def explain(
    flags: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> list[Origin]:
    """Every setting, its resolved value and the layer that it came from. Passwords are masked."""
    settings = load_settings(flags, environ=environ, folder=folder)
    sources: dict[str, str] = {}
    for name, layer in _layers(flags, os.environ if environ is None else environ, folder or Path.cwd()):
        if name != "resolved":
            sources.update({key: name for key, _ in _flatten(layer)})
    return [
        Origin(key, mask(key, value), sources.get(key, "default"))
        for key, value in _flatten(settings.model_dump(mode="json"))
    ]


def mask(key: str, value: Any) -> Any:
    """The value with any secret in it replaced by `***`."""
    if not isinstance(value, str):
        return value
    if any(word in key.lower() for word in ("password", "secret", "access-key", "access_key", "token")):
        return "***" if value else value
    scheme, sep, rest = value.partition("://")
    credentials, at, host = rest.rpartition("@")
    if sep and at and ":" in credentials:
        return f"{scheme}://{credentials.split(':', 1)[0]}:***@{host}"
    return value
