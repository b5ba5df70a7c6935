"""JSON rows as columns, by contract: each value is what its field says, or its row is refused with the field's name.

Nothing is guessed: no text for a number, no number for text, no field that the contract does not know, no time without
its zone. Points in time are ISO 8601 text with an offset, or a number of milliseconds since the epoch; dates are
`YYYY-MM-DD` or days since the epoch; decimals are text or numbers with no more digits than the contract has; bytes are
base64 text. A field that is missing takes its default, or null where it may be null.
"""

from __future__ import annotations

import base64
import binascii
import math
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.avro import NO_DEFAULT, Field, Node, parse
from schemas.types import LOCAL_MICROS, UTC_MICROS, YEARS_MICROS, arrow_schema, branch_names, meaning, nullable

Convert = Callable[[Any], Any]

_MISSING: Any = object()
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_INT32 = (-(2**31), 2**31 - 1)
_INT64 = (-(2**63), 2**63 - 1)
_MAX_FLOAT = 3.4028234663852886e38
_DAYS = (date.min.toordinal() - date(1970, 1, 1).toordinal(), date.max.toordinal() - date(1970, 1, 1).toordinal())


class _Bad(Exception):
    """A value that is not what its type says; `path` grows while it passes the types around it."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.message, self.path = message, path

    def inside(self, name: str) -> _Bad:
        return _Bad(self.message, f"{name}.{self.path}".rstrip("."))


@dataclass(frozen=True)
class RowError:
    """Why a row was refused: its index in the input, the field ("" for the whole row), what is wrong with it.

    `rule` is one of few: the contract's rule that it breaks, or what else rows must be, such as of its `schema`.
    """

    index: int
    field: str
    message: str
    rule: str = "schema"


@dataclass(frozen=True)
class Converted:
    """`batch` holds the good rows in order, `rows[i]` the input index of its row i; the others have one error each."""

    batch: pa.RecordBatch
    rows: npt.NDArray[np.int64]
    errors: list[RowError]


class JsonConverter:
    """Converts rows of one record schema. Raises `ContractError` when made for a schema that has no columns."""

    def __init__(self, avro: dict[str, Any]) -> None:
        root = parse(avro)
        self.schema = arrow_schema(avro)
        self._names = frozenset(f.name for f in root.fields)
        self._fields = [(f.name, _converter(f.node), _default(f)) for f in root.fields]

    def convert(self, rows: Sequence[Any]) -> Converted:
        """Never raises for what `rows` hold."""
        errors: dict[int, RowError] = {}
        objects: list[dict[str, Any]] = []
        for index, row in enumerate(rows):
            if not isinstance(row, dict):
                errors[index] = RowError(index, "", "must be an object")
                objects.append({})
                continue
            objects.append(row)
            if not row.keys() <= self._names:
                unknown = min(row.keys() - self._names)
                errors[index] = RowError(index, unknown, "is not in the contract")
        columns = [self._column(name, convert, default, objects, errors) for name, convert, default in self._fields]
        good = [index for index in range(len(objects)) if index not in errors]
        arrays = [
            pa.array([column[i] for i in good] if errors else column, field.type)
            for column, field in zip(columns, self.schema, strict=True)
        ]
        batch = pa.RecordBatch.from_arrays(arrays, schema=self.schema)
        return Converted(batch, np.array(good, np.int64), [errors[index] for index in sorted(errors)])

    @staticmethod
    def _column(
        name: str, convert: Convert, default: Any, rows: list[dict[str, Any]], errors: dict[int, RowError]
    ) -> list[Any]:
        out: list[Any] = []
        for index, row in enumerate(rows):
            value = row.get(name, _MISSING)
            try:
                if value is not _MISSING:
                    out.append(convert(value))
                    continue
                if default is _MISSING:
                    raise _Bad("is missing")
                out.append(default)
            except _Bad as e:
                errors.setdefault(index, RowError(index, e.inside(name).path, e.message))
                out.append(None)
        return out


def _default(field: Field) -> Any:
    if field.default is not NO_DEFAULT:
        node = field.node
        first = node.branches[0] if node.kind == "union" else node
        if first.kind in ("bytes", "fixed") and isinstance(field.default, str):
            return field.default.encode("latin-1")
        return _converter(node)(field.default)
    return None if nullable(field.node) else _MISSING


def _converter(node: Node) -> Convert:
    if node.kind == "record":
        return _record(node)
    if node.kind in ("array", "map"):
        return _repeated(node)
    if node.kind == "union":
        return _union(node)
    return _leaf(node)


def _record(node: Node) -> Convert:
    fields = [(f.name, _converter(f.node), _default(f)) for f in node.fields]
    names = frozenset(name for name, _, _ in fields)

    def convert(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _Bad("must be an object")
        if not value.keys() <= names:
            raise _Bad("is not in the contract", min(value.keys() - names))
        out = {}
        for name, inner, default in fields:
            given = value.get(name, _MISSING)
            if given is _MISSING and default is _MISSING:
                raise _Bad("is missing", name)
            try:
                out[name] = default if given is _MISSING else inner(given)
            except _Bad as e:
                raise e.inside(name) from None
        return out

    return convert


def _repeated(node: Node) -> Convert:
    assert node.items is not None
    inner = _converter(node.items)

    def array(value: Any) -> Any:
        if not isinstance(value, list):
            raise _Bad("must be an array")
        out = []
        for index, item in enumerate(value):
            try:
                out.append(inner(item))
            except _Bad as e:
                raise e.inside(f"[{index}]") from None
        return out

    def mapping(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _Bad("must be an object")
        out = []
        for key, item in value.items():
            try:
                out.append((key, inner(item)))
            except _Bad as e:
                raise e.inside(key) from None
        return out

    return array if node.kind == "array" else mapping


def _union(node: Node) -> Convert:
    if node.optional is not None:
        some = _converter(node.optional)
        return lambda value: None if value is None else some(value)
    names = branch_names(node)
    branches = [(name, _converter(branch)) for name, branch in zip(names, node.branches, strict=True) if name]
    optional = node.null_index >= 0

    def convert(value: Any) -> Any:
        if value is None and optional:
            return None
        for name, branch in branches:
            try:
                return {name: branch(value)}
            except _Bad:
                continue
        raise _Bad("must be one of " + ", ".join(name for name, _ in branches))

    return convert


def _leaf(node: Node) -> Convert:
    arrow = meaning(node).arrow
    if arrow in (UTC_MICROS, LOCAL_MICROS):
        return _timestamp(zoned=arrow == UTC_MICROS)
    if pa.types.is_date(arrow):
        return _date
    if pa.types.is_time(arrow):
        return _time
    if pa.types.is_decimal(arrow):
        return _decimal(arrow.precision, arrow.scale)
    if node.kind == "enum":
        symbols = frozenset(node.symbols)

        def symbol(value: Any) -> Any:
            if not isinstance(value, str) or value not in symbols:
                raise _Bad("must be one of " + ", ".join(node.symbols))
            return value

        return symbol
    if node.kind in ("int", "long"):
        return _integer(*(_INT32 if node.kind == "int" else _INT64))
    if node.kind in ("bytes", "fixed"):
        return _bytes(node.size if node.kind == "fixed" else None)
    if node.kind == "string" and node.attributes.get("logicalType") == "uuid":
        return _uuid
    return {"null": _null, "boolean": _boolean, "float": _float, "double": _double, "string": _string}[node.kind]


def _null(value: Any) -> Any:
    if value is not None:
        raise _Bad("must be null")
    return None


def _boolean(value: Any) -> Any:
    if value is not True and value is not False:
        raise _Bad("must be true or false")
    return value


def _string(value: Any) -> Any:
    if not isinstance(value, str):
        raise _Bad("must be text")
    return value


def _double(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Bad("must be a number")
    return float(value)


def _float(value: Any) -> Any:
    number = _double(value)
    if abs(number) > _MAX_FLOAT:
        raise _Bad("is too large for a float")
    return number


def _integer(low: int, high: int) -> Convert:
    def convert(value: Any) -> Any:
        if type(value) is float and value.is_integer() and abs(value) <= 2**53:
            value = int(value)
        if type(value) is not int:
            raise _Bad("must be a whole number")
        if not low <= value <= high:
            raise _Bad(f"must be between {low} and {high}")
        return value

    return convert


def _bytes(size: int | None) -> Convert:
    def convert(value: Any) -> Any:
        try:
            data = base64.b64decode(value if isinstance(value, str) else "?", validate=True)
        except (binascii.Error, ValueError):
            raise _Bad("must be base64 text") from None
        if size is not None and len(data) != size:
            raise _Bad(f"must be {size} bytes")
        return data

    return convert


def _uuid(value: Any) -> Any:
    try:
        return str(uuid.UUID(_string(value)))
    except ValueError:
        raise _Bad("must be a UUID") from None


def _decimal(precision: int, scale: int) -> Convert:
    def convert(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise _Bad("must be a decimal number")
        try:
            number = Decimal(str(value))
        except InvalidOperation:
            raise _Bad("must be a decimal number") from None
        if not number.is_finite():
            raise _Bad("must be a decimal number")
        digits = number.normalize().as_tuple()
        places = -int(digits.exponent)
        if places > scale:
            raise _Bad(f"has more than {scale} decimals")
        if len(digits.digits) - places > precision - scale and number:
            raise _Bad(f"has more than {precision - scale} digits before the point")
        return number

    return convert


def _timestamp(*, zoned: bool) -> Convert:
    def convert(value: Any) -> Any:
        if isinstance(value, str):
            try:
                moment = datetime.fromisoformat(value)
            except ValueError:
                raise _Bad("must be ISO 8601 or milliseconds since the epoch") from None
            if zoned and moment.tzinfo is None:
                raise _Bad("has no time zone")
            if not zoned and moment.tzinfo is not None:
                raise _Bad("must not have a time zone")
            return (moment.replace(tzinfo=moment.tzinfo or UTC) - _EPOCH) // _MICROSECOND
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise _Bad("must be ISO 8601 or milliseconds since the epoch")
        micros = round(value * 1000)
        if not YEARS_MICROS[0] <= micros <= YEARS_MICROS[1]:
            raise _Bad("is beyond the years 1 to 9999")
        return micros

    return convert


def _date(value: Any) -> Any:
    if type(value) is int and _DAYS[0] <= value <= _DAYS[1]:
        return date.fromordinal(date(1970, 1, 1).toordinal() + value)
    try:
        return date.fromisoformat(_string(value))
    except (ValueError, _Bad):
        raise _Bad("must be YYYY-MM-DD or days since the epoch") from None


def _time(value: Any) -> Any:
    try:
        found = time.fromisoformat(_string(value))
    except (ValueError, _Bad):
        raise _Bad("must be HH:MM:SS") from None
    if found.tzinfo is not None:
        raise _Bad("must not have a time zone")
    return found
