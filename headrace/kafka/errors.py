"""What can go wrong between Kafka's bytes and columns."""

from __future__ import annotations

import ssl
from typing import Any

from aiokafka.errors import (
    AuthenticationFailedError,
    IllegalSaslStateError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from aiokafka.errors import KafkaError as ClientError
from confluent_kafka import KafkaError, KafkaException

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


class SecurityError(TerminalError):
    """TLS or SASL between this client and a broker does not work as they are configured."""


def from_client(error: Exception, *, where: str = "", hint: str = "") -> HeadraceError:
    """The same error of aiokafka or confluent-kafka in Headrace's tree: transient where the client says so.

    `SecurityError` when it, or its cause, is that TLS or SASL does not work.
    """
    if isinstance(error, HeadraceError):
        return error
    refused = refusal_of_confluent(error.args[0]) if isinstance(error, KafkaException) else refusal(error)
    if refused is not None:
        refused.where = where
        return refused
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

_CREDENTIALS = "check kafka.sasl_username, kafka.sasl_password and kafka.sasl_mechanism"
_MECHANISM = "check kafka.sasl_mechanism: the broker's listener has others"
_AUTHORITY = "kafka.ssl_cafile must hold the authority that signed the broker's certificate"
_HOST_NAME = "kafka.bootstrap_servers and the brokers' advertised.listeners must use a name that the certificate has"
_CLIENT_CERTIFICATE = "the broker asks for a certificate that it trusts: kafka.ssl_certfile, kafka.ssl_keyfile"
_NO_TLS = "check kafka.security_protocol and the port: the broker's listener may not speak TLS, or none in common"

_HOST_NAME_CODES = (62, 64)  # OpenSSL: X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
# The other side went away in the middle: this may pass.
_BROKEN_OFF = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)


def refusal(error: BaseException | None, where: str = "") -> SecurityError | None:
    """What an exception of a connection attempt, or one of its causes, says of security; None for nothing."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            hint = _HOST_NAME if error.verify_code in _HOST_NAME_CODES else _AUTHORITY
            return SecurityError(
                f"the broker's certificate is not accepted: {error.verify_message}", where=where, hint=hint
            )
        if isinstance(error, ssl.SSLError) and not isinstance(error, _BROKEN_OFF):
            reason = error.reason or type(error).__name__
            hint = _CLIENT_CERTIFICATE if _is_about_our_certificate(reason) else _NO_TLS
            return SecurityError(f"TLS fails: {reason}", where=where, hint=hint)
        if isinstance(error, (SaslAuthenticationFailed, AuthenticationFailedError)):
            return SecurityError(f"SASL authentication fails: {error}", where=where, hint=_CREDENTIALS)
        if isinstance(error, (UnsupportedSaslMechanismError, IllegalSaslStateError)):
            return SecurityError(f"SASL fails: {error}", where=where, hint=_MECHANISM)
        error = error.__cause__
    return None


def refusal_of_confluent(error: KafkaError) -> SecurityError | None:
    """The same of confluent-kafka's error; None for one that says nothing of security."""
    text = error.str()
    if "SSL routines" in text:  # OpenSSL's own words; the code may be that of any broken connection
        if "certificate verify failed" in text:
            hint = f"{_AUTHORITY}, and {_HOST_NAME}"  # it does not say which
        else:
            hint = _CLIENT_CERTIFICATE if _is_about_our_certificate(text) else _NO_TLS
        return SecurityError(f"TLS fails: {text}", hint=hint)
    if error.name() in ("_AUTHENTICATION", "SASL_AUTHENTICATION_FAILED"):
        return SecurityError(f"SASL authentication fails: {text}", hint=_CREDENTIALS)
    if error.name() in ("UNSUPPORTED_SASL_MECHANISM", "_UNSUPPORTED_FEATURE"):
        return SecurityError(f"SASL fails: {text}", hint=_MECHANISM)
    return None


def _is_about_our_certificate(reason: str) -> bool:
    words = reason.lower().replace("_", " ")
    return "alert" in words and any(word in words for word in ("certificate", "unknown ca", "handshake failure"))
