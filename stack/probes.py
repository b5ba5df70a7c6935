"""Is a server well? Each probe speaks a word of the server's own protocol and returns None or the reason it is not."""

from __future__ import annotations

import http.client
import socket
import struct

TIMEOUT = 2.0


def _exchange(port: int, request: bytes, size: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), TIMEOUT) as connection:
        connection.settimeout(TIMEOUT)
        connection.sendall(request)
        answer = b""
        while len(answer) < size and (part := connection.recv(size - len(answer))):
            answer += part
        return answer


def http_ok(port: int, path: str) -> str | None:
    """A GET must answer 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read(400).decode(errors="replace").strip()
        if response.status == 200:
            return None
        return f"HTTP {response.status}" + (f" {body.splitlines()[0][:200]}" if body and body[0] != "<" else "")
    except (OSError, http.client.HTTPException) as e:
        return _reason(e)
    finally:
        connection.close()


def kafka_ok(port: int) -> str | None:
    """ApiVersions v0, correlation id 1: the broker answers it once it is unfenced."""
    body = struct.pack(">hhih", 18, 0, 1, -1)
    try:
        answer = _exchange(port, struct.pack(">i", len(body)) + body, 10)
    except OSError as e:
        return _reason(e)
    return None if answer[4:10] == struct.pack(">ih", 1, 0) else "unexpected answer to ApiVersions"


def redis_ok(port: int) -> str | None:
    try:
        answer = _exchange(port, b"PING\r\n", 7)
    except OSError as e:
        return _reason(e)
    return None if answer == b"+PONG\r\n" else answer.decode(errors="replace").strip() or "no answer to PING"


def mqtt_ok(port: int) -> str | None:
    """MQTT 3.1.1 CONNECT with a clean session must be accepted."""
    client = b"headrace-health"
    payload = b"\x00\x04MQTT\x04\x02\x00\x0a" + struct.pack(">H", len(client)) + client
    try:
        answer = _exchange(port, b"\x10" + bytes([len(payload)]) + payload, 4)
    except OSError as e:
        return _reason(e)
    return None if answer == b"\x20\x02\x00\x00" else "connection refused by the broker"


def _reason(e: Exception) -> str:
    if isinstance(e, ConnectionRefusedError):
        return "not listening yet"
    if isinstance(e, TimeoutError):
        return "no answer"
    return str(e) or type(e).__name__
