"""`python -m cli.compile`: the kernels, compiled once a machine, before the first process needs them.

Not a command of `headrace`, which would import all that its other commands need.
"""

from __future__ import annotations

import time
from importlib import import_module

from cli.output import say
from headrace import kernels

# In the order in which they use each other.
MODULES = (
    "headrace.native",
    "headrace.kafka.parse",
    "headrace.kafka.encode",
    "headrace.keyindex",
    "schemas.codec.scalars",
    "schemas.codec.numbers",
    "schemas.codec.decode_kernel",
    "schemas.codec.encode_kernel",
    "streams.steps.window",
)


def compile_kernels() -> None:
    """Compile the kernels that read and write columns, and keep them for later starts.

    `make install` does it. Where it was not done the first process compiles them itself, some ten seconds in which it
    is not ready. Done again only when the code, numba or the processor has changed.
    """
    started = time.monotonic()
    for number, name in enumerate(MODULES, 1):
        say(f"compiling kernels: {number} of {len(MODULES)}, {name}")
        import_module(name)
        kernels.prepare()
    say(f"kernels are ready, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    compile_kernels()
