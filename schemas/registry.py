"""The schema registry (Confluent's API), remembered on disk: an id that was once seen never needs the server again.

An id is pinned to the SHA-256 of its schema. What the disk knows is compared with what the registry says, once a
process and then from time to time: a registry that was restored from a backup, or filled anew in another order, gives
old ids new meanings, and every record decoded after that would be nonsense.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import stamina

from headrace.errors import ContractError, IdentityError, SchemaNotFoundError, UnavailableError
from headrace.logs import get_logger
from schemas.avro import canonical

_log = get_logger(__name__)
_JSON = "application/vnd.schemaregistry.v1+json"
# How long an id that the registry did not know is taken as unknown without asking again.
_UNKNOWN_SECONDS = 10.0
_MAX_UNKNOWN = 100_000
_RETRY_CHECK_SECONDS = 30.0
_MAX_ID = 2**31 - 1


@dataclass(frozen=True)
class Version:
    """A schema as a subject has it."""

    subject: str
    version: int
    id: int
    schema: dict[str, Any]


@dataclass
class _Pin:
    schema: dict[str, Any]
    digest: str
    check_at: float


def digest(schema: Mapping[str, Any]) -> str:
    """SHA-256 of a schema, the same for any order of its keys."""
    return hashlib.sha256(canonical(schema).encode()).hexdigest()


class Registry:
    """A client of one registry. Blocking; safe in threads.

    Every method raises `UnavailableError` when the registry cannot be reached or answers with a 5xx, after trying for
    `patience` seconds (0: once). `check_seconds` is how often an id in use is compared with the registry again.
    """

    def __init__(
        self, url: str, cache_dir: Path | None = None, *, patience: float = 5.0, check_seconds: float = 300.0
    ) -> None:
        self.url = url.rstrip("/")
        self._cache = cache_dir / hashlib.sha256(self.url.encode()).hexdigest()[:16] if cache_dir else None
        self._client = httpx.Client(
            timeout=httpx.Timeout(2.0, connect=1.0),
            headers={"Accept": f"{_JSON}, */*"},
            # Without TLS there is nothing to verify, and no need to read all the certificates at every start.
            verify=not self.url.lower().startswith("http:"),
        )
        self._patience = patience
        self._check_seconds = check_seconds
        self._pins: dict[int, _Pin] = {}
        self._unknown: dict[int, float] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        self._client.close()

    def schema(self, schema_id: int) -> dict[str, Any]:
        """The schema of an id; the same object while it is the same schema.

        Known ids are answered without the registry when that is away. Raises `SchemaNotFoundError` when the registry
        does not know the id, `IdentityError` when the id meant another schema before, `ContractError` when the schema
        is not Avro.
        """
        pin = self._pins.get(schema_id)
        if pin is not None and time.monotonic() < pin.check_at:
            return pin.schema
        with self._lock:
            pin = self._pins.get(schema_id) or self._read(schema_id)
            if pin is None:
                return self._first(schema_id)
            if time.monotonic() >= pin.check_at:
                self._compare(schema_id, pin)
            self._pins[schema_id] = pin
            return pin.schema

    def register(self, subject: str, schema: Mapping[str, Any]) -> int:
        """Register a schema under a subject and return its id; the id it has when it is there already.

        Raises `ContractError` with the registry's words when it refuses: incompatible or not valid.
        """
        answer = self._ask("POST", f"/subjects/{quote(subject, safe='')}/versions", _body(schema), where=subject)
        return int(answer["id"])

    def latest(self, subject: str) -> Version:
        """The newest version of a subject. Raises `SchemaNotFoundError` when there is none."""
        return self.version(subject, "latest")

    def version(self, subject: str, version: int | str) -> Version:
        """Raises `SchemaNotFoundError` when the subject has no such version."""
        answer = self._ask("GET", f"/subjects/{quote(subject, safe='')}/versions/{version}", where=subject)
        return Version(subject, int(answer["version"]), int(answer["id"]), _avro(answer, subject))

    def versions(self, subject: str) -> list[int]:
        """Numbers of a subject's versions, ascending; none when the subject does not exist."""
        try:
            return sorted(self._ask("GET", f"/subjects/{quote(subject, safe='')}/versions", where=subject))
        except SchemaNotFoundError:
            return []

    def created(self, subject: str) -> dict[int, str]:
        """When versions of a subject were registered, in ISO 8601. Confluent's API does not say: only Apicurio's own
        does, so the dates are missing elsewhere. Raises `UnavailableError`."""
        base, found, _ = self.url.partition("/apis/ccompat/")
        if not found:
            return {}
        url = f"{base}/apis/registry/v3/groups/default/artifacts/{quote(subject, safe='')}/versions"
        try:
            response = self._client.get(url, params={"limit": "1000"})
            if response.status_code != 200:
                return {}
            return {int(v["version"]): str(v["createdOn"]) for v in response.json()["versions"]}
        except httpx.HTTPError as e:
            raise UnavailableError(f"the registry at {self.url} cannot be reached: {type(e).__name__}") from e
        except (ValueError, KeyError, TypeError):
            return {}

    def subjects(self) -> list[str]:
        return sorted(self._ask("GET", "/subjects"))

    def compatible(self, subject: str, schema: Mapping[str, Any]) -> bool:
        """Whether the subject's rules let the schema follow its latest version; true when there is none yet."""
        path = f"/compatibility/subjects/{quote(subject, safe='')}/versions/latest"
        try:
            return bool(self._ask("POST", path, _body(schema), where=subject)["is_compatible"])
        except SchemaNotFoundError:
            return True

    def set_compatibility(self, subject: str, level: str) -> bool:
        """Make the registry hold new versions of a subject to a level (BACKWARD, FULL, ...).

        False when this registry does not let its clients say so.
        """
        try:
            self._ask("PUT", f"/config/{quote(subject, safe='')}", {"compatibility": level}, where=subject)
        except (ContractError, SchemaNotFoundError):
            return False
        return True

    def _first(self, schema_id: int) -> dict[str, Any]:
        where = f"schema id {schema_id}"
        if schema_id > _MAX_ID or time.monotonic() < self._unknown.get(schema_id, 0.0):
            raise SchemaNotFoundError("the registry does not know it", where=where)
        try:
            schema = self._fetch(schema_id)
        except SchemaNotFoundError:
            if len(self._unknown) >= _MAX_UNKNOWN:
                self._unknown.clear()
            self._unknown[schema_id] = time.monotonic() + _UNKNOWN_SECONDS
            raise
        pin = _Pin(schema, digest(schema), time.monotonic() + self._check_seconds)
        self._write(schema_id, pin)
        self._pins[schema_id] = pin
        return schema

    def _compare(self, schema_id: int, pin: _Pin) -> None:
        try:
            found = digest(self._fetch(schema_id, patient=False))
        except UnavailableError:
            pin.check_at = time.monotonic() + _RETRY_CHECK_SECONDS
            return
        except SchemaNotFoundError:
            _log.warning("schema is gone from the registry", schema_id=schema_id, registry=self.url)
            pin.check_at = time.monotonic() + self._check_seconds
            return
        if found != pin.digest:
            raise IdentityError(
                "the registry gives this id another schema than before",
                where=f"schema id {schema_id} at {self.url}",
                hint="it was restored or refilled: bring its old content back, or adopt the new one by clearing "
                "the schema cache once no topic holds records of the old",
            )
        pin.check_at = time.monotonic() + self._check_seconds

    def _fetch(self, schema_id: int, *, patient: bool = True) -> dict[str, Any]:
        where = f"schema id {schema_id}"
        return _avro(self._ask("GET", f"/schemas/ids/{schema_id}", where=where, patient=patient), where)

    def _ask(self, method: str, path: str, body: Any = None, *, where: str = "", patient: bool = True) -> Any:
        for attempt in stamina.retry_context(
            on=UnavailableError,
            attempts=None if patient and self._patience > 0 else 1,
            timeout=self._patience or None,
            wait_initial=0.1,
            wait_max=1.0,
        ):
            with attempt:
                return self._ask_once(method, path, body, where or path)
        raise AssertionError("unreachable")

    def _ask_once(self, method: str, path: str, body: Any, where: str) -> Any:
        try:
            headers = {"Content-Type": _JSON} if body is not None else None
            response = self._client.request(
                method, self.url + path, content=json.dumps(body) if body is not None else None, headers=headers
            )
            if response.status_code >= 500 or response.status_code == 429:
                raise UnavailableError(f"the registry answered {response.status_code}", where=where)
            if response.status_code == 404:
                # Only the registry's own words count: a wrong URL must not make every record's schema unknown.
                if str(response.json()["error_code"]).startswith("404"):
                    raise SchemaNotFoundError("the registry does not know it", where=where)
                raise UnavailableError("the registry answered 404", where=where)
            if response.status_code >= 400:
                raise ContractError(f"the registry refused: {_words(response)}", where=where)
            return response.json()
        except httpx.HTTPError as e:
            raise UnavailableError(f"the registry at {self.url} cannot be reached: {type(e).__name__}") from e
        except (ValueError, KeyError, TypeError) as e:
            raise UnavailableError(
                "what answered does not speak like a registry", where=self.url + path, hint="is registry.url right?"
            ) from e

    def _path(self, schema_id: int) -> Path | None:
        return self._cache / f"{schema_id}.json" if self._cache is not None else None

    def _read(self, schema_id: int) -> _Pin | None:
        path = self._path(schema_id)
        if path is None or not path.is_file():
            return None
        try:
            kept = json.loads(path.read_text())
            pin = _Pin(kept["schema"], kept["sha256"], 0.0)
        except (ValueError, KeyError, TypeError):
            pin = None
        if pin is None or digest(pin.schema) != pin.digest:
            _log.warning("damaged file in the schema cache, asking the registry", schema_id=schema_id)
            return None
        return pin

    def _write(self, schema_id: int, pin: _Pin) -> None:
        path = self._path(schema_id)
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "w") as file:
            json.dump({"id": schema_id, "sha256": pin.digest, "schema": pin.schema}, file)
        os.replace(name, path)


def _body(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"schema": json.dumps(schema), "schemaType": "AVRO"}


def _avro(answer: Mapping[str, Any], where: str) -> dict[str, Any]:
    if answer.get("schemaType", "AVRO") != "AVRO":
        raise ContractError(f"its schema is {answer['schemaType']}, not AVRO", where=where)
    if answer.get("references"):
        raise ContractError("its schema refers to other subjects", where=where, hint="register it in one piece")
    try:
        schema = json.loads(answer["schema"])
    except (KeyError, ValueError) as e:
        raise ContractError("the registry's schema is no JSON", where=where) from e
    return schema if isinstance(schema, dict) else {"type": schema}


def _words(response: httpx.Response) -> str:
    try:
        return str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        return f"status {response.status_code}"
