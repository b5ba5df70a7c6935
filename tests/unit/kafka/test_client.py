from __future__ import annotations

import ssl

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import NotLeaderForPartitionError, TopicAuthorizationFailedError
from confluent_kafka import KafkaError, KafkaException, Producer

from headrace.config import KafkaSettings
from headrace.errors import ConfigError, TerminalError, UnavailableError
from headrace.kafka.client import client_options, confluent_options, consumer_options, producer_options
from headrace.kafka.errors import from_client

SASL = {"sasl_mechanism": "SCRAM-SHA-512", "sasl_username": "u", "sasl_password": "p"}


def test_plain_settings_say_no_more_than_needed() -> None:
    kafka = KafkaSettings(bootstrap_servers="a:1,b:2")
    assert client_options(kafka) == {"bootstrap_servers": "a:1,b:2", "security_protocol": "PLAINTEXT"}
    assert confluent_options(kafka) == {"bootstrap.servers": "a:1,b:2", "security.protocol": "PLAINTEXT"}


async def test_both_clients_take_sasl_over_tls() -> None:
    kafka = KafkaSettings(security_protocol="SASL_SSL", **SASL)
    options = client_options(kafka)
    assert isinstance(options["ssl_context"], ssl.SSLContext)
    assert options["ssl_context"].verify_mode == ssl.CERT_REQUIRED
    assert (options["sasl_mechanism"], options["sasl_plain_username"]) == ("SCRAM-SHA-512", "u")
    AIOKafkaProducer(**producer_options(kafka))
    assert confluent_options(kafka)["sasl.username"] == "u"
    Producer(confluent_options(kafka))


def test_defaults_of_consumers_and_producers_can_lose_nothing_in_silence() -> None:
    assert consumer_options(KafkaSettings())["auto_offset_reset"] == "none"
    assert consumer_options(KafkaSettings())["enable_auto_commit"] is False
    assert producer_options(KafkaSettings())["acks"] == "all"
    assert producer_options(KafkaSettings())["enable_idempotence"] is True


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"security_protocol": "TLS"}, "kafka.security_protocol"),
        ({"security_protocol": "SASL_SSL"}, "kafka.sasl_mechanism"),
        ({"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN"}, "kafka.sasl_username"),
        ({"security_protocol": "SASL_SSL", **SASL, "sasl_password": ""}, "kafka.sasl_password"),
        ({"security_protocol": "SSL", "ssl_keyfile": "key.pem"}, "kafka.ssl_certfile"),
        ({"security_protocol": "SSL", "ssl_cafile": "no-such-file"}, "kafka.ssl_cafile"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, str], where: str) -> None:
    with pytest.raises(ConfigError, match=where):
        client_options(KafkaSettings.model_validate(settings))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (NotLeaderForPartitionError(), UnavailableError),
        (TopicAuthorizationFailedError(), TerminalError),
        (KafkaException(KafkaError(KafkaError._ALL_BROKERS_DOWN)), UnavailableError),
        (KafkaException(KafkaError(KafkaError._TRANSPORT)), UnavailableError),
        (KafkaException(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)), TerminalError),
        (TimeoutError(), UnavailableError),
    ],
)
def test_only_what_may_pass_is_transient(error: Exception, kind: type[Exception]) -> None:
    assert type(from_client(error, where="t")) is kind
