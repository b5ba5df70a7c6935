"""The bridge: MQTT messages into Kafka, acknowledged to their broker only after Kafka has them.

A message is JSON by the contract that its MQTT topic maps to, or Avro (Confluent framing, or Avro's single-object
encoding of the contract). What is neither goes to the same Kafka topic as it is: there it gets coordinates like every
record, and the readers of the topic put it into the quarantine, whole. So nothing is lost and there is one quarantine.

Numbered order: 1 receive, 2 produce (idempotent, all replicas), 3 PUBACK. Whatever dies in between, the broker sends
again what it has no PUBACK for; devices' own sequence numbers tell such repeats downstream.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import paho.mqtt.client as mqtt
from aiokafka.structs import RecordMetadata
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from connectors.feed import Feed, is_fed_from_outside, persist
from connectors.payloads import Message, Translator
from headrace.config import Settings
from headrace.errors import ConfigError, ContractError, HeadraceError
from headrace.logs import get_logger
from headrace.metrics import BATCH_ROWS, LAST_RECORD, ROWS_DROPPED, ROWS_IN, ROWS_OUT, ROWS_QUARANTINED
from headrace.process import Lifecycle
from schemas.contracts import Contract, ContractSet, load_contracts

FLOW = "bridge"
IN_FLIGHT = 10_000
BATCH = 5_000
SESSION_SECONDS = 7 * 24 * 3600
DRAIN_SECONDS = 10.0
SILENT_SECONDS = 10.0


def routes(contracts: ContractSet, configured: Mapping[str, str]) -> dict[str, Contract]:
    """MQTT topic filter -> contract, from the contracts' `mqtt` attribute and from the setting `mqtt.topics`.

    Raises `ContractError` or `ConfigError` for a filter that MQTT does not allow, that two contracts claim, or whose
    contract is unknown or written by the pipeline itself.
    """
    claims: list[tuple[str, str, Contract]] = []
    for contract in contracts:
        filters = contract.avro.get("mqtt", [])
        if not isinstance(filters, list) or not all(isinstance(one, str) for one in filters):
            raise ContractError('must be a list like ["site/+/reading"]', where=f"{contract.path}: mqtt")
        claims += [(one, f"{contract.path}: mqtt", contract) for one in filters]
    for one, name in configured.items():
        found = contracts.by_name.get(name)
        if found is None:
            raise ConfigError(f"no contract {name!r}", where=f"mqtt.topics.{one}", hint="headrace contract list")
        claims.append((one, f"mqtt.topics.{one}", found))
    taken: dict[str, Contract] = {}
    for one, where, contract in claims:
        if not _is_filter(one):
            raise ContractError(f"{one!r} is not an MQTT topic filter", where=where)
        if not is_fed_from_outside(contract):
            raise ContractError(f"{contract.name} is written by the pipeline itself", where=where)
        if taken.setdefault(one, contract) is not contract:
            raise ContractError(f"{one!r} is already that of {taken[one].name}", where=where)
    return taken


def _is_filter(text: str) -> bool:
    parts = text.split("/")
    plain = all(part in ("+", "#") or not set(part) & set("+#") for part in parts)
    return bool(text) and plain and "#" not in parts[:-1] and "\0" not in text


def contract_of(topic: str, filters: Iterable[str]) -> str | None:
    """The filter that takes a topic: the most exact one, where several do."""
    matching = [one for one in filters if mqtt.topic_matches_sub(one, topic)]
    return min(matching, key=lambda one: (one.count("#"), one.count("+"), one)) if matching else None


class Inbox:
    """Messages between the MQTT client's thread and the event loop."""

    def __init__(self) -> None:
        self._messages: deque[Message] = deque()
        self._loop = asyncio.get_running_loop()
        self.arrived = asyncio.Event()

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, message: Message) -> None:
        """From any thread."""
        self._messages.append(message)
        if not self.arrived.is_set():
            self.wake()

    def wake(self) -> None:
        """From any thread."""
        self._loop.call_soon_threadsafe(self.arrived.set)

    def take(self, most: int) -> list[Message]:
        self.arrived.clear()
        taken = [self._messages.popleft() for _ in range(min(most, len(self._messages)))]
        if self._messages:
            self.arrived.set()
        return taken


class Bridge:
    """Carries the messages of `filters` from one broker into Kafka. `client_id` names its durable session."""

    def __init__(self, settings: Settings, filters: Mapping[str, Contract], client_id: str) -> None:
        self._filters = dict(filters)
        self._feed = Feed(settings)
        self._inbox = Inbox()
        self._translators: dict[str, Translator] = {}
        self._contracts: dict[str, Contract | None] = {}
        self._session = 0
        self._pending: set[asyncio.Task[None]] = set()
        self._log = get_logger("bridge")
        self.broker_problem: str | None = "not connected yet"
        self.kafka_problem: str | None = None
        self._acknowledged_at = 0.0
        self._sleep: Callable[[float], Awaitable[bool]]
        self.failure: HeadraceError | None = None
        self._client = self._make_client(_parse(settings.mqtt.url), client_id)

    def _make_client(self, url: SplitResult, client_id: str) -> mqtt.Client:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTProtocolVersion.MQTTv5, manual_ack=True
        )
        if url.username:
            client.username_pw_set(unquote(url.username), unquote(url.password or ""))
        if url.scheme == "mqtts":
            client.tls_set()
        client.on_pre_connect = self._on_pre_connect
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.reconnect_delay_set(1, 10)
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        # The broker keeps the session while the bridge is away, and stops sending at so many unacknowledged messages.
        properties.SessionExpiryInterval = SESSION_SECONDS
        properties.ReceiveMaximum = IN_FLIGHT
        port = url.port or (8883 if url.scheme == "mqtts" else 1883)
        client.connect_async(str(url.hostname), port, keepalive=30, clean_start=False, properties=properties)
        return client

    # The client's callbacks run in its own thread.

    def _on_pre_connect(self, client: mqtt.Client, userdata: Any) -> None:
        self._session += 1

    def _on_connect(self, client: mqtt.Client, userdata: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        if reason.is_failure:
            self.broker_problem = f"broker refuses: {reason}"
            return
        self._log.info("connected to the MQTT broker", session_present=flags.session_present)
        self.broker_problem = "not subscribed yet" if self._filters else None
        if self._filters:
            # Retained messages come with a new subscription only, not at each reconnect.
            options = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB)
            client.subscribe([(one, options) for one in self._filters])

    def _on_disconnect(self, client: mqtt.Client, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        self._session += 1
        self.broker_problem = f"broker is away: {reason}"

    def _on_subscribe(self, client: mqtt.Client, userdata: Any, mid: int, reasons: Any, properties: Any) -> None:
        refused = [one for one, reason in zip(self._filters, reasons, strict=False) if reason.is_failure]
        if refused:
            self.failure = ConfigError(f"the broker refuses to subscribe {', '.join(refused)}", where="mqtt")
            self._inbox.wake()
            return
        self._log.info("subscribed", filters=sorted(self._filters))
        self.broker_problem = None

    def _on_message(self, client: mqtt.Client, userdata: Any, message: mqtt.MQTTMessage) -> None:
        if message.qos == 0 and len(self._inbox) >= IN_FLIGHT:
            # The broker waits for acknowledgements of QoS 1 alone: these would fill the memory while Kafka is away.
            ROWS_DROPPED.labels(FLOW, "", "QoS 0 while the bridge is full").inc()
            return
        self._inbox.put(Message(self._session, message.mid, message.qos, message.topic, bytes(message.payload)))

    # The rest runs in the event loop.

    def _contract(self, topic: str) -> Contract | None:
        if topic not in self._contracts:
            if len(self._contracts) > 1_000_000:
                self._contracts.clear()
            one = contract_of(topic, self._filters)
            self._contracts[topic] = self._filters[one] if one else None
        return self._contracts[topic]

    async def run(self, lifecycle: Lifecycle) -> None:
        """Until the process stops. Survives the loss of the MQTT broker, of Kafka and of the registry."""
        lifecycle.checks["mqtt"] = lambda: self.broker_problem
        lifecycle.checks["kafka"] = self._check_kafka
        self._sleep = lifecycle.sleep
        for contract in {c.topic: c for c in self._filters.values()}.values():
            stream = await persist(partial(self._feed.stream, contract), lifecycle.sleep, self._note)
            if stream is None:
                return
            self._translators[contract.topic] = Translator(stream)
        if await persist(self._feed.start, lifecycle.sleep, self._note) is None:
            return
        self._client.loop_start()
        lifecycle.ready()
        stopping = asyncio.ensure_future(lifecycle.stopping.wait())
        try:
            while not lifecycle.stopping.is_set():
                arrived = asyncio.ensure_future(self._inbox.arrived.wait())
                await asyncio.wait({arrived, stopping}, return_when=asyncio.FIRST_COMPLETED)
                arrived.cancel()
                if self.failure is not None:
                    raise self.failure
                await self._carry(self._inbox.take(BATCH))
        finally:
            stopping.cancel()
            await self._drain()

    def _check_kafka(self) -> str | None:
        silent = time.monotonic() - self._acknowledged_at
        if self.kafka_problem is None and self._pending and silent > SILENT_SECONDS:
            return f"no acknowledgement for {silent:.0f} s"
        return self.kafka_problem

    def _note(self, problem: str | None) -> None:
        if problem and problem != self.kafka_problem:
            self._log.warning("waiting", reason=problem)
        self.kafka_problem = problem

    async def _carry(self, messages: list[Message]) -> None:
        """Produce messages in their order; a task of its own acknowledges them once Kafka has."""
        by_topic: dict[str, list[Message]] = {}
        for message in messages:
            contract = self._contract(message.topic)
            if contract is None:
                self._log.warning("message of a topic that was not subscribed")
                self._acknowledge([message])
            else:
                by_topic.setdefault(contract.topic, []).append(message)
        for topic, some in by_topic.items():
            records = self._translators[topic].translate(some)
            ROWS_IN.labels(FLOW, topic).inc(len(some))
            BATCH_ROWS.labels(FLOW, topic).observe(len(some))
            send = partial(self._feed.send, topic, records.keys, records.values)
            futures = await persist(send, self._sleep, self._note)
            if futures is None:
                return  # stopping: the broker has no acknowledgement, and sends these again
            if not self._pending:
                self._acknowledged_at = time.monotonic()
            task = asyncio.ensure_future(self._settle(topic, some, futures, records.unreadable))
            self._pending.add(task)
            task.add_done_callback(self._settled)

    async def _settle(
        self, topic: str, messages: list[Message], futures: list[asyncio.Future[RecordMetadata]], unreadable: int
    ) -> None:
        await asyncio.gather(*futures)
        self._acknowledged_at = time.monotonic()
        self._acknowledge(messages)
        ROWS_OUT.labels(FLOW, topic).inc(len(messages) - unreadable)
        LAST_RECORD.labels(FLOW, topic).set(time.time())
        if unreadable:
            ROWS_QUARANTINED.labels(FLOW, topic, "unreadable").inc(unreadable)

    def _acknowledge(self, messages: Iterable[Message]) -> None:
        for message in messages:
            if message.qos and message.session == self._session:
                self._client.ack(message.id, message.qos)

    def _settled(self, task: asyncio.Task[None]) -> None:
        self._pending.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and self.failure is None:
            self.failure = HeadraceError(f"Kafka refuses the messages: {error}", where="bridge")
            self._inbox.arrived.set()

    async def _drain(self) -> None:
        """Acknowledge what Kafka still takes; the broker keeps the rest for the next start."""
        if self._pending:
            await asyncio.wait(self._pending, timeout=DRAIN_SECONDS)
        for _ in range(200):
            if not (self._client.is_connected() and self._client.want_write()):
                break
            await asyncio.sleep(0.01)
        self._client.disconnect()
        await asyncio.to_thread(self._client.loop_stop)
        await asyncio.wait_for(self._feed.close(), DRAIN_SECONDS)


def _parse(url: str) -> SplitResult:
    parts = urlsplit(url)
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
        raise ConfigError("must be mqtt://host:port or mqtts://host:port", where="mqtt.url")
    return parts


async def run(settings: Settings, lifecycle: Lifecycle) -> None:
    """The process `bridge`. Its session is named after `worker.application`: one bridge per application."""
    filters = routes(load_contracts(settings.content), settings.mqtt.topics)
    if not filters:
        get_logger("bridge").warning("no contract names MQTT topics: nothing to carry")
    await Bridge(settings, filters, f"{settings.worker.application}-bridge").run(lifecycle)
