"""The private names of aiokafka and numba that Headrace relies on, one test each: an upgrade says what it broke."""

from __future__ import annotations

import inspect
from importlib.metadata import version
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, conn
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import create_conn
from aiokafka.consumer import fetcher
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.producer import message_accumulator
from aiokafka.producer.producer import TransactionManager
from aiokafka.producer.sender import Sender
from aiokafka.record.control_record import ABORT_MARKER
from numba import njit

from headrace.kafka import layout
from headrace.kafka.rebind import rebind


def source(function: Any) -> str:
    return inspect.getsource(function)


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_pinned_version_is_installed() -> None:
    assert version("aiokafka") == "0.14.0"


def test_the_consumer_makes_its_fetcher_in_start() -> None:
    assert "self._fetcher = Fetcher(" in source(AIOKafkaConsumer.start)
    assert "self._fetcher.fetched_records(" in source(AIOKafkaConsumer.getmany)


def test_the_fetcher_s_task_starts_later_and_is_kept() -> None:
    assert "self._fetch_task = create_task(self._fetch_requests_routine())" in source(fetcher.Fetcher.__init__)


def test_the_fetcher_s_waiters_are_futures_that_are_asked_for_their_error() -> None:
    assert "self._fetch_waiters.add(fut)" in source(fetcher.Fetcher._create_fetch_waiter)
    assert "waiter.result()" in source(fetcher.Fetcher.fetched_records)


def test_a_fetcher_says_that_it_is_closed() -> None:
    assert "self._closed = True" in source(fetcher.Fetcher.close)


@pytest.mark.parametrize("name", ["MemoryRecords", "PartitionRecords"])
def test_a_fetch_response_becomes_records_by_these_globals(name: str) -> None:
    assert rebind(fetcher.Fetcher._proc_fetch_request, **{name: object}).__globals__[name] is object
    assert getattr(fetcher, name)


def test_rebinding_a_name_that_is_not_used_says_so() -> None:
    with pytest.raises(ImportError, match=r"not the pinned one: Fetcher\._proc_fetch_request lacks Gone"):
        rebind(fetcher.Fetcher._proc_fetch_request, Gone=object)


@pytest.mark.parametrize("name", ["bootstrap", "_get_conn"])
def test_a_client_connects_by_this_global(name: str) -> None:
    function = getattr(AIOKafkaClient, name)
    assert rebind(function, create_conn=object).__globals__["create_conn"] is object


def test_a_client_connects_nowhere_else() -> None:
    assert source(AIOKafkaClient).count("create_conn(") == 2
    assert parameters(create_conn)[:2] == ["host", "port"]


def test_the_consumer_and_the_producer_have_their_client_before_they_start() -> None:
    assert "self._client = AIOKafkaClient(" in source(AIOKafkaConsumer.__init__)
    assert "self.client = AIOKafkaClient(" in source(AIOKafkaProducer.__init__)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (create_conn, "AIOKafkaConnection"),
        (conn.AIOKafkaConnection.connect, "AIOKafkaProtocol"),
        (conn.AIOKafkaConnection.connect, "asyncio"),
        (conn.AIOKafkaConnection._handle_frame, "io"),
    ],
)
def test_a_connection_is_made_by_these_globals(function: Any, name: str) -> None:
    assert rebind(function, **{name: object}).__globals__[name] is object


def test_a_connection_makes_its_streams_so() -> None:
    made = source(conn.AIOKafkaConnection.connect)
    assert "asyncio.StreamReader(limit=READER_LIMIT, loop=loop)" in made
    assert "AIOKafkaProtocol(self._closed_fut, reader, loop=loop)" in made
    assert "asyncio.StreamWriter(transport, protocol, reader, loop)" in made


def test_a_connection_asks_for_the_length_and_then_for_the_response() -> None:
    read = source(conn.AIOKafkaConnection._read)
    assert read.index("readexactly(4)") < read.index("readexactly(size)")
    assert read.count("readexactly") == 2
    assert "correlation_id, request, fut = self._requests[0]" in source(conn.AIOKafkaConnection._handle_frame)


def test_a_fetch_result_stops_at_the_number_asked_for_and_keeps_the_rest() -> None:
    assert "len(ret_list) >= max_records" in source(fetcher.FetchResult.getall)
    assert "max_records or self._max_poll_records" in source(AIOKafkaConsumer.getmany)


def test_memory_records_take_bytes() -> None:
    assert not fetcher.MemoryRecords(b"").has_next()


def test_partition_records_take_these_arguments_in_this_order() -> None:
    assert parameters(fetcher.PartitionRecords.__init__)[1:] == [
        "tp",
        "records",
        "aborted_transactions",
        "fetch_offset",
        "key_deserializer",
        "value_deserializer",
        "check_crcs",
        "isolation_level",
    ]


@pytest.mark.parametrize(
    "field",
    [
        "_tp",
        "_records",
        "_aborted_transactions",
        "_aborted_producers",
        "_check_crcs",
        "_isolation_level",
        "next_fetch_offset",
    ],
)
def test_partition_records_have_these_fields(field: str) -> None:
    assert f"self.{field} = " in source(fetcher.PartitionRecords.__init__)


def test_partition_records_iterate_over_what_unpack_records_yields() -> None:
    assert "self._unpack_records()" in source(fetcher.PartitionRecords.__init__)


@pytest.mark.parametrize("field", ["_fetch_max_wait_ms", "_fetch_min_bytes"])
def test_a_fetcher_takes_its_patience_from_these_fields_at_each_fetch(field: str) -> None:
    assert f"self.{field} = " in source(fetcher.Fetcher.__init__)
    assert f"self.{field}" in source(fetcher.Fetcher._get_actions_per_node)


def test_the_coordinator_tells_offsets_with_their_metadata() -> None:
    assert "self._coordinator = GroupCoordinator(" in source(AIOKafkaConsumer.start)
    assert parameters(GroupCoordinator.fetch_committed_offsets) == ["self", "partitions"]
    assert "OffsetAndMetadata(offset, metadata)" in source(GroupCoordinator._do_fetch_commit_offsets)


def test_a_client_tells_the_metadata_of_all_topics() -> None:
    assert parameters(AIOKafkaClient.fetch_all_metadata) == ["self"]


def test_aborted_producers_are_found_by_offset() -> None:
    assert parameters(fetcher.PartitionRecords._consume_aborted_up_to) == ["self", "batch_offset"]


def test_the_position_moves_to_next_fetch_offset() -> None:
    assert "consumed_to(self._partition_records.next_fetch_offset)" in source(fetcher.FetchResult._update_position)


def test_the_abort_marker_s_type() -> None:
    assert ABORT_MARKER.type_ == layout.ABORT_MARKER


@pytest.mark.parametrize("name", ["append", "close", "closed", "record_count", "size", "_set_producer_state", "_build"])
def test_a_batch_builder_is_asked_for_nothing_else(name: str) -> None:
    public = {name for name in vars(message_accumulator.BatchBuilder) if not name.startswith("__")}
    assert public == {
        "append",
        "close",
        "closed",
        "record_count",
        "size",
        "_set_producer_state",
        "_build",
        "_serialize",
    }
    assert name in public


def test_producer_state_is_set_once_before_the_batch_is_built() -> None:
    assert parameters(message_accumulator.BatchBuilder._set_producer_state)[1:] == [
        "producer_id",
        "producer_epoch",
        "base_sequence",
    ]
    assert "not_retry" in source(message_accumulator.MessageAccumulator._pop_batch)


@pytest.mark.parametrize("field", ["_batch_size", "_compression_type"])
def test_the_accumulator_has_these_fields(field: str) -> None:
    assert f"self.{field} = " in source(message_accumulator.MessageAccumulator.__init__)


def test_the_sender_drains_by_node_and_mutes_only_what_it_was_given() -> None:
    assert "self._message_accumulator.drain_by_nodes(" in source(Sender._sender_routine)
    assert "for tp in node_batches:" in source(Sender._sender_routine)


def test_a_batch_that_is_put_back_comes_first_and_keeps_its_sequence_number() -> None:
    assert "self._batches[tp].appendleft(batch)" in source(message_accumulator.MessageAccumulator.reenqueue)
    assert "self._builder = " in source(message_accumulator.MessageBatch.__init__)


@pytest.mark.parametrize("field", ["_message_accumulator", "_max_request_size", "_txn_manager"])
def test_the_producer_has_these_fields(field: str) -> None:
    assert f"self.{field} = " in source(AIOKafkaProducer.__init__)


def test_a_transaction_manager_has_an_id() -> None:
    assert "transactional_id" in source(TransactionManager.__init__)


def test_numba_compiles_without_its_wrappers_and_shows_what_it_made() -> None:
    """How it passes arguments is checked at each compilation (`headrace.jit`)."""
    dispatcher = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, _nrt=False)(lambda number: number)
    dispatcher.compile("i8(i8)")
    (compiled,) = dispatcher.overloads.values()
    assert f"@{compiled.fndesc.llvm_func_name}(" in compiled.library.get_llvm_str()
