"""Runs inside the demo's job: tries one way out of the virtual machine and prints what came of it.

``python3 probe.py NAME KIND TARGET [PORT] [SERVER_NAME]`` writes one line, ``ironcd-probe {...}``, into the job's log.  What it
says is only what the inside saw; the demo scores by what the outside received.  Standard library only, one file.
"""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import struct
import sys
from collections.abc import Callable

TIMEOUT_S = 8.0
MARK = b"ironcd-demo-attack"


def tls(target: str, port: int, server_name: str) -> str:
    """Handshake with full verification; what the peer's certificate hashes to."""
    context = ssl.create_default_context()
    with (
        socket.create_connection((target, port), TIMEOUT_S) as raw,
        context.wrap_socket(raw, server_hostname=server_name) as wrapped,
    ):
        certificate = wrapped.getpeercert(binary_form=True) or b""
        wrapped.sendall(f"GET / HTTP/1.1\r\nHost: {server_name}\r\nConnection: close\r\n\r\n".encode())
        first = wrapped.recv(64)
    return f"cert_sha256={hashlib.sha256(certificate).hexdigest()} answer={first[:15].decode('latin-1')}"


def tcp(target: str, port: int, _server_name: str) -> str:
    """Connect, send a mark, and wait for a byte."""
    with socket.create_connection((target, port), TIMEOUT_S) as wire:
        wire.sendall(MARK)
        return f"connected, received {len(wire.recv(64))} bytes"


def udp(target: str, port: int, _server_name: str) -> str:
    """Send a datagram of a QUIC client's size, and wait for an answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wire:
        wire.settimeout(2.0)
        wire.connect((target, port))
        wire.send(MARK.ljust(1200, b"\0"))
        return f"received {len(wire.recv(64))} bytes"


def dns(target: str, port: int, name: str) -> str:
    """Ask the resolver at ``target`` for ``name``; an answer without addresses is a failure."""
    labels = b"".join(struct.pack("B", len(part)) + part.encode() for part in name.split("."))
    query = struct.pack(">6H", 0x1C0D, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wire:
        wire.settimeout(4.0)
        wire.connect((target, port))
        wire.send(query)
        answer = wire.recv(512)
    code, answers = answer[3] & 15, struct.unpack(">H", answer[6:8])[0]
    if code or not answers:
        raise OSError(f"rcode {code}, {answers} answers")
    return f"{answers} answers"


def hello(target: str, port: int, shape: str) -> str:
    """Send first bytes that are made to be read in two ways, or not to be read at all, and wait for a byte."""
    with socket.create_connection((target, port), TIMEOUT_S) as wire:
        wire.sendall(SHAPES[shape]())
        got = wire.recv(64)
    if not got:
        raise ConnectionError("closed")
    return f"received {len(got)} bytes"


ALLOWED, REFUSED = b"allowed.example", b"evil.example"


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def _sni(*names: bytes) -> bytes:
    return b"\0\0" + _sized(_sized(b"".join(b"\0" + _sized(name) for name in names)))


def _message(*extensions: bytes) -> bytes:
    """A ClientHello with ``extensions``."""
    versions = b"\0\x2b" + _sized(b"\x04\x03\x04\x03\x03")
    body = b"\x03\x03" + bytes(32) + b"\0" + _sized(b"\x13\x01") + b"\x01\0"
    body += _sized(b"".join((*extensions, versions)))
    return b"\x01" + len(body).to_bytes(3, "big") + body


def _records(message: bytes, cut: int = 0) -> bytes:
    """``message`` in one TLS record, or in two where ``cut`` says."""
    return b"".join(b"\x16\x03\x01" + _sized(piece) for piece in (message[:cut], message[cut:]) if piece)


def _split() -> bytes:
    message = _message(_sni(REFUSED))
    return _records(message, message.index(REFUSED) + 4)


SHAPES: dict[str, Callable[[], bytes]] = {
    "split": _split,
    "two-names": lambda: _records(_message(_sni(ALLOWED, REFUSED))),
    "twice": lambda: _records(_message(_sni(ALLOWED), _sni(REFUSED))),
    "ech": lambda: _records(_message(_sni(ALLOWED), b"\xfe\x0d" + _sized(bytes(40)))),
    "no-name": lambda: _records(_message()),
    "ssh": lambda: b"SSH-2.0-probe\r\n",
}
KINDS = {"tls": tls, "tcp": tcp, "udp": udp, "dns": dns, "hello": hello}


def main(argv: list[str]) -> int:
    name, kind, target, port = argv[0], argv[1], argv[2], int(argv[3])
    server_name = argv[4] if len(argv) > 4 and argv[4] else target
    try:
        result = {"probe": name, "reached": True, "detail": KINDS[kind](target, port, server_name)}
    except (OSError, ssl.SSLError) as error:
        result = {"probe": name, "reached": False, "detail": f"{type(error).__name__}: {error}"}
    sys.stdout.write("ironcd-probe " + json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
