"""The one error tree.

Every error says what happened, where (coordinates, file, table, setting) and what to do about it. Whoever catches
decides by type alone: a `TransientError` may be tried again, a `TerminalError` may not.
"""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import Any


class HeadraceError(Exception):
    """Base of all errors that Headrace raises on purpose.

    `where` names the place (coordinates, file, table, setting), `hint` the way out; both may be empty.
    """

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text} ({self.hint})" if self.hint else text

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data, for `--json` and for problem+json answers."""
        return {"error": type(self).__name__, "what": self.what, "where": self.where, "hint": self.hint}


class TransientError(HeadraceError):
    """A server or the network did not answer as it should; the same call may succeed later."""


class TerminalError(HeadraceError):
    """Trying again cannot help: input, configuration or an invariant is wrong."""


class ConfigError(TerminalError):
    """A setting is missing or malformed; `where` names its key."""


class ContractError(TerminalError):
    """A contract, rule or declaration file is wrong; `where` names file and field."""


class DecodeError(TerminalError):
    """Bytes are not what their schema says."""


class SchemaNotFoundError(TerminalError):
    """The registry answered and does not know the schema."""


class FencedError(TerminalError):
    """Another process has moved the stored offsets of a table or of a state: this one must stop writing."""


class IdentityError(TerminalError):
    """Stored offsets belong to another cluster or topic than the one connected to."""


class OffsetGapError(TerminalError):
    """Records between two offsets are gone (retention, truncation) and were never read."""


class IndexLimitError(TerminalError):
    """The key index of a table would take more memory than it may."""


class UnavailableError(TransientError):
    """A server cannot be reached or answered with a failure that may pass."""


class StackError(TerminalError):
    """The local stack cannot start or stop a server."""


def unforeseen(error: BaseException, *, where: str = "", hint: str = "") -> TerminalError:
    """An error that nobody raised on purpose, told by its type and the place that raised it.

    Its own text is left out: it may hold values of rows. Of an error of the operating system the reason is told.
    """
    name = type(error).__name__
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        name = f"{name} ({os.strerror(error.errno)})"
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((f for f in reversed(frames) if "site-packages" not in f.filename), frames[-1] if frames else None)
    place = f" raised at {Path(frame.filename).name}:{frame.lineno} in {frame.name}" if frame else ""
    found = TerminalError(f"{name}{place}", where=where, hint=hint)
    found.__cause__ = error
    return found
