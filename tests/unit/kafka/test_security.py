from __future__ import annotations

import asyncio
import ssl
from typing import Any

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaConnectionError, SaslAuthenticationFailed, UnsupportedSaslMechanismError
from confluent_kafka import KafkaError, KafkaException

from headrace.config import KafkaSettings
from headrace.kafka.errors import SecurityError, from_client, refusal, refusal_of_confluent
from headrace.kafka.security import Watch


def certificate_error(code: int) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = code, "for a reason"
    return error


def tls_error(kind: type[ssl.SSLError], reason: str) -> ssl.SSLError:
    error = kind(1, "text")
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (certificate_error(20), "ssl_cafile"),
        (certificate_error(62), "advertised.listeners"),
        (certificate_error(64), "advertised.listeners"),
        (tls_error(ssl.SSLError, "TLSV13_ALERT_CERTIFICATE_REQUIRED"), "ssl_certfile"),
        (tls_error(ssl.SSLError, "SSLV3_ALERT_HANDSHAKE_FAILURE"), "ssl_certfile"),
        (tls_error(ssl.SSLError, "WRONG_VERSION_NUMBER"), "security_protocol"),
        (SaslAuthenticationFailed(), "sasl_password"),
        (UnsupportedSaslMechanismError(), "sasl_mechanism"),
    ],
)
def test_a_refusal_is_found_among_the_causes(error: Exception, hint: str) -> None:
    outer = KafkaConnectionError("closed")
    outer.__cause__ = error
    found = refusal(outer, "host:1")
    assert found is not None
    assert hint in found.hint
    assert found.where == "host:1"


@pytest.mark.parametrize(
    "error",
    [ConnectionRefusedError(), TimeoutError(), KafkaConnectionError("closed"), tls_error(ssl.SSLEOFError, "EOF")],
)
def test_a_connection_that_broke_off_is_no_refusal(error: Exception) -> None:
    assert refusal(error) is None


@pytest.mark.parametrize(
    ("code", "text", "hint"),
    [
        ("_SSL", "error:0A000086:SSL routines::certificate verify failed: broker certificate", "ssl_cafile"),
        ("_TRANSPORT", "error:0A00045C:SSL routines::tlsv13 alert certificate required", "ssl_certfile"),
        ("_AUTHENTICATION", "Authentication failed", "sasl_password"),
        ("UNSUPPORTED_SASL_MECHANISM", "not here", "sasl_mechanism"),
        ("_TRANSPORT", "Connect failed: Connection refused", ""),
    ],
)
def test_the_other_client_s_reasons_are_known_too(code: str, text: str, hint: str) -> None:
    error = KafkaError(getattr(KafkaError, code), text)
    found = refusal_of_confluent(error)
    assert (found.hint if found else "").count(hint) >= 1
    assert (found is None) == (hint == "")
    assert isinstance(from_client(KafkaException(error)), SecurityError) == (hint != "")


async def test_a_start_that_would_go_on_for_ever_is_ended() -> None:
    watch, stopped = Watch(AIOKafkaClient()), []

    async def start() -> None:
        watch._note(certificate_error(20), "host:1")
        await asyncio.get_running_loop().create_future()

    async def stop() -> None:
        stopped.append(True)

    with pytest.raises(SecurityError, match="host:1"):
        await watch.start(start, stop)
    assert stopped == [True]
    watch.check()


def test_secrets_do_not_show() -> None:
    secrets: dict[str, Any] = {"sasl_password": "hidden-one", "ssl_keypassword": "hidden-two"}
    assert "hidden" not in repr(KafkaSettings(**secrets))
