"""Tables that are read again while they change, as `headrace connect snapshot` does, under the eyes of `connectors`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

from connectors import snapshots
from connectors.connect import Connector
from connectors.databases import prepare_source
from connectors.notices import Snapshot
from connectors.supervise import Supervisor
from connectors.watch import Watch
from headrace.config import Settings


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

    def altered(self, topic: str) -> None:
        """Debezium's read of a table may fail when it is altered meanwhile: it is then read once more."""
        self._altered |= topic == self._topic

    def read(self, topic: str) -> None:
        self.wait()
        self._topic, self._altered = topic, False
        self._ask()

    def _ask(self) -> None:
        table = self._topic.removeprefix(f"{self._target.config['topic.prefix']}.")
        self._number = snapshots.execute(self._watch, self._settings, self._target, table)

    def wait(self, seconds: float = 60) -> None:
        """Until the last one is over."""
        deadline = time.monotonic() + seconds
        while self._number and not self._over():
            assert time.monotonic() < deadline, f"{self._number}: {self._watch.look({self._target.name})}"
            time.sleep(0.2)

    def look(self) -> Snapshot | None:
        """The last one, as far as it has been told."""
        return self._watch.notices.snapshots(self._target.notices).get(self._number)

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
