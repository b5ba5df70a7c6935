"""How Headrace's settings are said to aiokafka and to confluent-kafka, and the defaults that were measured."""

from __future__ import annotations

import ssl
from typing import Any

from aiokafka.helpers import create_ssl_context

from headrace.config import KafkaSettings
from headrace.errors import ConfigError

_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


def client_options(kafka: KafkaSettings) -> dict[str, Any]:
    """Connection and security, for aiokafka's consumer, producer and admin client.

    Raises `ConfigError` for an unknown protocol or mechanism, missing credentials or unreadable certificate files.
    """
    _check(kafka)
    options: dict[str, Any] = {
        "bootstrap_servers": kafka.bootstrap_servers,
        "security_protocol": kafka.security_protocol,
    }
    if kafka.security_protocol.endswith("SSL"):
        options["ssl_context"] = _ssl_context(kafka)
    if kafka.security_protocol.startswith("SASL"):
        options["sasl_mechanism"] = kafka.sasl_mechanism
        options["sasl_plain_username"] = kafka.sasl_username
        options["sasl_plain_password"] = kafka.sasl_password
    return options


def consumer_options(kafka: KafkaSettings) -> dict[str, Any]:
    """`client_options` and what suits a `ColumnarConsumer`.

    Fetches of 1 MiB a partition: larger ones only cost memory (8 MiB: more than a gigabyte with string columns). No
    silent reset: an offset that retention has eaten raises `OffsetOutOfRangeError`. No automatic commits.
    """
    return {
        **client_options(kafka),
        "max_partition_fetch_bytes": 1 << 20,
        "fetch_max_bytes": 50 << 20,
        "auto_offset_reset": "none",
        "enable_auto_commit": False,
    }


def replay_options(kafka: KafkaSettings) -> dict[str, Any]:
    """`consumer_options` for reading what is there up to where it ends now.

    A fetch at the end does not wait for more: one fetch of a broker is in flight, and one that waits for half a second
    would hold up the next partition's. What a new client does not know yet is asked again soon.
    """
    return {**consumer_options(kafka), "fetch_max_wait_ms": 10, "retry_backoff_ms": 20}


def producer_options(kafka: KafkaSettings) -> dict[str, Any]:
    """`client_options` and what suits a `ColumnarProducer`.

    Large batches (aiokafka has one request in flight a broker; client and broker take turns), below the broker's
    default limit of 1 MiB; a row above that goes alone, and the broker says whether it takes it: what came from a topic
    with a higher limit must find its way on, into the quarantine too. Idempotent, acknowledged by all replicas, lz4.
    """
    return {
        **client_options(kafka),
        "max_batch_size": 1_000_000,
        "max_request_size": 16 << 20,
        "enable_idempotence": True,
        "acks": "all",
        "compression_type": "lz4",
    }


def confluent_options(kafka: KafkaSettings) -> dict[str, Any]:
    """Connection and security, for confluent-kafka's clients. Raises as `client_options` does."""
    _check(kafka)
    if kafka.security_protocol.endswith("SSL"):
        _ssl_context(kafka)  # the library would say less clearly, and only to whom makes a client, what is wrong
    options = {
        "bootstrap.servers": kafka.bootstrap_servers,
        "security.protocol": kafka.security_protocol,
        "sasl.mechanism": kafka.sasl_mechanism,
        "sasl.username": kafka.sasl_username,
        "sasl.password": kafka.sasl_password,
        "ssl.ca.location": kafka.ssl_cafile,
        "ssl.certificate.location": kafka.ssl_certfile,
        "ssl.key.location": kafka.ssl_keyfile or kafka.ssl_certfile,
        "ssl.key.password": kafka.ssl_keypassword,
    }
    return {name: value for name, value in options.items() if value is not None}


def _check(kafka: KafkaSettings) -> None:
    if kafka.security_protocol not in _PROTOCOLS:
        raise ConfigError(f"must be one of {', '.join(_PROTOCOLS)}", where="kafka.security_protocol")
    if kafka.security_protocol.startswith("SASL"):
        if kafka.sasl_mechanism not in _MECHANISMS:
            raise ConfigError(f"must be one of {', '.join(_MECHANISMS)}", where="kafka.sasl_mechanism")
        for name in ("sasl_username", "sasl_password"):
            if not getattr(kafka, name):
                raise ConfigError(f"is needed for {kafka.security_protocol}", where=f"kafka.{name}")
    if kafka.ssl_keyfile and not kafka.ssl_certfile:
        raise ConfigError("is needed beside ssl_keyfile", where="kafka.ssl_certfile")


def _ssl_context(kafka: KafkaSettings) -> ssl.SSLContext:
    try:
        context: ssl.SSLContext = create_ssl_context(
            cafile=kafka.ssl_cafile,
            certfile=kafka.ssl_certfile,
            keyfile=kafka.ssl_keyfile,
            # Without one OpenSSL would ask the terminal.
            password=kafka.ssl_keypassword or "",
        )
    except OSError as e:
        files = "kafka.ssl_cafile, kafka.ssl_certfile, kafka.ssl_keyfile, kafka.ssl_keypassword"
        raise ConfigError(f"cannot be loaded: {e}", where=files) from e
    return context
