"""Quality rules of a contract as masks over whole batches.

A field's rules are `between A B`, `min A`, `max B`, `pattern REGEX` (RE2, anywhere in the text unless anchored),
`one_of [a, b]`, `length N` or `length A B`, `not_empty`, `not_null`, `finite`, `not_in_future DURATION`; a record's
`rules` are SQL conditions over its fields (`schemas.expressions`). Null passes every rule but `not_null`, a condition
that is unknown passes. Two rules are implied: a field that is not nullable is `not_null`, and a value has its field's
type (which matters where others write the schema, as for database tables). NaN and infinity fail every bound.

What a time is compared with in `not_in_future` is when Kafka got the record, not the clock: a replay decides the same.
"""

from __future__ import annotations

import difflib
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from dataclasses import field as hidden

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import ContractError
from schemas.contracts import Contract, FieldSpec
from schemas.durations import parse_duration
from schemas.expressions import compile_expression
from schemas.shape import all_true, conform, conform_column
from schemas.types import arrow_schema

MASKED = "***"
VALUE_LENGTH = 200

Times = npt.NDArray[np.int64]
# A column of the field's type and the times of receipt in ms -> true where the rule holds, null where unknown.
Check = Callable[[pa.Array, Callable[[], Times]], pa.BooleanArray]

_NUMBER = r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?"
_TIME = r"\d{4}-\d\d-\d\d(?:[T ][0-9:.]+(?:Z|[+-]\d\d:\d\d)?)?"


@dataclass(frozen=True)
class Rule:
    """One compiled rule. `field` is the dotted path of its field, "" for a rule over the record."""

    name: str
    field: str
    paths: tuple[str, ...]
    _schema: pa.Schema = hidden(repr=False)
    _check: Callable[[pa.RecordBatch, Callable[[], Times]], pa.BooleanArray] = hidden(repr=False)
    _masked: frozenset[str] = hidden(repr=False)

    def mask(self, batch: pa.RecordBatch, received: Times | None = None) -> pa.BooleanArray:
        """True for rows that keep the rule; never null.

        `received` is when Kafka got each record, in ms since the epoch; without it the batch's `_timestamp` column is
        taken, or else the clock.
        """
        ok = self._check(batch, lambda: _received(batch, received))
        return pc.fill_null(ok, True) if ok.null_count else ok

    def value(self, batch: pa.RecordBatch) -> pa.StringArray:
        """What the rule looked at, row by row, as text of at most 200 characters. Personal data reads `***`."""
        texts = [self._text(batch, path) for path in self.paths]
        if self.field:
            return texts[0]
        named = [pc.binary_join_element_wise(f"{p}=", t, "") for p, t in zip(self.paths, texts, strict=True)]
        return _short(pc.binary_join_element_wise(*named, ", ")) if named else pa.array([""] * len(batch))

    def _text(self, batch: pa.RecordBatch, path: str) -> pa.StringArray:
        column = _given(batch, path)
        if path in self._masked:
            return pc.if_else(pc.is_null(column), "null", MASKED)
        if pa.types.is_binary(column.type) or pa.types.is_fixed_size_binary(column.type):
            text = pc.binary_join_element_wise(
                pc.binary_length(column.cast(pa.binary())).cast(pa.string()), "bytes", " "
            )
        elif pa.types.is_nested(column.type):
            text = pa.array([None if v is None else str(v)[:VALUE_LENGTH] for v in column.to_pylist()], pa.string())
        else:
            text = column.cast(pa.string())
        return _short(pc.fill_null(text, "null"))


def compile_rules(contract: Contract) -> list[Rule]:
    """All rules of a contract, field by field, implied ones first, then the record's.

    Raises `ContractError` naming file, field and rule for one that does not parse or does not fit its field.
    """
    rules = []
    for rule in iterate_rules(contract):
        if isinstance(rule, ContractError):
            raise rule
        rules.append(rule)
    return rules


def iterate_rules(contract: Contract) -> Iterator[Rule | ContractError]:
    """The same with each error in its place, for those who want all of them."""
    schema = arrow_schema(contract.avro)
    masked = _masked_paths(contract)
    for path, spec in contract.walk():
        kind = _type_at(schema, path)
        if kind is None:
            continue
        yield Rule(f"{path}: type {kind}", path, (path,), schema, _typed(path, kind), masked)
        texts = spec.rules
        if not (spec.nullable or "not_null" in texts):
            texts = ("not_null", *texts)
        for text in texts:
            try:
                check = _on_field(path, kind, parse_rule(text, spec, kind))
            except ContractError as e:
                yield ContractError(e.what, where=f"{contract.path}: {path}: {text}", hint=e.hint)
            else:
                yield Rule(f"{path}: {text}", path, (path,), schema, check, masked)
    for text in contract.rules:
        try:
            yield _record_rule(text, schema, masked)
        except ContractError as e:
            where = ": ".join(filter(None, (str(contract.path), f"rules: {text}", e.where)))
            yield ContractError(e.what, where=where, hint=e.hint)


def parse_rule(text: str, spec: FieldSpec, kind: pa.DataType) -> Check:
    """The check of one rule over a column of `kind`. Raises `ContractError` without a place."""
    name, _, rest = text.strip().partition(" ")
    build = _BUILDERS.get(name)
    if build is None:
        close = difflib.get_close_matches(name, _BUILDERS, 1)
        hint = f"did you mean {close[0]}?" if close else "known are " + ", ".join(_BUILDERS)
        if name == "unique":
            hint = "uniqueness needs memory of other rows: it is a step of an agent"
        raise ContractError(f"no rule {name!r}", hint=hint)
    return build(name, rest.strip(), kind)


def _bounds(name: str, rest: str, kind: pa.DataType) -> Check:
    timed = pa.types.is_timestamp(kind) or pa.types.is_date(kind)
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if not (timed or numeric):
        raise ContractError(f"{name} does not fit type {kind}", hint="it compares numbers and times")
    parts = re.findall(r"\S+", rest)
    wanted = 2 if name == "between" else 1
    if len(parts) != wanted or not all(re.fullmatch(_TIME if timed else _NUMBER, part) for part in parts):
        what = "times" if timed else "numbers"
        raise ContractError(
            f"{rest!r} is not {wanted} {what if wanted > 1 else what[:-1]}", hint=f"write {_USAGE[name]}"
        )
    sides = [f"'{part}'" if timed else part for part in parts]
    schema = pa.schema([("v", kind)])
    if wanted == 2 and not compile_expression(f"{sides[0]} <= {sides[1]}", schema)(_one(kind))[0].as_py():
        raise ContractError(f"{parts[0]} is above {parts[1]}")
    condition = {"between": "v BETWEEN {} AND {}", "min": "v >= {}", "max": "v <= {}"}[name].format(*sides)
    compiled = compile_expression(condition, schema)
    finite = pa.types.is_floating(kind)

    def check(values: pa.Array, _: Callable[[], Times]) -> pa.BooleanArray:
        ok = compiled(pa.RecordBatch.from_arrays([values], schema=schema))
        return pc.and_(ok, pc.is_finite(values)) if finite else ok

    return check


def _pattern(name: str, rest: str, kind: pa.DataType) -> Check:
    _demand_text(name, kind)
    if not rest:
        raise ContractError("no pattern", hint=f"write {_USAGE[name]}")
    try:
        pc.match_substring_regex(pa.array([""]), rest)
    except pa.ArrowInvalid as e:
        raise ContractError(f"{rest!r} is not a regular expression: {e}", hint="the syntax is RE2's") from e
    return lambda values, _: pc.match_substring_regex(values, rest)


def _one_of(name: str, rest: str, kind: pa.DataType) -> Check:
    if not (rest.startswith("[") and rest.endswith("]")) or not rest[1:-1].strip():
        raise ContractError(f"{rest!r} is not a list", hint=f"write {_USAGE[name]}")
    try:
        items = json.loads(rest)
    except ValueError:
        items = [item.strip() for item in rest[1:-1].split(",")]
    try:
        if pa.types.is_string(kind) and not all(isinstance(item, str) for item in items):
            items = [item.strip() for item in rest[1:-1].split(",")]
        allowed = pa.array(items, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as e:
        raise ContractError(f"{rest} does not fit type {kind}: {e}") from e
    if allowed.null_count:
        raise ContractError("null is not a value", hint="null passes unless the rule not_null says otherwise")
    return lambda values, _: pc.if_else(pc.is_null(values), pa.scalar(None, pa.bool_()), pc.is_in(values, allowed))


def _length(name: str, rest: str, kind: pa.DataType) -> Check:
    _demand_text(name, kind)
    match = re.fullmatch(r"(\d+)(?:\s+(\d+))?", rest)
    if match is None or int(match[1]) > int(match[2] or match[1]):
        raise ContractError(f"{rest!r} is not a length", hint=f"write {_USAGE[name]}")
    low, high = int(match[1]), int(match[2] or match[1])

    def check(values: pa.Array, _: Callable[[], Times]) -> pa.BooleanArray:
        length = pc.utf8_length(values)
        return pc.and_(pc.greater_equal(length, low), pc.less_equal(length, high))

    return check


def _not_empty(name: str, rest: str, kind: pa.DataType) -> Check:
    _demand_text(name, kind)
    _demand_nothing(name, rest)
    return lambda values, _: pc.not_equal(pc.utf8_trim_whitespace(values), "")


def _not_null(name: str, rest: str, kind: pa.DataType) -> Check:
    _demand_nothing(name, rest)
    return lambda values, _: pc.is_valid(values)


def _finite(name: str, rest: str, kind: pa.DataType) -> Check:
    _demand_nothing(name, rest)
    if not pa.types.is_floating(kind):
        raise ContractError(f"{name} does not fit type {kind}", hint="only float and double can be infinite")
    return lambda values, _: pc.is_finite(values)


def _not_in_future(name: str, rest: str, kind: pa.DataType) -> Check:
    if not pa.types.is_timestamp(kind) or kind.tz is None:
        raise ContractError(f"{name} does not fit type {kind}", hint="it needs a point in time, like timestamp-micros")
    ahead = int(parse_duration(rest) * 1_000_000)

    def check(values: pa.Array, received: Callable[[], Times]) -> pa.BooleanArray:
        return pc.less_equal(values.cast(pa.timestamp("us", "UTC")).cast(pa.int64()), received() * 1000 + ahead)

    return check


_BUILDERS: dict[str, Callable[[str, str, pa.DataType], Check]] = {
    "between": _bounds,
    "min": _bounds,
    "max": _bounds,
    "pattern": _pattern,
    "one_of": _one_of,
    "length": _length,
    "not_empty": _not_empty,
    "not_null": _not_null,
    "finite": _finite,
    "not_in_future": _not_in_future,
}
_USAGE = {
    "between": "between 0 100",
    "min": "min 0",
    "max": "max 100",
    "pattern": "pattern ^[a-z]+$",
    "one_of": "one_of [new, paid]",
    "length": "length 3 or length 1 64",
}


def _demand_text(name: str, kind: pa.DataType) -> None:
    if not pa.types.is_string(kind):
        raise ContractError(f"{name} does not fit type {kind}", hint="it needs a text")


def _demand_nothing(name: str, rest: str) -> None:
    if rest:
        raise ContractError(f"{name} takes nothing, not {rest!r}")


def _one(kind: pa.DataType) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.nulls(1, kind)], names=["v"])


def _on_field(path: str, kind: pa.DataType, check: Check) -> Callable[[pa.RecordBatch, Callable[[], Times]], pa.Array]:
    parent = path.rpartition(".")[0]

    def within(batch: pa.RecordBatch, received: Callable[[], Times]) -> pa.BooleanArray:
        ok = check(conform_column(_given(batch, path), kind)[0], received)
        # A record that is not there has no fields to be wrong.
        return pc.or_kleene(ok, pc.is_null(_given(batch, parent))) if parent else ok

    return within


def _typed(path: str, kind: pa.DataType) -> Callable[[pa.RecordBatch, Callable[[], Times]], pa.Array]:
    def check(batch: pa.RecordBatch, _: Callable[[], Times]) -> pa.BooleanArray:
        fits = conform_column(_given(batch, path), kind)[1]
        return all_true(len(batch)) if fits is None else fits

    return check


def _record_rule(text: str, schema: pa.Schema, masked: frozenset[str]) -> Rule:
    compiled = compile_expression(text, schema)
    roots = dict.fromkeys(path.partition(".")[0] for path in compiled.columns)
    needed = pa.schema([schema.field(root) for root in roots])

    def check(batch: pa.RecordBatch, _: Callable[[], Times]) -> pa.BooleanArray:
        # A batch without columns has forgotten its number of rows.
        return compiled(conform(batch, needed)) if roots else compiled(batch)

    return Rule(f"record: {text}", "", compiled.columns, schema, check, masked)


def _masked_paths(contract: Contract) -> frozenset[str]:
    """Paths of personal data, and of whatever contains or is part of it."""
    personal = [path for path, spec in contract.walk() if spec.pii]
    return frozenset(
        path
        for path, _ in contract.walk()
        if any(f"{path}.".startswith(f"{p}.") or f"{p}.".startswith(f"{path}.") for p in personal)
    )


def _given(batch: pa.RecordBatch, path: str) -> pa.Array:
    """The column at a path as the writer gave it, null where there is none."""
    root, *rest = path.split(".")
    column = batch.column(root) if root in batch.schema.names else pa.nulls(len(batch))
    for name in rest:
        inside = pa.types.is_struct(column.type) and column.type.get_field_index(name) >= 0
        column = pc.struct_field(column, name) if inside else pa.nulls(len(batch))
    return column


def _type_at(schema: pa.Schema, path: str) -> pa.DataType | None:
    kind: pa.DataType = pa.struct(list(schema))
    for name in path.split("."):
        if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            return None
        kind = kind.field(name).type
    return kind


def _received(batch: pa.RecordBatch, received: Times | None) -> Times:
    if received is not None:
        return received
    if "_timestamp" in batch.schema.names:
        column = batch.column("_timestamp").cast(pa.timestamp("ms", "UTC"), safe=False).cast(pa.int64())
        out: Times = pc.fill_null(column, 0).to_numpy(zero_copy_only=False)
        return out
    return np.full(len(batch), int(time.time() * 1000), np.int64)


def _short(text: pa.StringArray) -> pa.StringArray:
    long = pc.greater(pc.utf8_length(text), VALUE_LENGTH)
    cut = pc.binary_join_element_wise(pc.utf8_slice_codeunits(text, 0, VALUE_LENGTH - 1), "…", "")
    return pc.if_else(long, cut, text)
