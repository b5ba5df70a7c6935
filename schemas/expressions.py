"""SQL expressions over columns, for rules and KPI filters, with the results that DuckDB gives for the same text.

Supported: comparisons, and / or / not, in, between, is [not] null|true|false, + - * / %, abs, lower, upper, length,
coalesce, literals (texts, numbers, booleans, null, dates and times as texts), columns and fields of nested records
(`a.b`). Logic is three-valued. As in DuckDB, whole numbers divide into doubles, x / 0 is infinite or NaN, x % 0 is
null, NaN equals itself and is above all numbers. Where DuckDB stops the query because a whole number overflows, the
result is null here: one record's value must not stop a stream.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from headrace.errors import ContractError
from schemas import vectors
from schemas.vectors import BOOL, DOUBLE, FLOAT, INT, TEXT, Vector, call, cast, compare, is_null, is_number, type_name

_COMPARISONS = {
    exp.EQ: "equal",
    exp.NEQ: "not_equal",
    exp.LT: "less",
    exp.LTE: "less_equal",
    exp.GT: "greater",
    exp.GTE: "greater_equal",
}
_ARITHMETIC = {exp.Add: "add", exp.Sub: "subtract", exp.Mul: "multiply"}
_TIMES = {
    "DATE": pa.date32(),
    "TIMESTAMP": pa.timestamp("us"),
    "TIMESTAMPNTZ": pa.timestamp("us"),
    "TIMESTAMPTZ": pa.timestamp("us", "UTC"),
}


@dataclass(frozen=True)
class Expression:
    """A compiled expression: call it with a batch of the schema it was compiled for, get an array of `type`.

    `columns` are the dotted paths that it reads.
    """

    sql: str
    type: pa.DataType
    columns: tuple[str, ...]
    vector: Vector

    def __call__(self, batch: pa.RecordBatch) -> pa.Array:
        value = self.vector.run(batch)
        return pa.repeat(value, len(batch)) if isinstance(value, pa.Scalar) else value


def compile_expression(sql: str, schema: pa.Schema) -> Expression:
    """A condition over rows of `schema`: true, false or null for each.

    Raises `ContractError` naming the column and the position (1 is the first character) of what is wrong.
    """
    compiled = compile_value(sql, schema)
    if is_null(compiled.type):
        return Expression(sql, BOOL, compiled.columns, cast(compiled.vector, BOOL))
    if compiled.type != BOOL:
        raise ContractError(f"{sql!r} is {type_name(compiled.type)}, not a condition")
    return compiled


def compile_value(sql: str, schema: pa.Schema) -> Expression:
    """The same for an expression of any type."""
    try:
        trees = sqlglot.parse(sql, dialect="duckdb")
    except SqlglotError as e:
        said = (getattr(e, "errors", None) or [{}])[0]
        what = said.get("description") or str(e)
        raise ContractError(f"{sql!r} does not parse: {what}", where=f"position {said.get('col', 1)}") from e
    except RecursionError as e:
        raise ContractError("the expression is nested too deeply") from e
    if len(trees) != 1 or trees[0] is None:
        raise ContractError(f"{sql!r} is not one expression")
    compiler = _Compiler(schema)
    vector = compiler.compile(trees[0])
    return Expression(sql, vector.type, tuple(dict.fromkeys(compiler.columns)), vector)


def columns_of(sql: str) -> tuple[str, ...]:
    """The columns that an expression names, of nested records the outermost. None where it does not parse."""
    try:
        trees = sqlglot.parse(sql, dialect="duckdb")
    except (SqlglotError, RecursionError):
        return ()
    found = (column.parts[0].name for tree in trees if tree is not None for column in tree.find_all(exp.Column))
    return tuple(dict.fromkeys(found))


class _Compiler:
    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self.columns: list[str] = []

    def compile(self, node: Any) -> Vector:
        match node:
            case exp.Paren():
                return self.compile(node.this)
            case exp.Column() | exp.Dot():
                return self.column(node)
            case exp.Literal() | exp.Boolean() | exp.Null():
                return _literal(node)
            case exp.Cast() if isinstance(node.this, exp.Literal) and node.to.this.name in _TIMES:
                return _time(node, str(node.this.this), _TIMES[node.to.this.name])
            case exp.And():
                return call("and_kleene", BOOL, self.condition(node.this), self.condition(node.expression))
            case exp.Or():
                return call("or_kleene", BOOL, self.condition(node.this), self.condition(node.expression))
            case exp.Not():
                return call("invert", BOOL, self.condition(node.this))
            case exp.Is():
                return self.is_(node)
            case exp.In() if node.expressions:
                value, *others = self.unify(node, node.this, *node.expressions)
                found = [compare("equal", value, other) for other in others]
                while len(found) > 1:
                    found.append(call("or_kleene", BOOL, found.pop(0), found.pop(0)))
                return found[0]
            case exp.Between():
                value, low, high = self.unify(node, node.this, node.args["low"], node.args["high"])
                return call(
                    "and_kleene", BOOL, compare("greater_equal", value, low), compare("less_equal", value, high)
                )
            case exp.Coalesce():
                values = self.unify(node, node.this, *node.expressions)
                return call("coalesce", values[0].type, *values)
            case exp.Neg():
                return self.unary(node, "negate")
            case exp.Abs():
                return self.unary(node, "abs")
            case exp.Lower() | exp.Upper() | exp.Length():
                return self.text(node)
            case exp.Add() | exp.Sub() | exp.Mul() | exp.Div() | exp.Mod():
                return self.arithmetic(node)
        if type(node) in _COMPARISONS:
            return compare(_COMPARISONS[type(node)], *self.unify(node, node.this, node.expression))
        raise _error(node, f"{_sql(node)} is not supported in rules and filters")

    def column(self, node: Any) -> Vector:
        if not all(isinstance(part, exp.Identifier) for part in node.parts):
            raise _error(node, f"{_sql(node)} is not a column")
        path = [part.name for part in node.parts]
        kind: pa.DataType = pa.struct(list(self.schema))
        for depth, name in enumerate(path):
            if is_null(kind):
                # A column that no schema has yet has no fields either.
                break
            names = [f.name for f in kind] if pa.types.is_struct(kind) else []
            if name not in names:
                close = difflib.get_close_matches(name, names, 1)
                hint = f"did you mean {'.'.join([*path[:depth], *close])}?" if close else ""
                raise _error(node, f"no column {'.'.join(path[: depth + 1])}", hint)
            kind = kind.field(name).type
        self.columns.append(".".join(path))

        def run(batch: pa.RecordBatch) -> pa.Array:
            values = batch.column(path[0])
            for name in () if is_null(values.type) else path[1:]:
                values = pc.struct_field(values, name)
            return values

        return cast(Vector(kind, run), vectors.widest(kind))

    def condition(self, node: Any) -> Vector:
        vector = self.compile(node)
        if is_null(vector.type):
            return cast(vector, BOOL)
        if vector.type != BOOL:
            raise _error(node, f"{_sql(node)} is {type_name(vector.type)}, not a condition")
        return vector

    def is_(self, node: Any) -> Vector:
        if isinstance(node.expression, exp.Null):
            return call("is_null", BOOL, self.compile(node.this))
        if not isinstance(node.expression, exp.Boolean):
            raise _error(node, "write is null, is true or is false")
        value, wanted = self.condition(node.this), pa.scalar(bool(node.expression.this))
        return Vector(BOOL, lambda batch: pc.fill_null(pc.equal(value.run(batch), wanted), False))

    def unary(self, node: Any, name: str) -> Vector:
        vector = self.compile(node.this)
        if is_null(vector.type):
            return vector
        if not is_number(vector.type):
            raise _error(node, f"{_sql(node.this)} is {type_name(vector.type)}, not a number")
        return vectors.exact(name, vector) if vector.type == INT else call(name, vector.type, vector)

    def text(self, node: Any) -> Vector:
        vector = self.compile(node.this)
        if is_null(vector.type):
            vector = cast(vector, TEXT)
        if vector.type != TEXT:
            raise _error(node, f"{_sql(node.this)} is {type_name(vector.type)}, not a text")
        if isinstance(node, exp.Length):
            return cast(call("utf8_length", pa.int32(), vector), INT)
        return call("utf8_lower" if isinstance(node, exp.Lower) else "utf8_upper", TEXT, vector)

    def arithmetic(self, node: Any) -> Vector:
        sides = [(side, self.compile(side)) for side in (node.this, node.expression)]
        for side, vector in sides:
            if not (is_number(vector.type) or is_null(vector.type)):
                raise _error(side, f"{_sql(side)} is {type_name(vector.type)}, not a number")
        left, right = (vector for _, vector in sides)
        kinds = [v.type for v in (left, right) if not is_null(v.type)]
        if len(kinds) < 2:
            return Vector(pa.null(), lambda batch: pa.scalar(None))
        common = vectors.common_number(kinds)
        if isinstance(node, exp.Div):
            common = FLOAT if common == FLOAT else DOUBLE
            return call("divide", common, cast(left, common), cast(right, common))
        if isinstance(node, exp.Mod):
            if common != INT:
                raise _error(node, f"{_sql(node)}: only whole numbers have a remainder")
            return vectors.remainder(left, right)
        name = _ARITHMETIC[type(node)]
        if common == INT:
            return vectors.exact(name, left, right)
        if pa.types.is_floating(common):
            return call(name, common, cast(left, common), cast(right, common))
        result = vectors.decimal_arithmetic(name, left, right)
        if result is None:
            raise _error(node, f"{_sql(node)} may need more than {vectors.MAX_DIGITS} digits")
        return result

    def unify(self, node: Any, *parts: Any) -> list[Vector]:
        """All parts in the one type that DuckDB would compare them in."""
        sides = [self.compile(part) for part in parts]
        kinds = [v.type for v in sides if not is_null(v.type)]
        if not kinds:
            return sides
        common = next((k for k in kinds if vectors.is_time(k)), kinds[0])
        if all(map(is_number, kinds)):
            common = vectors.common_number(kinds)
        elif vectors.is_time(common):
            sides = [
                _time(part, v.run(None).as_py(), common) if v.literal and v.type == TEXT else v
                for part, v in zip(parts, sides, strict=True)
            ]
        elif pa.types.is_nested(common) or pa.types.is_binary(common):
            raise _error(node, f"{_sql(node)}: {type_name(common)} does not compare")
        for vector in sides:
            numbers = is_number(common) and is_number(vector.type)
            if not (is_null(vector.type) or vector.type == common or numbers):
                raise _error(
                    node,
                    f"{_sql(node)} compares {type_name(common)} with {type_name(vector.type)}",
                    "times compare with times of the same kind" if vectors.is_time(common) else "",
                )
        return [cast(v, common) for v in sides]


def _literal(node: Any) -> Vector:
    value: Any
    if isinstance(node, exp.Null):
        value = pa.scalar(None)
    elif isinstance(node, exp.Boolean):
        value = pa.scalar(bool(node.this))
    elif node.is_string:
        value = pa.scalar(str(node.this))
    else:
        value = _number(node, str(node.this).replace("_", ""))
    return Vector(value.type, lambda _: value, literal=True)


def _number(node: Any, text: str) -> Any:
    try:
        if "e" in text.lower():
            return pa.scalar(float(text))
        exact = Decimal(text)
    except (ValueError, ArithmeticError) as e:
        raise _error(node, f"{text} is not a number") from e
    digits, scale = exact.as_tuple().digits, -int(exact.as_tuple().exponent)
    if scale == 0 and -(2**63) <= exact < 2**63:
        return pa.scalar(int(exact))
    width = max(len(digits), scale)
    return pa.scalar(float(text)) if width > 38 else pa.scalar(exact, pa.decimal128(width, scale))


def _time(node: Any, text: str, kind: pa.DataType) -> Vector:
    try:
        if pa.types.is_date(kind):
            value: Any = date.fromisoformat(text)
        else:
            value = datetime.fromisoformat(text)
            if (value.tzinfo is None) != (kind.tz is None):
                said = "has a time zone" if kind.tz is None else "has no time zone"
                raise _error(node, f"{text!r} {said}", "write it like 2026-01-31T10:00:00" + ("Z" if kind.tz else ""))
            value = value if value.tzinfo is None else value.astimezone(UTC)
    except ValueError as e:
        raise _error(node, f"{text!r} is not a time", "write it like 2026-01-31T10:00:00Z") from e
    scalar = pa.scalar(value, kind)
    return Vector(kind, lambda _: scalar, literal=True)


def _sql(node: Any) -> str:
    return f"`{node.sql(dialect='duckdb')}`"


def _error(node: Any, what: str, hint: str = "") -> ContractError:
    starts = [part.meta["start"] for part in node.find_all(exp.Identifier, exp.Literal) if "start" in part.meta]
    return ContractError(what, where=f"position {min(starts) + 1}" if starts else "", hint=hint)
