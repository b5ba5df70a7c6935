"""PostgreSQL's column types, as Debezium's connector and its recommended settings bring them."""

from __future__ import annotations

from connectors.limits import POSTGRESQL
from tests.integration.cdc.catalogue import Engine, Group, Setting, Type

# Makes the named types below; the extensions come with PostgreSQL (contrib) or are pgvector.
PREPARE = """
CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE EXTENSION ltree; CREATE EXTENSION vector;
CREATE TYPE mood AS ENUM ('happy', 'so so');
CREATE DOMAIN price AS numeric(8, 2) CHECK (value > 0);
CREATE DOMAIN amount AS numeric;
CREATE DOMAIN email AS text;
CREATE TYPE pair AS (a int, b text);
CREATE TYPE deep AS (p pair, l int[]);
CREATE DOMAIN tags AS text[];
CREATE DOMAIN moods AS mood[];
CREATE DOMAIN both_parts AS pair;
"""

_FIRST, _LAST = "0001-01-01", "9999-12-31"
_LAST_TIME = f"{_LAST} 23:59:59.999999"


def _within(type_: str, first: str, last: str) -> str:
    bounds = f"{type_} '{first}'", f"{type_} '{last}'"
    return f"CASE WHEN {{0}} > {bounds[1]} THEN {bounds[1]} WHEN {{0}} < {bounds[0]} THEN {bounds[0]} ELSE {{0}} END"


def _optional(sql: str) -> str:
    return f"CASE WHEN {{0}} IS NOT NULL THEN {sql} END"


def _each(item: str, declared: str) -> str:
    items = f"SELECT {item} FROM unnest({{0}}::{declared}) WITH ORDINALITY u(e, n) ORDER BY n"
    return _optional(f"ARRAY({items})")


_DATE = _within("date", _FIRST, _LAST)
_TIMESTAMP = _within("timestamp", _FIRST, _LAST_TIME)
_MILLIS = _within("timestamp", _FIRST, f"{_LAST} 23:59:59.999")
_TIMESTAMPTZ = _within("timestamptz", f"{_FIRST} 00:00:00+00", f"{_LAST_TIME}+00")
_ENDS = "years 1 to 9999; what is beyond, and `infinity`, is the nearer end"
_TEXT = "PostgreSQL's text"
_NUMBER_TEXT = "the exact number as text, without zeros at the end of its fraction"
_DATES = ("'2024-02-29'", f"'{_FIRST}'", f"'{_LAST}'", "'infinity'", "'-infinity'", "'12024-01-01'")
_TIMES = (
    "'2024-02-29 12:34:56.789012'", f"'{_FIRST}'", f"'{_LAST_TIME}'", "'infinity'", "'-infinity'", "'0044-03-15 BC'",
    "'12024-01-01'", "'1500-06-01'",
)  # fmt: skip
_UUID = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"
_INTERVAL = (
    "format('P%sY%sM%sDT%sH%sM%sS', extract(year from {0})::int, extract(month from {0})::int, "
    "extract(day from {0})::int, extract(hour from {0})::int, extract(minute from {0})::int, "
    "trim_scale(extract(second from {0})))"
)


# Bytes of the number of up to 16 bits, lowest first, zeros at the end left out.
_BITS = (
    "rtrim(decode(substr(lpad(to_hex(lpad({0}::text, 16, '0')::bit(16)::int), 4, '0'), 3) || "
    "substr(lpad(to_hex(lpad({0}::text, 16, '0')::bit(16)::int), 4, '0'), 1, 2), 'hex'), '\\x00'::bytea)"
)


def _text(declared: str, *samples: str, semantic: str = "string", read: str = "{}::text", reader: str = _TEXT) -> Type:
    return Type(declared, samples, semantic, "string", "string", reader, read)


def _opaque(declared: str, *samples: str, reader: str = f"{_TEXT}, as UTF-8 bytes", read: str = "{}::text") -> Type:
    return Type(declared, samples, "bytes", "binary", "binary", reader, f"convert_to({read}, 'UTF8')")


def _array(
    element: str, sample: str, semantic: str, arrow: str, iceberg: str, reader: str = "the same", read: str = "{}"
) -> Type:
    return Type(f"{element}[]", (sample, "'{}'"), f"array of {semantic}", f"list<element: {arrow}>",
                f"list<{iceberg}>", reader, read)  # fmt: skip


def _geometry(declared: str, *samples: str) -> Type:
    return _opaque(declared, *samples, reader=f"{_TEXT} as UTF-8 bytes, numbers as Java writes them (`1.0`, `1.0E20`)")


_NUMBERS = Group("Numbers", (
    Type("smallint", ("-32768", "32767"), "int", "int32", "int"),
    Type("integer", ("-2147483648", "2147483647"), "int", "int32", "int"),
    Type("bigint", ("-9223372036854775808", "9223372036854775807"), "long", "int64", "long"),
    Type("bigserial", ("1", "9223372036854775807"), "long", "int64", "long"),
    Type("numeric(12, 2)", ("-9999999999.99", "0", "0.10"), "bytes Decimal", "decimal128(12, 2)", "decimal(12, 2)"),
    Type("numeric(38, 10)", ("9999999999999999999999999999.9999999999", "-0.0000000001"), "bytes Decimal",
         "decimal128(38, 10)", "decimal(38, 10)"),
    Type("numeric(2, 4)", ("0.0012", "-0.0099"), "bytes Decimal", "decimal128(4, 4)", "decimal(4, 4)"),
    Type("numeric(50, 5)", ("-123456789012345678901234567890123456789012345.12345", "1"), "bytes Decimal", "string",
         "string", f"more than 38 digits: {_NUMBER_TEXT}", "trim_scale({})::text"),
    Type("numeric(3, -2)", ("12300", "-99900"), "bytes Decimal", "string", "string",
         f"a negative scale: {_NUMBER_TEXT}", "trim_scale({})::text"),
    Type("numeric", ("1.10", "-123456789012345678901234567890.1234567890123456789012345678", "0", "1e40", "1e-40"),
         "record VariableScaleDecimal", "string", "string",
         f"{_NUMBER_TEXT}; an exponent instead of more than 64 zeros", "trim_scale({})::text"),
    Type("money", ("'-92233720368547758.08'", "'92233720368547758.07'"), "bytes Decimal", "decimal128(38, 2)",
         "decimal(38, 2)", "the amount", "{}::numeric"),
    Type("real", ("'NaN'", "'Infinity'", "'-Infinity'", "3.4028235e38", "0.1", "'-0'"), "float", "float", "float",
         read="{}::float8"),
    Type("double precision", ("'NaN'", "'Infinity'", "'-Infinity'", "1.7976931348623157e308", "0.1", "5e-324"),
         "double", "double", "double"),
    Type("oid", ("4294967295", "1"), "long", "int64", "long"),
    Type("boolean", ("true", "false"), "boolean", "bool", "boolean"),
))  # fmt: skip

_TEXTS = Group("Text and bytes", (
    _text("text", "''", "'häß \U0001f600'", "repeat('x', 5000)", reader="the same"),
    _text("varchar(10)", "'ten chars.'", "' a '", reader="the same"),
    _text("char(5)", "'ab'", "''", reader="padded with blanks to its length", read="rpad({}::text, 5)"),
    _text('"char"', "'a'", reader="the same"),
    _text("name", "'a_name'", reader="the same"),
    _text("citext", "'Abc'", reader="the same; compared by case in the lake"),
    Type("bytea", ("'\\x00ff10'", "'\\x'"), "bytes", "binary", "binary"),
    _text("uuid", f"'{_UUID}'", semantic="string Uuid"),
    _text("json", "'{\"b\": 1,  \"a\": [null, 1.10]}'", "'null'", semantic="string Json"),
    _text("jsonb", "'{\"b\": 1,  \"a\": [null, 1.10]}'", "'null'", "'\"x\"'", semantic="string Json"),
    _text("xml", "'<a b=\"1\">x</a>'", semantic="string Xml"),
    _text("hstore", "'a=>1, b=>NULL, \"q\\\"\"=>\"x y\"'", "''", semantic="string Json",
          reader="a JSON object of text and null, keys in any order", read="hstore_to_json({})::text"),
    _text("ltree", "'a.b.c'", semantic="string Ltree"),
    _text("tsvector", "'a:1 cat:2'", semantic="string Tsvector"),
    _opaque("tsquery", "'a & b'"),
    _text("mood", "'happy'", "'so so'", semantic="string Enum", reader="an enum: the label"),
))  # fmt: skip

_TIME = Group("Time", (
    Type("date", _DATES, "int Date", "date32[day]", "date", _ENDS, _DATE),
    Type("time", ("'00:00:00'", "'23:59:59.999999'", "'24:00:00'"), "long MicroTime", "time64[us]", "time",
         "24:00 is 23:59:59.999999", _within("time", "00:00", "23:59:59.999999")),
    Type("time(3)", ("'12:34:56.789'",), "long MicroTime", "time64[us]", "time"),
    _text("timetz", "'12:34:56.789012+02'", "'23:00:00-05:30'", "'00:30:00+14'", "'12:34:56.5+00'",
          semantic="string ZonedTime", reader="text in UTC: `10:34:56.789012Z`; 24:00 is 00:00",
          read="({} AT TIME ZONE 'UTC')::time::text || 'Z'"),
    Type("timestamp", _TIMES, "long MicroTimestamp", "timestamp[us]", "timestamp", _ENDS, _TIMESTAMP),
    Type("timestamp(3)", ("'2024-02-29 12:34:56.789'", "'infinity'", "'0044-03-15 BC'"), "long Timestamp",
         "timestamp[us]", "timestamp", f"{_ENDS}, in milliseconds", _MILLIS),
    Type("timestamp(0)", ("'2024-02-29 12:34:56'",), "long Timestamp", "timestamp[us]", "timestamp",
         f"{_ENDS}, in milliseconds", _MILLIS),
    Type("timestamptz", ("'2024-02-29 12:34:56.789012+02'", *_TIMES[1:3], *_TIMES[3:]), "string ZonedTimestamp",
         "timestamp[us, tz=UTC]", "timestamptz", f"the instant, in UTC; {_ENDS}", _TIMESTAMPTZ),
    _text("interval", "'1 year 2 months 3 days 04:05:06.789'", "'-1 day +02:00:00'", "'0'", "'178000000 years'",
          "'-00:00:00.000001'", semantic="string Interval", reader="ISO 8601 text with every part",
          read=_optional(_INTERVAL)),
))  # fmt: skip

_NETWORK = Group("Network, bits, system", (
    _text("inet", "'192.168.1.5/24'", "'::1'", read="textin(inet_out({}))"),
    _text("cidr", "'10.0.0.0/8'"),
    _text("macaddr", "'08:00:2b:01:02:03'"),
    _text("macaddr8", "'08:00:2b:01:02:03:04:05'"),
    Type("bit", ("B'1'", "B'0'"), "boolean", "bool", "boolean", "true for 1", "{} = B'1'"),
    Type("bit(16)", ("B'1000000000110001'", "B'0000000000000001'", "B'0000000000000000'"), "bytes Bits", "binary",
         "binary", "the number's bytes, lowest first, zeros at the end left out", _BITS),
    Type("varbit(8)", ("B'10000001'", "B'0101'", "B''"), "bytes Bits", "binary", "binary",
         "as bit(n); how many zeros were in front is lost",
         _BITS),
    _opaque("pg_lsn", "'16/B374D848'"),
    _opaque("xid8", "'18446744073709551615'"),
    _opaque("txid_snapshot", "'10:20:10,14,15'"),
    _opaque("jsonpath", "'$.\"a\"'"),
))  # fmt: skip

_RANGES = Group("Ranges, composites, domains", (
    _text("int4range", "'[1,5)'", "'empty'", "'(,)'"),
    _text("numrange", "'[1.1,2.2]'"),
    _text("tsrange", "'[2024-01-01,infinity)'"),
    _text("tstzrange", "'[2024-01-01 00:00+02,infinity)'", reader=f"{_TEXT}, in UTC"),
    _text("daterange", "'[2024-01-01,2024-01-02]'"),
    _opaque("int4multirange", "'{[1,5),[7,9)}'"),
    _opaque("pair", "'(1,\"x y\")'", reader=f"a composite: {_TEXT}, as UTF-8 bytes"),
    Type("price", ("0.50",), "bytes Decimal", "decimal128(8, 2)", "decimal(8, 2)",
         "a domain over numeric(8, 2): as that"),
    Type("amount", ("0.50", "1e30"), "record VariableScaleDecimal", "string", "string",
         "a domain over numeric: as that", "trim_scale({})::text"),
    Type("tags", ("'{a,null}'", "'{}'"), "array of string", "list<element: string>", "list<string>",
         "a domain over text[]: as that"),
    Type("moods", ("'{happy}'", "'{}'"), "array of string Enum", "list<element: string not null>", "list<string>",
         "a domain over mood[]: as that", "{}::text[]"),
    _opaque("both_parts", "'(1,\"x y\")'", reader="a domain over a composite: as that"),
    _opaque("deep", "'(\"(1,x)\",\"{1,2}\")'",
            reader=f"a composite of a composite and an array: {_TEXT}, as UTF-8 bytes"),
    _text("email", "'a@b'", reader="a domain over text: as that"),
))  # fmt: skip

_GEOMETRIC = Group("Geometry and vectors", (
    Type("point", ("'(1.5,-2)'", "'(0,Infinity)'"), "record Point",
         "struct<x: double not null, y: double not null, wkb: binary, srid: int32>",
         "struct<x: double, y: double, wkb: binary, srid: int>", "x and y, the same as well-known binary; no srid",
         _optional("jsonb_build_array(({0})[0]::text, ({0})[1]::text)")),
    _geometry("line", "'{1.5,2.5,3.5}'"),
    _geometry("lseg", "'[(0.5,0.5),(1.5,1.5)]'"),
    _geometry("box", "'((1.5,1.5),(0.5,0.5))'"),
    _geometry("path", "'((0.5,0.5),(1.5,1.5))'", "'[(0.5,0.5),(1.5,1.5)]'"),
    _geometry("polygon", "'((0.5,0.5),(1.5,1.5),(2.5,0.5))'"),
    _geometry("circle", "'<(1.5,2.5),3.5>'"),
    Type("vector(3)", ("'[1,2.5,-3e30]'",), "DoubleVector of double", "list<element: double not null>", "list<double>",
         "the same, as Java turns single precision into double", "{}::real[]::text[]::float8[]"),
    Type("halfvec(3)", ("'[1,2.5,-3]'",), "FloatVector of float", "list<element: float not null>", "list<float>",
         read="{}::vector::real[]::float8[]"),
    Type("sparsevec(5)", ("'{1:1.5,3:2}/5'",), "record SparseDoubleVector",
         "struct<dimensions: int32 not null, vector: list<element: struct<key: int32 not null, value: double not null>"
         " not null> not null>", "struct<dimensions: int, vector: list<struct<key: int, value: double>>>",
         "the cells that are not zero", "{}::text"),
))  # fmt: skip

_ARRAYS = Group("Arrays of one dimension, elements may be null", (
    _array("integer", "'{1,null,-2147483648}'", "int", "int32", "int"),
    _array("bigint", "'{1,null}'", "long", "int64", "long"),
    _array("smallint", "'{1,null}'", "int", "int32", "int"),
    _array("real", "'{NaN,0.1,null,Infinity}'", "float", "float", "float", read="{}::float8[]"),
    _array("double precision", "'{NaN,0.1,null,Infinity}'", "double", "double", "double"),
    _array("boolean", "'{t,null}'", "boolean", "bool", "boolean"),
    _array("numeric(12, 2)", "'{1.10,null,-9999999999.99}'", "bytes Decimal", "decimal128(12, 2)", "decimal(12, 2)"),
    _array("numeric", "'{1.10,null,1e40}'", "record VariableScaleDecimal", "string", "string", "each as numeric",
           _each("trim_scale(e)::text", "numeric[]")),
    _array("text", "'{a,null,\"null\",\"\"}'", "string", "string", "string"),
    _array("varchar(5)", "'{a,null}'", "string", "string", "string"),
    _array("char(3)", "'{a,null}'", "string", "string", "string", "each padded"),
    _array("citext", "'{Abc,null}'", "string", "string", "string", read="{}::text[]"),
    _array("date", "'{2024-02-29,null,infinity,-infinity}'", "int Date", "date32[day]", "date", f"each: {_ENDS}",
           _each(_DATE.format("e"), "date[]")),
    _array("timestamp", "'{2024-02-29 12:34:56.789012,null,infinity,-infinity}'", "long MicroTimestamp",
           "timestamp[us]", "timestamp", f"each: {_ENDS}", _each(_TIMESTAMP.format("e"), "timestamp[]")),
    _array("timestamptz", "'{2024-02-29 12:34:56.789012+02,null,infinity,-infinity}'", "string ZonedTimestamp",
           "timestamp[us, tz=UTC]", "timestamptz", f"each: {_ENDS}, but see BC below",
           _each(_TIMESTAMPTZ.format("e"), "timestamptz[]")),
    _array("time", "'{12:34:56.789912,null}'", "long MicroTime", "time64[us]", "time", "each in whole milliseconds",
           _each("date_trunc('milliseconds', e::interval)::time", "time[]")),
    _array("timetz", "'{12:34:56.9+02,null}'", "string ZonedTime", "string", "string", "each in UTC, in whole seconds",
           _each("date_trunc('second', (e AT TIME ZONE 'UTC')::time::interval)::time::text || 'Z'", "timetz[]")),
    _array("uuid", f"'{{{_UUID},null}}'", "string Uuid", "string", "string", read="{}::text[]"),
    _array("jsonb", "array['{\"a\": 1}'::jsonb, null]", "string Json", "string", "string", read="{}::text[]"),
    _array("bytea", "array['\\x00ff'::bytea, null]", "bytes", "binary", "binary"),
    _array("inet", "'{10.0.0.1,null}'", "string", "string", "string",
           read=_each("textin(inet_out(e))", "inet[]")),
    _array("int4range", "array['[1,5)'::int4range, null]", "string", "string", "string", read="{}::text[]"),
    _array("ltree", "'{a.b}'", "string Ltree", "string", "string", read="{}::text[]"),
    _array("hstore", "array['a=>1'::hstore, null]", "string Json", "string", "string", "each as hstore",
           _each("hstore_to_json(e)::text", "hstore[]")),
    Type("mood[]", ("'{happy,so so}'", "'{}'"), "array of string Enum", "list<element: string not null>",
         "list<string>", "the labels; a null element is refused", "{}::text[]"),
    Type("pair[]", ("array['(1,x)'::pair]", "'{}'"), "array of bytes", "list<element: binary not null>",
         "list<binary>", "each as a composite; a null element is refused",
         _optional("ARRAY(SELECT convert_to(e, 'UTF8') FROM unnest({0}::text[]) WITH ORDINALITY u(e, n) "
                   "ORDER BY n)")),
))  # fmt: skip

ENGINE = Engine(
    "PostgreSQL",
    """\
With the settings below. Each line is checked against a real database through Debezium: snapshot and stream, insert and
update, the extremes, NULL. What a table holds is what a SQL client reads, in the form that the last column says.""",
    (
        Setting("include.unknown.datatypes", "true",
                "else columns of composite, multirange and geometric types are left out without a word"),
        Setting("interval.handling.mode", "string", "else a month counts as 30.4375 days"),
        Setting("event.converting.failure.handling.mode", "fail",
                "else NULL takes the place of a value that Debezium cannot convert, and of a large unchanged one that "
                "it has no placeholder for"),
        Setting("decimal.handling.mode", "precise", "`double` rounds; `string` makes every decimal text"),
        Setting("time.precision.mode", "adaptive_time_microseconds", "`connect` cuts microseconds off"),
    ),
    (_NUMBERS, _TEXTS, _TIME, _NETWORK, _RANGES, _GEOMETRIC, _ARRAYS),
    POSTGRESQL,
)  # fmt: skip
