"""Tables that are read again while they change, as `headrace connect snapshot` does, under the eyes of `connectors`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing

from connectors import snapshots
from connectors.connect import Connector
from connectors.databases import prepare_source
from connectors.notices import Snapshot
from connectors.supervise import Supervisor
from connectors.watch import Watch
from headrace.config import Settings

PATIENCE_SECONDS = 60.0


@asynccontextmanager
async def supervised(settings: Settings) -> AsyncIterator[None]:
    """The process `connectors` at work, with less patience."""
    supervisor = Supervisor(settings, patience=5.0)

    async def look() -> None:
        while True:
            await asyncio.to_thread(supervisor.step)
            await asyncio.sleep(0.5)

    with closing(supervisor.watch):
        task = asyncio.create_task(look())
        try:
            yield
            assert not task.done(), task.exception()
        finally:
            task.cancel()
            await asyncio.wait([task])


class Reader:
    """Has tables read again while they change, one after the other, as `headrace connect snapshot` does."""

    def __init__(self, settings: Settings, connector: Connector) -> None:
        self._settings, self._number, self._topic, self._altered = settings, "", "", False
        self._target = snapshots.Target(connector.name, connector.config)
        self._watch = Watch(settings)
        prepare_source(settings, connector)

    def close(self) -> None:
        self._watch.close()

    def altering(self, topic: str) -> None:
        """Before a table is altered, of which a first chunk must have been read (docs/changes.md, known limits).

        Debezium's read of it may fail then: it is read once more.
        """
        if topic == self._topic and not self._altered:
            self._until(self._begun)
            self._altered = True

    def read(self, topic: str) -> None:
        self.wait()
        self._topic, self._altered = topic, False
        self._ask()

    def _ask(self) -> None:
        table = self._topic.removeprefix(f"{self._target.config['topic.prefix']}.")
        self._number = snapshots.execute(self._watch, self._settings, self._target, table)

    def wait(self) -> None:
        """Until the last one is over."""
        if self._number:
            self._until(self._over)

    def _until(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not true():
            assert time.monotonic() < deadline, f"{self._number}: {self._watch.look({self._target.name})}"
            time.sleep(0.1)

    def look(self) -> Snapshot | None:
        """The last one, as far as it has been told."""
        return self._watch.notices.snapshots(self._target.notices).get(self._number)

    def _begun(self) -> bool:
        found = self.look()
        return found is not None and (found.over or any(scan.chunks for scan in found.tables.values()))

    def _over(self) -> bool:
        found = self.look()
        if found is None or not found.over:
            return False
        failed = any(scan.failed for scan in found.tables.values())
        if again := failed and self._altered:
            self._altered = False
            self._ask()
        assert again or not failed, found
        return not again
