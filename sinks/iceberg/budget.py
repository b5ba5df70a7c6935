"""How much memory the key indexes of a process may take together."""

from __future__ import annotations

from headrace.errors import IndexLimitError

# Of one key in a table that has just been opened, without a version: for saying how many keys an amount of memory is.
BYTES_PER_KEY = 36


class IndexBudget:
    """A limit in bytes, and what the index of each table takes of it. One thread at a time."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken: dict[str, int] = {}

    def claim(self, table: str, nbytes: int) -> None:
        """`table` takes this much from now on, whatever it took before.

        Raises `IndexLimitError` when all tables together would take more than the limit; then it is taken to give up
        what it had.
        """
        others = sum(taken for name, taken in self._taken.items() if name != table)
        if others + nbytes > self._limit:
            self._taken.pop(table, None)
            raise IndexLimitError(
                f"its key index needs {_mb(nbytes)} (about {nbytes // BYTES_PER_KEY:,} keys), other tables of this "
                f"process take {_mb(others)}, and the limit is {_mb(self._limit)}",
                where=table,
                hint="raise sink.max_index_bytes, or give the topic a sink of its own (sink.exclude)",
            )
        self._taken[table] = nbytes


def _mb(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.0f} MB"
