"""TLS or SASL that does not work: told as such, at once, where the clients would try for ever.

aiokafka logs a connection that is refused and tries the next broker, or the same one again: what it raises in the end,
if anything, is that no broker is there. So its connections are watched, by private names under a pinned version:
`AIOKafkaClient.bootstrap` and `_get_conn` (their global `create_conn` is bound anew, for one client).
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Awaitable, Callable
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.conn import create_conn

from headrace.kafka.errors import SecurityError, refusal
from headrace.kafka.rebind import rebind


class Watch:
    """Remembers, of one aiokafka client, that a broker has refused it or was refused.

    Its connections are made by `connect`, which takes the arguments of aiokafka's `create_conn`.
    """

    def __init__(self, client: AIOKafkaClient, connect: Callable[..., Awaitable[Any]] = create_conn) -> None:
        self._create = connect
        self._refusal: SecurityError | None = None
        self._refused = asyncio.Event()
        for name in ("bootstrap", "_get_conn"):
            function = rebind(getattr(AIOKafkaClient, name), create_conn=self._connect)
            setattr(client, name, types.MethodType(function, client))

    async def _connect(self, host: str, port: int, **options: Any) -> Any:
        try:
            return await self._create(host, port, **options)
        except Exception as e:
            self._note(e, f"{host}:{port}")
            raise

    def _note(self, error: Exception, where: str) -> None:
        found = refusal(error, where)
        if found is not None:
            found.__cause__ = error
            self._refusal = found
            self._refused.set()

    def check(self) -> None:
        """Raise the `SecurityError` seen since the last call, if any."""
        if self._refusal is not None:
            found, self._refusal = self._refusal, None
            self._refused.clear()
            raise found

    async def start(self, start: Callable[[], Awaitable[None]], stop: Callable[[], Awaitable[None]]) -> None:
        """The client's own start; when a connection is refused meanwhile, end it, stop and raise `SecurityError`.

        The client's start alone would not return, or would say that no broker is there.
        """
        starting, refused = asyncio.ensure_future(start()), asyncio.ensure_future(self._refused.wait())
        try:
            await asyncio.wait({starting, refused}, return_when=asyncio.FIRST_COMPLETED)
            if self._refusal is None:
                return await starting
        finally:
            starting.cancel()
            refused.cancel()
            await asyncio.gather(starting, refused, return_exceptions=True)
        await stop()
        self.check()
