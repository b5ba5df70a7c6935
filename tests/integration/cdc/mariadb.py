"""MariaDB's column types, as Debezium's connector and its recommended settings bring them."""

from __future__ import annotations

from connectors.limits import MARIADB
from tests.integration.cdc.catalogue import Engine, Group, Setting, Type

_NUMBER_TEXT = "more than 38 digits: the exact number as text, without zeros at the end of its fraction"
_ZERO = "a zero date (`0000-00-00`, or month or day zero) is NULL"
_ZERO_INSTANT = "a zero is NULL, or 1970-01-01 00:00:00 (which no timestamp can be) when a change brings it"
_DATES = (
    "'2024-02-29'",
    "'0001-01-01'",
    "'0070-06-01'",
    "'1500-06-01'",
    "'9999-12-31'",
    "'0000-00-00'",
    "'2024-00-10'",
)
_TIMES = tuple(f"'{date} 12:34:56'" for date in ("2024-02-29", "0001-01-01", "1500-06-01", "9999-12-31", "2024-00-10"))
_BITS = "the number's bytes, lowest first; zeros at the end may be missing"


def _text(declared: str, *samples: str, semantic: str = "string", reader: str = "the same") -> Type:
    return Type(declared, samples or ("'x'", "''"), semantic, "string", "string", reader)


def _bytes(declared: str, *samples: str, reader: str = "the same") -> Type:
    return Type(declared, samples, "bytes", "binary", "binary", reader)


def _spatial(declared: str, *texts: str) -> Type:
    samples = tuple(f"ST_GeomFromText('{text}'{', 4326' if n else ''})" for n, text in enumerate(texts))
    return Type(declared, samples, "record Geometry", "struct<wkb: binary not null, srid: int32>",
                "struct<wkb: binary, srid: int>",
                "well-known binary, and the number of its reference system")  # fmt: skip


_NUMBERS = Group("Numbers", (
    Type("tinyint", ("-128", "127"), "int", "int32", "int"),
    Type("tinyint unsigned", ("0", "255"), "int", "int32", "int"),
    Type("boolean", ("true", "false", "2", "-128"), "int", "int32", "int", "a `tinyint(1)`: any number that it holds"),
    Type("smallint", ("-32768", "32767"), "int", "int32", "int"),
    Type("smallint unsigned", ("0", "65535"), "int", "int32", "int"),
    Type("mediumint", ("-8388608", "8388607"), "int", "int32", "int"),
    Type("mediumint unsigned", ("0", "16777215"), "int", "int32", "int"),
    Type("int", ("-2147483648", "2147483647"), "int", "int32", "int"),
    Type("int unsigned", ("0", "4294967295"), "long", "int64", "long"),
    Type("bigint", ("-9223372036854775808", "9223372036854775807"), "long", "int64", "long"),
    Type("bigint unsigned", ("18446744073709551615", "9223372036854775808", "0"), "bytes Decimal",
         "decimal128(20, 0)", "decimal(20, 0)"),
    Type("decimal(12, 2)", ("-9999999999.99", "0.10"), "bytes Decimal", "decimal128(12, 2)", "decimal(12, 2)"),
    Type("decimal(38, 10)", ("9999999999999999999999999999.9999999999", "-0.0000000001"), "bytes Decimal",
         "decimal128(38, 10)", "decimal(38, 10)"),
    Type("decimal(65, 30)", ("-12345678901234567890123456789012345.123456789012345678901234567890", "1"),
         "bytes Decimal", "string", "string", _NUMBER_TEXT),
    Type("decimal(8, 2) unsigned", ("999999.99", "0"), "bytes Decimal", "decimal128(8, 2)", "decimal(8, 2)"),
    Type("float", ("0.1", "-1.5e30"), "float", "float", "float", "the same; but see below"),
    Type("float(10, 3)", ("1234.5", "-0.125"), "double", "double", "double", "the single-precision number"),
    Type("double", ("0.1", "1.7976931348623157e308", "-2.2250738585072014e-308"), "double", "double", "double"),
    Type("bit", ("b'1'", "b'0'"), "boolean", "bool", "boolean", "true for 1"),
    Type("bit(16)", ("b'1000000000110001'", "b'1'", "b'0'"), "bytes Bits", "binary", "binary", _BITS),
    Type("bit(64)", ("18446744073709551615", "256"), "bytes Bits", "binary", "binary", _BITS),
))  # fmt: skip

_TEXTS = Group("Text and bytes", (
    _text("char(5)", "'ab'", "''", reader="without blanks at its end"),
    _text("varchar(10)", "' a '", "'häß \U0001f600'"),
    _text("varchar(10) COLLATE utf8mb4_bin", "'Abc'", "'abc'"),
    _text("varchar(10) CHARACTER SET latin1", "'häß'"),
    _text("varchar(10) CHARACTER SET utf16", "'häß'"),
    _text("tinytext"),
    _text("text", "repeat('x', 5000)", "'häß \U0001f600'"),
    _text("mediumtext"),
    _text("longtext"),
    _text("enum('a', 'b c', 'ü')", "'a'", "'b c'", "'ü'", semantic="string Enum", reader="the label"),
    _text("set('x', 'y z', 'ä')", "'ä,x'", "''", "'y z'", semantic="string EnumSet",
          reader="the labels, a comma between them, in the order of the declaration"),
    _text("json", "'{\"b\": 1,  \"a\": [null, 1.10]}'", "'null'", reader="the text as it was written"),
    _text("uuid", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", "'5c2a9c5e-0d1f-11ef-9262-0242ac120002'",
          semantic="string Uuid", reader="the same; but see below"),
    _bytes("tinyblob", "x'00ff10'", "''"),
    _bytes("blob", "x'00ff10'", "''"),
    _bytes("mediumblob", "x'00ff10'"),
    _bytes("longblob", "x'00ff10'", "repeat(x'00', 5000)"),
    _bytes("binary(4)", "x'ff00'", "x'00000000'", reader="padded with zeros to its length"),
    _bytes("varbinary(10)", "x'ff00'", "''"),
))  # fmt: skip

_TIME = Group("Time", (
    Type("date", _DATES, "int Date", "date32[day]", "date", _ZERO),
    Type("datetime", _TIMES, "long Timestamp", "timestamp[us]", "timestamp", _ZERO),
    Type("datetime(3)", ("'2024-02-29 12:34:56.789'", "'0000-00-00'"), "long Timestamp", "timestamp[us]", "timestamp",
         _ZERO),
    Type("datetime(6)", ("'2024-02-29 12:34:56.789012'", "'9999-12-31 23:59:59.999999'", "'1500-06-01 00:00:00.000001'",
                         "'0000-00-00'"), "long MicroTimestamp", "timestamp[us]", "timestamp", _ZERO),
    Type("timestamp", ("'1970-01-01 00:00:01'", "'2038-01-19 03:14:07'", "'2024-03-31 02:30:00'", "'0000-00-00'"),
         "string ZonedTimestamp", "timestamp[us, tz=UTC]", "timestamptz", f"the instant, in UTC; {_ZERO_INSTANT}"),
    Type("timestamp(6)", ("'2024-07-01 12:34:56.789012'", "'0000-00-00'"), "string ZonedTimestamp",
         "timestamp[us, tz=UTC]", "timestamptz", f"the instant, in UTC; {_ZERO_INSTANT}"),
    Type("time", ("'00:00:00'", "'23:59:59'"), "long MicroTime", "time64[us]", "time", "a time of day; but see below"),
    Type("time(6)", ("'12:34:56.789012'", "'23:59:59.999999'"), "long MicroTime", "time64[us]", "time",
         "a time of day; but see below"),
    Type("year", ("1901", "2155"), "int Year", "int32", "int", "the same; but see below"),
))  # fmt: skip

_SPATIAL = Group("Spatial", (
    Type("point", ("ST_GeomFromText('POINT(1.5 -2)')", "ST_GeomFromText('POINT(0 1)', 4326)"), "record Point",
         "struct<x: double not null, y: double not null, wkb: binary, srid: int32>",
         "struct<x: double, y: double, wkb: binary, srid: int>",
         "x and y, the same as well-known binary, and the number of its reference system"),
    _spatial("geometry", "POINT(1 2)", "LINESTRING(0 0,1 1)"),
    _spatial("linestring", "LINESTRING(0 0,1 1)"),
    _spatial("polygon", "POLYGON((0 0,1 0,1 1,0 0))", "POLYGON((0 0,1 0,1 1,0 0))"),
    _spatial("multipoint", "MULTIPOINT(1 1,2 2)"),
    _spatial("multilinestring", "MULTILINESTRING((0 0,1 1),(2 2,3 3))", "MULTILINESTRING((0 0,1 1))"),
    _spatial("multipolygon", "MULTIPOLYGON(((0 0,1 0,1 1,0 0)))"),
    _spatial("geometrycollection", "GEOMETRYCOLLECTION(POINT(1 1))"),
))  # fmt: skip

ENGINE = Engine(
    "MariaDB",
    """\
With the settings below, which a connector file for MariaDB gets. Each line is checked against a real server through
Debezium: snapshot and stream, insert and update, the extremes, NULL. MySQL's connector gets the same settings, but is
not checked.""",
    (
        Setting("bigint.unsigned.handling.mode", "precise", "else numbers of 2^63 and more come as negative ones"),
        Setting("event.converting.failure.handling.mode", "fail",
                "else NULL takes the place of a value that Debezium cannot convert"),
        Setting("enable.time.adjuster", "false", "else the years 1 to 99 become 1970 to 2069"),
        Setting("driver.yearIsDateType", "false", "else a snapshot stops at a column of type year"),
        Setting("decimal.handling.mode", "precise", "`double` rounds; `string` makes every decimal text"),
        Setting("time.precision.mode", "adaptive_time_microseconds", "`connect` cuts microseconds off"),
    ),
    (_NUMBERS, _TEXTS, _TIME, _SPATIAL),
    MARIADB,
)  # fmt: skip
