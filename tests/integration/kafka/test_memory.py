"""Memory is bounded whatever arrives: read by a process whose size the kernel bounds."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable

import pyarrow as pa

from headrace.config import KafkaSettings
from headrace.kafka.client import producer_options
from headrace.kafka.layout import GZIP, LZ4, SNAPPY, ZSTD
from headrace.kafka.producer import ColumnarProducer, _ColumnarBatch
from headrace.kafka.writer import Columns, encode_one_batch

Topic = Callable[..., str]

MIB = 1 << 20
# Three times 96 MiB, 64 of a poll and some of the client: see ReadLimits.
RESIDENT_MEGABYTES = 450
WRITABLE_MEGABYTES = 1000


async def send(cluster: KafkaSettings, topic: str, codec: int, values: pa.BinaryArray, times: int = 1) -> None:
    """The same rows as one record batch, some times."""
    producer = ColumnarProducer(**producer_options(cluster) | {"max_request_size": 60 * MIB})
    await producer.start()
    for _ in range(times):
        batch = encode_one_batch(
            Columns(None, values), codec=codec, max_plain_bytes=256 * MIB, max_bytes=60 * MIB, transactional=False
        )
        await (await producer.send_batch(_ColumnarBatch(batch), topic, partition=0))
    await producer.stop()


async def test_what_is_too_large_is_refused_and_what_is_large_is_read(cluster: KafkaSettings, topic: Topic) -> None:
    expected: dict[str, list[object]] = {}

    async def arrives(codec: int, values: pa.BinaryArray, rows: int, error: str = "", times: int = 1) -> None:
        name = topic(max_message_bytes=str(60 * MIB))
        await send(cluster, name, codec, values, times)
        expected[name] = [rows, error]

    zeros = pa.array([bytes(100 * MIB)])
    for codec in (GZIP, SNAPPY, LZ4, ZSTD):
        await arrives(codec, zeros, 0, "DecompressionLimitError")
    await arrives(0, pa.array([bytes(50 * MIB)]), 1)
    await arrives(LZ4, pa.array([b"%d" % i for i in range(1_000_000)]), 1_000_000)
    # Each is within the bounds, and a fetch has all of them: 20 times 48 MiB.
    await arrives(ZSTD, pa.array([bytes(MIB)] * 48), 20 * 48, times=20)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.integration.kafka.bounded"),
        *(cluster.bootstrap_servers, str(WRITABLE_MEGABYTES), *expected),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    found = json.loads(output)
    assert found["topics"] == expected
    assert found["megabytes"] < RESIDENT_MEGABYTES
