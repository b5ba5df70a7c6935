"""Memory that a commit has freed goes back to the system, instead of adding up with what compaction needs next."""

from __future__ import annotations

import ctypes
import sys

import pyarrow as pa

# From here on a buffer has pages of its own. Left alone, glibc raises this to 32 MB as large buffers are freed, and
# keeps what then lies between smaller ones.
OWN_PAGES_BYTES = 1 << 20
_M_MMAP_THRESHOLD = -3


def give_back() -> None:
    """Make this process's allocations, Arrow's too, of a kind that is given back. For processes that hold tens of
    megabytes for a moment, again and again."""
    pa.set_memory_pool(pa.system_memory_pool())
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, OWN_PAGES_BYTES)
