"""Released versions of contracts: copies in `released/<Name>.avsc` beside the contracts, committed with them.

A file rather than the registry's word, so that CI compares a change with what was released without any server.
`headrace contract register --release` writes them; who deletes a copy retires the contract.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from headrace.errors import ContractError
from schemas.contracts import BUILTIN, FOLDER, Contract


def released_path(contract: Contract) -> Path:
    return contract.path.parent / "released" / f"{contract.name}.avsc"


def read_released(contract: Contract) -> dict[str, Any] | None:
    """The released version, None when there is none. Raises `ContractError` when its file is damaged."""
    path = released_path(contract)
    if not path.is_file():
        return None
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ContractError(f"cannot be read: {e}", where=str(path)) from e
    if not isinstance(schema, dict):
        raise ContractError("is not an Avro record", where=str(path))
    return schema


def write_released(contract: Contract) -> bool:
    """Copy the contract's file as the released version; false when it is that already."""
    path = released_path(contract)
    text = contract.path.read_text(encoding="utf-8")
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return True


def released_files(folders: Iterable[Path]) -> list[Path]:
    """All released copies of the built-in contracts and of the content folders'."""
    places = [BUILTIN, *(folder / FOLDER for folder in folders)]
    found = (path for place in places for path in sorted((place / "released").glob("*.avsc")))
    return [*{path.resolve(): path for path in found}.values()]
