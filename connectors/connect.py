"""Client of Kafka Connect's REST API: a connector file is validated, then applied, then watched until it runs.

The state of a connector is the worst state of any of its tasks: Connect calls a connector RUNNING whose every task has
failed.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from connectors.mysql import check_file, is_binlog
from connectors.secrets import holds_secret
from headrace.errors import ConfigError, ContractError, TerminalError, TransientError, UnavailableError
from schemas.envelope import UNAVAILABLE
from schemas.names import SIGNAL_TABLE

WORST_FIRST = ("FAILED", "UNASSIGNED", "RESTARTING", "STARTING", "STOPPED", "PAUSED", "RUNNING")
PLACEHOLDER = re.compile(r"\$\{([^:}]+):([^}]*)\}")
SETTLE_SECONDS = 2.0
STALE_SECONDS = 15.0
BINLOG_LOSSLESS = {
    "bigint.unsigned.handling.mode": "precise",
    "event.converting.failure.handling.mode": "fail",
    "enable.time.adjuster": "false",
    "driver.yearIsDateType": "false",
}
# What Debezium loses by default and need not, by connector class: docs/types.md says what each is for. At the driver's
# own threshold the first snapshot of a table fails that comes after its columns changed.
LOSSLESS = {
    "io.debezium.connector.postgresql.PostgresConnector": {
        "include.unknown.datatypes": "true",
        "interval.handling.mode": "string",
        "event.converting.failure.handling.mode": "fail",
        "driver.prepareThreshold": "0",
    },
    "io.debezium.connector.mariadb.MariaDbConnector": BINLOG_LOSSLESS,
    "io.debezium.connector.mysql.MySqlConnector": BINLOG_LOSSLESS,
}
LOSSY = {
    ("decimal.handling.mode", "double"): "rounds decimals",
    ("time.precision.mode", "connect"): "cuts microseconds off",
    ("bigint.unsigned.handling.mode", "long"): "makes numbers of 2^63 and more negative",
    ("enable.time.adjuster", "true"): "makes the years 1 to 99 those from 1970 to 2069",
    ("interval.handling.mode", "numeric"): "counts a month as 30.4375 days",
}


@dataclass(frozen=True)
class Connector:
    """One connector file: its name and its configuration, placeholders as written, with what `LOSSLESS` adds to it."""

    path: Path
    name: str
    config: dict[str, str]

    @property
    def placeholders(self) -> list[str]:
        return sorted({m.group(0) for value in self.config.values() for m in PLACEHOLDER.finditer(value)})


@dataclass(frozen=True)
class TaskStatus:
    id: int
    state: str
    worker: str
    trace: str = ""


@dataclass(frozen=True)
class ConnectorStatus:
    """`state` is the worst of the connector's own and its tasks' states, `reason` the first line of its trace."""

    name: str
    state: str
    reason: str = ""
    tasks: tuple[TaskStatus, ...] = ()

    @property
    def running(self) -> bool:
        return self.state == "RUNNING"


@dataclass(frozen=True)
class Problem:
    field: str
    message: str


def connector_files(content: Iterable[Path]) -> list[Path]:
    """Every `connectors/debezium/*.json` of the content folders."""
    return [path for folder in content for path in sorted((folder / "connectors" / "debezium").glob("*.json"))]


def load_connector(path: Path) -> Connector:
    """Read a connector file (`{"name": ..., "config": {...}}`, the shape that Connect's own API takes).

    Raises `ConfigError` when it cannot be read, `ContractError` naming file and field when Headrace could not keep its
    guarantees with it.
    """
    try:
        data = json.loads(path.read_text())
    except OSError as e:
        raise ConfigError(e.strerror or "cannot be read", where=str(path)) from e
    except ValueError as e:
        raise ConfigError(f"not valid JSON: {e}", where=str(path)) from e
    config = data.get("config") if isinstance(data, dict) else None
    if not isinstance(config, dict):
        raise ConfigError("has no config", where=str(path), hint='write {"name": ..., "config": {...}}')
    for key, value in config.items():
        if not isinstance(value, str | int | float | bool):
            raise ContractError("must be text, a number or true/false", where=f"{path}:{key}")
    text = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in config.items()}
    lossless = LOSSLESS.get(text.get("connector.class", ""), {})
    connector = Connector(path, str(data.get("name") or path.stem), lossless | text)
    _check(connector)
    return connector


def _check(connector: Connector) -> None:
    config, path = connector.config, connector.path
    if not config.get("connector.class"):
        raise ContractError("is missing", where=f"{path}:connector.class")
    if config.get("name", connector.name) != connector.name:
        raise ContractError(f"differs from the connector's name {connector.name!r}", where=f"{path}:name")
    for key, value in config.items():
        if holds_secret(key, value):
            raise ContractError("has a secret written in it", where=f"{path}:{key}", hint="write ${env:NAME} instead")
    signals = config.get("signal.data.collection", "")
    if signals and signals.rpartition(".")[2] != SIGNAL_TABLE:
        raise ContractError(
            f"must be a table named {SIGNAL_TABLE}: its topic is not landed",
            where=f"{path}:signal.data.collection",
            hint=f"write SCHEMA.{SIGNAL_TABLE}",
        )
    debezium = config["connector.class"].startswith("io.debezium.")
    if debezium and config.get("provide.transaction.metadata") != "true":
        raise ContractError(
            'must be "true": repeats after a crash are recognised by the order within the transaction',
            where=f"{path}:provide.transaction.metadata",
            hint="a table that repeats changes would count them twice",
        )
    for (key, value), loss in LOSSY.items():
        if debezium and config.get(key) == value:
            raise ContractError(f"{value!r} {loss}", where=f"{path}:{key}", hint="leave it out, or see docs/types.md")
    if debezium and config.get("unavailable.value.placeholder", UNAVAILABLE) != UNAVAILABLE:
        raise ContractError(
            f"must stay {UNAVAILABLE!r}: it is how unchanged large values are recognised",
            where=f"{path}:unavailable.value.placeholder",
            hint="leave it out",
        )
    if is_binlog(config):
        check_file(config, path)
    if debezium:
        _check_truncates(connector)


def _check_truncates(connector: Connector) -> None:
    """Debezium leaves truncations out by default, and writes them without a key, which Kafka refuses in a compacted
    topic: the connector would fail at the first TRUNCATE, and at any row of a table without a key."""
    if connector.config.get("skipped.operations", "t") != "none":
        raise ContractError(
            'must be "none": otherwise the rows of a TRUNCATE stay in the lake for ever',
            where=f"{connector.path}:skipped.operations",
        )
    policy = "topic.creation.default.cleanup.policy"
    if "compact" in connector.config.get(policy, ""):
        raise ContractError(
            "must not be compact: the connector fails at a TRUNCATE, and at a table without a key",
            where=f"{connector.path}:{policy}",
            hint='write "delete", and "topic.creation.default.retention.ms": "-1" to keep every change',
        )


def refusals(validation: dict[str, Any]) -> list[Problem]:
    """What Connect and the plugin say against the configuration, field by field, in their words.

    A placeholder that Connect handed on as it stood (no such provider, or no such variable) is named instead.
    """
    found = []
    for value in (entry.get("value") or {} for entry in validation.get("configs", [])):
        messages = value.get("errors") or []
        match = PLACEHOLDER.search(" ".join([str(value.get("value")), *messages]))
        if match:
            messages = [f"Connect knows no {match[2]!r} from its provider {match[1]!r}"]
        found += [Problem(str(value.get("name")), message) for message in messages]
    return found


def summarize(name: str, status: dict[str, Any]) -> ConnectorStatus:
    own = status.get("connector") or {}
    tasks = tuple(
        TaskStatus(task["id"], task["state"], task.get("worker_id", ""), task.get("trace", ""))
        for task in status.get("tasks") or []
    )
    states = [str(own.get("state", "UNASSIGNED")), *(task.state for task in tasks)]
    if states == ["RUNNING"]:
        states = ["STARTING"]
    worst = min(states, key=lambda s: WORST_FIRST.index(s) if s in WORST_FIRST else -1)
    traces = [own.get("trace", ""), *(task.trace for task in tasks)]
    return ConnectorStatus(name, worst, _reason(next((t for t in traces if t), "")), tasks)


def _reason(trace: str) -> str:
    """A trace in one line: what was thrown first, and the cause at its root, which says why."""
    lines = trace.splitlines()
    causes = [line.removeprefix("Caused by: ") for line in lines if line.startswith("Caused by: ")]
    first = lines[0] if lines else ""
    return f"{first} <- {causes[-1]}" if causes and causes[-1] not in first else first


@dataclass
class Connect:
    """`UnavailableError` when Connect cannot be reached or is rebalancing; `TerminalError` when it refuses."""

    url: str
    timeout: float = 30.0
    _client: httpx.Client = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._client = httpx.Client(base_url=self.url.rstrip("/"), timeout=self.timeout)

    def close(self) -> None:
        self._client.close()

    def call(self, method: str, path: str, *, body: Any = None, params: dict[str, str] | None = None) -> Any:
        """One request; its answer as data. Raises as the class says, and `ConfigError` for what is not there."""
        try:
            answer = self._client.request(method, path, json=body, params=params)
        except httpx.HTTPError as e:
            raise UnavailableError(
                f"cannot be reached: {e or type(e).__name__}", where=f"Connect at {self.url}", hint="headrace status"
            ) from e
        if answer.is_success:
            return answer.json() if answer.content else None
        try:
            message = str(answer.json().get("message"))
        except (ValueError, AttributeError):
            # Connect itself answers in JSON: this is its web server before Connect is there.
            if answer.status_code == 404:
                raise UnavailableError("is still starting", where=f"Connect at {self.url}") from None
            message = answer.text[:500]
        if answer.status_code in (409, 429, 502, 503, 504):
            raise UnavailableError(message, where=f"Connect at {self.url}")
        if answer.status_code == 404:
            raise ConfigError(message or "not found", where=path, hint="headrace connect status")
        raise TerminalError(f"answered {answer.status_code}: {message}", where=f"Connect at {self.url}")

    def validate(self, connector: Connector) -> list[Problem]:
        """Everything that is wrong with the configuration; empty when Connect would take it."""
        name = connector.config["connector.class"]
        plugins = [plugin["class"] for plugin in self.call("GET", "/connector-plugins")]
        if name not in plugins:
            return [Problem("connector.class", f"Connect has no plugin {name}; it has {', '.join(plugins)}")]
        body = connector.config | {"name": connector.name}
        return refusals(self.call("PUT", f"/connector-plugins/{quote(name, safe='')}/config/validate", body=body))

    def check(self, connector: Connector) -> None:
        """Raise `ContractError` with Connect's own messages, `where` = file and first field."""
        problems = self.validate(connector)
        if problems:
            text = "; ".join(p.message if i == 0 else f"{p.field}: {p.message}" for i, p in enumerate(problems))
            placeholders = connector.placeholders
            hint = f"from Connect's environment: {', '.join(placeholders)}" if placeholders else ""
            raise ContractError(text, where=f"{connector.path}:{problems[0].field}", hint=hint)

    def plan(self, connector: Connector) -> str:
        """What `apply` would do: "create", "update" or "none". Changes nothing."""
        try:
            current = self.call("GET", f"/connectors/{quote(connector.name, safe='')}/config")
        except ConfigError:
            return "create"
        return "none" if current == connector.config | {"name": connector.name} else "update"

    def apply(self, connector: Connector, *, timeout: float = 60.0) -> ConnectorStatus:
        """Validate, put, wait until every task runs. Idempotent; failed tasks of an unchanged connector are restarted.

        Raises `ContractError` for a bad file, `TerminalError` with the trace's first line when a task fails,
        `UnavailableError` when it does not run in time.
        """
        self.check(connector)
        name = quote(connector.name, safe="")
        deadline = time.monotonic() + timeout
        unchanged, before = self.plan(connector) == "none", self._failure(connector.name)
        self._patiently("PUT", f"/connectors/{name}/config", deadline, body=connector.config | {"name": connector.name})
        if unchanged and before is not None:
            self.restart(connector.name)
        return self._await_running(connector.name, deadline, before)

    def _failure(self, name: str) -> ConnectorStatus | None:
        """The status of a connector that has failed; None for one that has not, or is not there."""
        try:
            status = self.status(name)
        except ConfigError:
            return None
        return status if status.state == "FAILED" else None

    def _patiently(self, method: str, path: str, deadline: float, body: Any = None) -> None:
        """Connect refuses while it rebalances (409); that passes in seconds."""
        while True:
            try:
                self.call(method, path, body=body)
                return
            except TransientError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def _await_running(self, name: str, deadline: float, before: ConnectorStatus | None) -> ConnectorStatus:
        """A state counts when it has stood for a moment, and for longer when it is the one of `before`: after a change
        Connect still shows that until the tasks have started."""
        state, since = "", time.monotonic()
        while True:
            try:
                status = self.status(name)
            except (ConfigError, UnavailableError):
                status = ConnectorStatus(name, "STARTING")
            now = time.monotonic()
            if status.state != state:
                state, since = status.state, now
            before = before if status == before else None
            if now - since >= (SETTLE_SECONDS if before is None else STALE_SECONDS):
                if state == "RUNNING":
                    return status
                if state == "FAILED":
                    raise TerminalError(
                        status.reason or "failed without a trace",
                        where=f"connector {name}",
                        hint=f"mend it, then headrace connect restart {name}",
                    )
            if now > deadline:
                raise UnavailableError(f"still {state}", where=f"connector {name}", hint="headrace logs connect")
            time.sleep(0.25)

    def status(self, name: str) -> ConnectorStatus:
        return summarize(name, self.call("GET", f"/connectors/{quote(name, safe='')}/status"))

    def statuses(self) -> list[ConnectorStatus]:
        """Every connector, by name."""
        found = self.call("GET", "/connectors", params={"expand": "status"})
        return [summarize(name, found[name]["status"]) for name in sorted(found)]

    def configs(self) -> dict[str, dict[str, str]]:
        """Configuration of every connector by name, placeholders as written."""
        found = self.call("GET", "/connectors", params={"expand": "info"})
        return {name: found[name]["info"]["config"] for name in sorted(found)}

    def traces(self, name: str) -> str:
        """Everything that the connector and its tasks have thrown, whole; empty when nothing."""
        status = self.call("GET", f"/connectors/{quote(name, safe='')}/status")
        parts = [status.get("connector") or {}, *(status.get("tasks") or [])]
        return "\n".join(part["trace"].rstrip() for part in parts if part.get("trace"))

    def restart(self, name: str, *, only_failed: bool = True) -> None:
        """Restart what has failed of the connector (itself and tasks), or all of it; returns at once."""
        params = {"includeTasks": "true", "onlyFailed": str(only_failed).lower()}
        self.call("POST", f"/connectors/{quote(name, safe='')}/restart", params=params)

    def restart_all(self, name: str, *, timeout: float = 60.0) -> ConnectorStatus:
        """Restart the connector and its tasks, also those that run, and wait until all do: it looks at its tables anew.

        Raises what `apply` raises.
        """
        before = self.status(name)
        self.restart(name, only_failed=False)
        return self._await_running(name, time.monotonic() + timeout, before)

    def remove(self, name: str) -> None:
        """Remove the connector and wait until it is gone. Its topics, offsets and replication slot stay."""
        deadline = time.monotonic() + self.timeout
        self._patiently("DELETE", f"/connectors/{quote(name, safe='')}", deadline)
        while time.monotonic() < deadline:
            try:
                self.status(name)
            except ConfigError:
                return
            time.sleep(0.1)
        raise UnavailableError("is still there", where=f"connector {name}", hint="headrace connect status")
