"""What can go wrong between Kafka's bytes and columns."""

from __future__ import annotations

from typing import Any

from aiokafka.errors import KafkaError as ClientError
from confluent_kafka import KafkaException

from headrace.errors import HeadraceError, TerminalError, TransientError, UnavailableError


class CorruptBatchError(TransientError):
    """A record batch fails its checksum or is not laid out as the protocol says.

    The consumer's position stays before the batch: the next read fetches it again, which helps when the damage was done
    on the way. A batch that is damaged on the broker's disk fails for ever: bound the retries.
    """


class DecompressionLimitError(TerminalError):
    """A record batch would decompress to more than the consumer's limit. The position stays before the batch."""


class BatchTooLargeError(TerminalError):
    """Rows do not fit the record batch that they must go into. Nothing of the batch was sent."""


class FetchStoppedError(TerminalError):
    """The consumer's background fetching has ended: this consumer will never return anything again."""


def from_client(error: Exception, *, where: str = "", hint: str = "") -> HeadraceError:
    """The same error of aiokafka or confluent-kafka in Headrace's tree: transient where the client says so."""
    if isinstance(error, HeadraceError):
        return error
    passing = isinstance(error, (TimeoutError, OSError))
    what: Any = error
    if isinstance(error, KafkaException):
        what = error.args[0]
        passing = what.retriable() or what.name() in _PASSING
        what = what.str()
    elif isinstance(error, ClientError):
        passing = bool(error.retriable)
    return (UnavailableError if passing else TerminalError)(f"Kafka: {what}", where=where, hint=hint)


# librdkafka marks none of these as retriable outside its own requests; a broker that comes back, or an election that
# ends, ends them all. After the first line it is Kafka's own list (protocol guide, error codes, "retriable").
_PASSING = {
    *("_TRANSPORT", "_ALL_BROKERS_DOWN", "_TIMED_OUT", "_RESOLVE", "_TIMED_OUT_QUEUE", "_WAIT_COORD"),
    *("NOT_LEADER_FOR_PARTITION", "LEADER_NOT_AVAILABLE", "FENCED_LEADER_EPOCH", "UNKNOWN_LEADER_EPOCH"),
    *("NOT_COORDINATOR", "COORDINATOR_NOT_AVAILABLE", "COORDINATOR_LOAD_IN_PROGRESS", "NOT_CONTROLLER"),
    *("REQUEST_TIMED_OUT", "NETWORK_EXCEPTION", "BROKER_NOT_AVAILABLE", "REPLICA_NOT_AVAILABLE"),
    *("NOT_ENOUGH_REPLICAS", "NOT_ENOUGH_REPLICAS_AFTER_APPEND", "OFFSET_NOT_AVAILABLE"),
}
