"""A library's function with some of its globals exchanged, where it has no seam for what must differ."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any


def rebind(function: Callable[..., Any], **names: Any) -> types.FunctionType:
    """A copy of a function that sees these objects under these global names.

    Raises ImportError when the function does not use one of the names: then another version is installed than the one
    this was written for.
    """
    for name in names:
        if name not in function.__code__.co_names:
            raise ImportError(f"the installed aiokafka is not the pinned one: {function.__qualname__} lacks {name}")
    copy = types.FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
