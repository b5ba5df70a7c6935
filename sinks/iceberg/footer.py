"""The footer of a Parquet file, taken apart and put together again: what it takes to join files without decoding them.

It is a structure in Thrift's compact protocol (thrift-compact-protocol.md of Apache Thrift; its fields are in
parquet.thrift of Apache Parquet). The protocol says of every field which type it has, so fields that are not known here
are kept as they are.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

MAGIC = b"PAR1"

# Types of the compact protocol. A field's boolean is in its type, an element's is a byte.
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)

# Fields of parquet.thrift, by the names that they have there.
_SCHEMA, _NUM_ROWS, _ROW_GROUPS, _ENCRYPTION, _SIGNING_KEY = 2, 3, 4, 8, 9
_COLUMNS, _GROUP_FILE_OFFSET, _ORDINAL = 1, 5, 7
_FILE_PATH, _FILE_OFFSET, _META_DATA, _OFFSET_INDEX, _COLUMN_INDEX = 1, 2, 3, 4, 6
_CRYPTO, _ENCRYPTED = 8, 9
_DATA_PAGE, _INDEX_PAGE, _DICTIONARY_PAGE, _BLOOM_FILTER = 9, 10, 11, 14

# A structure: type and value of each field, by its id. Containers are (element type(s), elements).
Struct = dict[int, tuple[int, Any]]


@dataclass(frozen=True, eq=False)
class Footer:
    """A footer, and how many bytes of the file are before it, with the magic ones at its start."""

    fields: Struct
    body: int

    @property
    def schema(self) -> Any:
        """For comparing: equal ones have the same columns, with the same types, ids and nullability."""
        return self.fields[_SCHEMA]

    @property
    def row_groups(self) -> int:
        return len(self._groups)

    @property
    def rows(self) -> int:
        rows: int = self.fields[_NUM_ROWS][1]
        return rows

    @property
    def movable(self) -> bool:
        """Whether all that the file says of places in itself can be changed. Not in an encrypted file, one that has its
        columns elsewhere, or one with an index of pages, which has places of its own."""
        if {_ENCRYPTION, _SIGNING_KEY} & self.fields.keys():
            return False
        fixed = {_FILE_PATH, _OFFSET_INDEX, _COLUMN_INDEX, _CRYPTO, _ENCRYPTED}
        return not any(fixed & column.keys() for group in self._groups for column in group[_COLUMNS][1][1])

    @property
    def _groups(self) -> list[Struct]:
        groups: list[Struct] = self.fields[_ROW_GROUPS][1][1]
        return groups


def parse(tail: bytes, size: int) -> Footer:
    """The footer of a file of `size` bytes that ends with `tail`. Raises `ValueError` when it is none or not all of
    it is there (see `length`)."""
    nbytes = length(tail)
    if nbytes + 8 > len(tail):
        raise ValueError("a part of the footer is missing")
    fields, _ = _read_struct(tail, len(tail) - 8 - nbytes)
    return Footer(fields, size - 8 - nbytes)


def length(tail: bytes) -> int:
    """How long a file's footer is, without the eight bytes after it, by those. Raises `ValueError`."""
    if tail[-4:] != MAGIC:
        raise ValueError("not a Parquet file")
    return int.from_bytes(tail[-8:-4], "little")


def joined(footers: Iterable[Footer]) -> bytes:
    """The footer, with the eight bytes after it, of a file with the row groups of several files, all `movable` and of
    one schema: it is `MAGIC`, then what each of them has between its own and its footer."""
    groups: list[Struct] = []
    at = len(MAGIC)
    first: Struct | None = None
    for footer in footers:
        first = first or footer.fields
        for group in footer._groups:
            groups.append(_moved(group, at - len(MAGIC), len(groups)))
        at += footer.body - len(MAGIC)
    assert first is not None, "no files"
    rows = sum(group[_NUM_ROWS][1] for group in groups)
    out = bytearray()
    _write_struct(out, first | {_NUM_ROWS: (_I64, rows), _ROW_GROUPS: (_LIST, (_STRUCT, groups))})
    return bytes(out) + len(out).to_bytes(4, "little") + MAGIC


def _moved(group: Struct, by: int, number: int) -> Struct:
    columns = []
    for column in group[_COLUMNS][1][1]:
        meta = _shifted(column[_META_DATA][1], (_DATA_PAGE, _INDEX_PAGE, _DICTIONARY_PAGE, _BLOOM_FILTER), by)
        columns.append(_shifted(column, (_FILE_OFFSET,), by) | {_META_DATA: (_STRUCT, meta)})
    moved = _shifted(group, (_GROUP_FILE_OFFSET,), by) | {_COLUMNS: (_LIST, (_STRUCT, columns))}
    return moved | ({_ORDINAL: (_I16, number)} if _ORDINAL in group else {})


def _shifted(fields: Struct, names: Iterable[int], by: int) -> Struct:
    """Zero is no place: some writers put it where they say nothing."""
    places = {name: fields[name] for name in names if name in fields and fields[name][1]}
    return fields | {name: (kind, place + by) for name, (kind, place) in places.items()}


def _read_struct(data: bytes, at: int) -> tuple[Struct, int]:
    fields: Struct = {}
    number = 0
    while True:
        head = data[at]
        at += 1
        if head == 0:
            return fields, at
        kind = head & 15
        if head >> 4:
            number += head >> 4
        else:
            value, at = _read_varint(data, at)
            number = _unzigzag(value)
        if kind in (_TRUE, _FALSE):
            fields[number] = kind, kind == _TRUE
        else:
            value, at = _read(data, at, kind)
            fields[number] = kind, value


def _read(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in (_I16, _I32, _I64):
        value, at = _read_varint(data, at)
        return _unzigzag(value), at
    if kind == _BINARY:
        size, at = _read_varint(data, at)
        return data[at : at + size], at + size
    if kind == _STRUCT:
        return _read_struct(data, at)
    if kind in (_LIST, _SET):
        element = data[at] & 15
        count = data[at] >> 4
        at += 1
        if count == 15:
            count, at = _read_varint(data, at)
        elements = []
        for _ in range(count):
            value, at = _read(data, at, element)
            elements.append(value)
        return (element, elements), at
    if kind in (_TRUE, _FALSE, _BYTE):
        return data[at], at + 1
    if kind == _DOUBLE:
        return struct.unpack_from("<d", data, at)[0], at + 8
    raise ValueError(f"a footer with a Thrift value of type {kind}")


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _unzigzag(value: int) -> int:
    return (value >> 1) ^ -(value & 1)


def _write_struct(out: bytearray, fields: Struct) -> None:
    before = 0
    for number, (kind, value) in sorted(fields.items()):
        if 0 < number - before < 16:
            out.append((number - before) << 4 | kind)
        else:
            out.append(kind)
            _write_varint(out, _zigzag(number))
        before = number
        if kind not in (_TRUE, _FALSE):
            _write(out, kind, value)
    out.append(0)


def _write(out: bytearray, kind: int, value: Any) -> None:
    if kind in (_I16, _I32, _I64):
        _write_varint(out, _zigzag(value))
    elif kind == _BINARY:
        _write_varint(out, len(value))
        out += value
    elif kind == _STRUCT:
        _write_struct(out, value)
    elif kind in (_LIST, _SET):
        element, elements = value
        out.append(min(len(elements), 15) << 4 | element)
        if len(elements) >= 15:
            _write_varint(out, len(elements))
        for each in elements:
            _write(out, element, each)
    elif kind == _DOUBLE:
        out += struct.pack("<d", value)
    else:
        out.append(value)


def _write_varint(out: bytearray, value: int) -> None:
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)


def _zigzag(value: int) -> int:
    return value << 1 if value >= 0 else (-value << 1) - 1
