"""TLS and SASL against a real broker: columns go both ways, and what is wrong is told at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import TopicPartition
from cryptography import x509

from headrace.config import KafkaSettings
from headrace.errors import ConfigError, TransientError
from headrace.kafka import ColumnarConsumer, ColumnarProducer, SecurityError, admin
from headrace.kafka.client import client_options, confluent_options, consumer_options, producer_options
from tests.integration.kafka.brokers import Brokers, brokers
from tests.integration.kafka.certificates import LOCALHOST, Authority
from tests.integration.kafka.oracle import consume, random_rows
from tests.unit.kafka.rows import arrays, rows_of

PASSWORD = "correct-horse"
LISTENERS = {"TLS": "SSL", "MUTUAL": "SSL", "MISNAMED": "SSL", "LOGIN": "SASL_PLAINTEXT", "BOTH": "SASL_SSL"}
MECHANISMS = {"login": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512", "both": "PLAIN,SCRAM-SHA-512"}
MODULES = {
    "plain": f'plain.PlainLoginModule required user_reader="{PASSWORD}"',
    "scram-sha-256": "scram.ScramLoginModule required",
    "scram-sha-512": "scram.ScramLoginModule required",
}
SCRAM_256, SCRAM_512 = "SCRAM-SHA-256", "SCRAM-SHA-512"


@dataclass(frozen=True)
class Secured:
    brokers: Brokers
    authority: str
    stranger: str
    certificate: str
    strange_certificate: str

    def settings(self, listener: str, **said: Any) -> KafkaSettings:
        """What works at this listener, and what is said otherwise."""
        protocol = LISTENERS.get(listener, "PLAINTEXT")
        options: dict[str, Any] = {
            "bootstrap_servers": self.brokers.bootstrap_servers(listener),
            "security_protocol": protocol,
        }
        if "SSL" in protocol:
            options["ssl_cafile"] = self.authority
        if "SASL" in protocol:
            options |= {"sasl_mechanism": SCRAM_512, "sasl_username": "reader", "sasl_password": PASSWORD}
        if listener == "MUTUAL":
            options["ssl_certfile"] = self.certificate
        return KafkaSettings(**(options | said))


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("certificates")
    authority = Authority(folder, "authority")
    config = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(authority.sign("broker", LOCALHOST)),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(authority.certificate),
        "listener.name.mutual.ssl.client.auth": "required",
        "listener.name.misnamed.ssl.keystore.location": str(authority.sign("elsewhere", x509.DNSName("localhost"))),
    }
    for listener, mechanisms in MECHANISMS.items():
        config[f"listener.name.{listener}.sasl.enabled.mechanisms"] = mechanisms
        for mechanism, module in MODULES.items():
            key = f"listener.name.{listener}.{mechanism}.sasl.jaas.config"
            config[key] = f"org.apache.kafka.common.security.{module};"
    stranger = Authority(folder, "stranger")
    with brokers(1, config=config, listeners=LISTENERS, scram={"reader": PASSWORD}) as running:
        yield Secured(
            running,
            str(authority.certificate),
            str(stranger.certificate),
            str(authority.sign("client", LOCALHOST, password="key-password")),
            str(stranger.sign("strange-client", LOCALHOST)),
        )


Said = dict[str, Any]
KEY: Said = {"ssl_keypassword": "key-password"}
WORKING: list[tuple[str, Said]] = [
    ("TLS", {}),
    ("MUTUAL", KEY),
    *(("LOGIN", {"sasl_mechanism": mechanism}) for mechanism in ("PLAIN", SCRAM_256, SCRAM_512)),
    *(("BOTH", {"sasl_mechanism": mechanism}) for mechanism in ("PLAIN", SCRAM_512)),
]


@pytest.mark.parametrize(("listener", "said"), WORKING)
async def test_columns_go_both_ways(secured: Secured, listener: str, said: Said) -> None:
    kafka = secured.settings(listener, **said)
    name = f"secured-{uuid4().hex[:8]}"
    assert await asyncio.to_thread(admin.ensure_topics, kafka, {name: admin.TopicSpec(1)}) == {name}
    rows = random_rows(500)
    producer = ColumnarProducer(**producer_options(kafka))
    await producer.start()
    await asyncio.gather(*await producer.send_columns(name, 0, *arrays(rows)))
    await producer.stop()
    consumer = ColumnarConsumer(name, **consumer_options(kafka) | {"auto_offset_reset": "earliest"}, group_id=name)
    await consumer.start()
    chunks = []
    async with asyncio.timeout(60):
        while sum(map(len, chunks)) < len(rows):
            chunks += [chunk for some in (await consumer.getmany(timeout_ms=500)).values() for chunk in some]
    await consumer.commit()
    assert await consumer.committed(TopicPartition(name, 0)) == len(rows)
    await consumer.stop()
    assert rows_of(chunks) == list(enumerate(rows)) == await asyncio.to_thread(consume, kafka, name)


@pytest.mark.parametrize("options", [client_options, confluent_options])
def test_a_key_without_its_password_is_a_wrong_setting_and_asks_nobody(
    secured: Secured, options: Callable[[KafkaSettings], Said]
) -> None:
    for password in ({}, {"ssl_keypassword": "another"}):
        with pytest.raises(ConfigError, match="ssl_keypassword"):
            options(secured.settings("MUTUAL", **password))


def changed(**said: Any) -> Callable[[Secured], Said]:
    return lambda secured: said


REFUSED: dict[str, tuple[str, Callable[[Secured], Said], str]] = {
    "another authority": ("TLS", lambda secured: {"ssl_cafile": secured.stranger}, "ssl_cafile"),
    "another host name": ("MISNAMED", changed(), "advertised.listeners"),
    "no client certificate": ("MUTUAL", changed(ssl_certfile=None), "ssl_certfile"),
    "a stranger's certificate": (
        "MUTUAL",
        lambda secured: {"ssl_certfile": secured.strange_certificate},
        "ssl_certfile",
    ),
    "PLAIN": ("LOGIN", changed(sasl_mechanism="PLAIN", sasl_password="wrong-battery"), "sasl_password"),
    SCRAM_256: ("LOGIN", changed(sasl_mechanism=SCRAM_256, sasl_password="wrong-battery"), "sasl_password"),
    SCRAM_512: ("BOTH", changed(sasl_password="wrong-battery"), "sasl_password"),
    "another mechanism": ("BOTH", changed(sasl_mechanism=SCRAM_256), "sasl_mechanism"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_is_wrong_is_said_and_not_tried_again(secured: Secured, case: str) -> None:
    listener, say, hint = REFUSED[case]
    kafka = secured.settings(listener, **say(secured))
    errors = []
    for client in (ColumnarConsumer(**consumer_options(kafka)), ColumnarProducer(**producer_options(kafka))):
        with pytest.raises(SecurityError) as caught:
            async with asyncio.timeout(60):
                await client.start()
        errors.append(caught.value)
    with pytest.raises(SecurityError) as caught:
        await asyncio.to_thread(admin.partitions, kafka)
    for error in [*errors, caught.value]:
        assert not isinstance(error, TransientError)
        assert hint in error.hint
        assert "wrong-battery" not in f"{error} {error!r} {error.__cause__!r}"
    assert errors[0].where == kafka.bootstrap_servers


async def test_a_name_that_the_brokers_give_out_themselves_is_checked_too(secured: Secured) -> None:
    port = secured.brokers.bootstrap_servers("MISNAMED").rpartition(":")[2]
    kafka = secured.settings("MISNAMED", bootstrap_servers=f"localhost:{port}")
    producer = ColumnarProducer(**producer_options(kafka))
    consumer = ColumnarConsumer(**consumer_options(kafka))
    async with asyncio.timeout(60):
        with pytest.raises(SecurityError, match=f"127.0.0.1:{port}"):
            await producer.start()
        await consumer.start()
        consumer.assign([TopicPartition("any", 0)])
        with pytest.raises(SecurityError, match=f"127.0.0.1:{port}"):
            await read_for_ever(consumer)
    await consumer.stop()


async def read_for_ever(consumer: ColumnarConsumer) -> None:
    while True:
        await consumer.getmany(timeout_ms=100)
