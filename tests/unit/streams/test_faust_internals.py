"""The names of Faust that the transport overrides, or relies on beside its interface: an upgrade says what it broke."""

from __future__ import annotations

import inspect
from importlib.metadata import version
from typing import Any

import faust.streams
import pytest
from faust.agents.agent import Agent
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from faust.transport import consumer
from faust.transport.drivers import aiokafka as stock

from streams import transport


def source(function: Any) -> str:
    return inspect.getsource(function)


def test_the_pinned_version_is_installed() -> None:
    assert version("faust-streaming") == "0.15.3"


def test_an_agent_is_made_of_these() -> None:
    assert {"fun", "name", "app", "channel"} <= inspect.signature(Agent.__init__).parameters.keys()


def test_the_compiled_stream_iterator_is_there() -> None:
    assert faust.streams._CStreamIterator is not None


@pytest.mark.parametrize(
    ("stocks", "ours", "names"),
    [
        (
            stock.Consumer,
            transport.Consumer,
            (
                "_new_consumer_thread",
                "_to_message",
                "_add_gap",
                "_new_offset",
                "_filter_tps_with_pending_acks",
                "_wait_next_records",
                "on_buffer_full",
                "on_buffer_drop",
                "on_partitions_revoked",
                "perform_seek",
            ),
        ),
        (
            stock.AIOKafkaConsumerThread,
            transport.ConsumerThread,
            ("_create_worker_consumer", "_fetch_records"),
        ),
    ],
)
def test_what_is_overridden_is_faust_s_and_takes_the_same(stocks: Any, ours: Any, names: tuple[str, ...]) -> None:
    for name in names:
        assert name in vars(ours), f"{name} is not overridden any more"
        assert (
            inspect.signature(getattr(stocks, name)).parameters.keys()
            == inspect.signature(getattr(ours, name)).parameters.keys()
        ), f"Faust's {name} takes something else"


@pytest.mark.parametrize(
    ("function", "text"),
    [
        # What each override is called by.
        (consumer.Consumer.getmany, "await self._wait_next_records("),
        (consumer.Consumer.getmany, "to_message = self._to_message"),
        (consumer.Consumer._drain_messages, "await self._add_gap(tp, r_offset + 1, offset)"),
        (consumer.Consumer._filter_committable_offsets, "offset = self._new_offset(tp)"),
        (consumer.Consumer.force_commit, "self._filter_tps_with_pending_acks(topics)"),
        (stock.ThreadDelegateConsumer.__init__, "self._new_consumer_thread()"),
        (stock.AIOKafkaConsumerThread._create_consumer, "return self._create_worker_consumer(transport)"),
        (stock.AIOKafkaConsumerThread.getmany, "self._fetch_records,"),
        # What they rely on.
        (consumer.Consumer.ack, "message.acked = True"),
        (consumer.Consumer.ack, "acked_index = self._acked_index[tp]"),
        (consumer.Consumer.ack, "acked_for_tp = self._acked[tp]"),
        (consumer.Consumer.ack, "self._unacked_messages.discard(message)"),
        (consumer.Consumer.ack, "notify(self._waiting_for_ack)"),
        (consumer.Consumer._wait_for_ack, "self._waiting_for_ack = asyncio.Future("),
        (consumer.Consumer._clean_unacked_messages, "for message in self._unacked_messages if message.acked"),
        (consumer.Consumer.on_buffer_full, "self._buffered_partitions.add(tp)"),
        (consumer.Consumer.on_buffer_full, "active_partitions = self._get_active_partitions()"),
        (consumer.Consumer._should_commit, "committed = self._committed_offset[tp]"),
        (stock.ThreadDelegateConsumer.__init__, "self._thread = "),
        (stock.AIOKafkaConsumerThread._ensure_consumer, "return self._consumer"),
        (stock.AIOKafkaConsumerThread.on_start, "self._consumer = self._create_consumer("),
        # What the worker does without.
        (TableManager, "await self.sleep("),
        (Recovery, "self.completed.set()"),
    ],
)
def test_faust_does_what_the_transport_counts_on(function: Any, text: str) -> None:
    assert text in source(function)
