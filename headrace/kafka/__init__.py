"""Kafka in columns: what is read and written are Arrow arrays, never one Python object a record.

The names here load their modules when they are first used, so that `headrace.kafka.admin` alone stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.kafka.columns import Chunk
    from headrace.kafka.consumer import ColumnarConsumer
    from headrace.kafka.errors import (
        BatchTooLargeError,
        CorruptBatchError,
        DecompressionLimitError,
        FetchStoppedError,
        SecurityError,
    )
    from headrace.kafka.producer import ColumnarProducer
    from headrace.kafka.reader import ReadLimits
    from headrace.kafka.writer import partition_for

__all__ = [
    "BatchTooLargeError",
    "Chunk",
    "ColumnarConsumer",
    "ColumnarProducer",
    "CorruptBatchError",
    "DecompressionLimitError",
    "FetchStoppedError",
    "ReadLimits",
    "SecurityError",
    "partition_for",
]

_MODULES = {
    "Chunk": "columns",
    "ColumnarConsumer": "consumer",
    "ColumnarProducer": "producer",
    "ReadLimits": "reader",
    "partition_for": "writer",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(name)
    return getattr(import_module(f"headrace.kafka.{_MODULES.get(name, 'errors')}"), name)
