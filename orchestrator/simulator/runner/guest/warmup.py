"""``Runner.Listener warmup``: runs what a job's start runs, as far as that needs no server and no registration.

The real runner has its assemblies compiled by this.  Here Python's files are compiled, and the crypto is run once: a token is signed
with a key made of small primes, and a handshake begun whose other side is a piece of memory.
"""

from __future__ import annotations

import base64
import http.client
import io
import ssl

from . import worker  # noqa: F401 - to have it compiled before it is needed
from .client import trust
from .rsa import assertion

_P, _Q = 2**521 - 1, 2**607 - 1
"""Two Mersenne primes: a key of the length of a real one that everybody knows."""


def warm_up() -> None:
    assertion(_key(), "warmup", "warmup")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    link = trust().wrap_bio(incoming, outgoing, server_hostname="warmup.invalid")
    try:
        link.do_handshake()
    except ssl.SSLWantReadError:
        outgoing.read()
    _answer(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")


def _answer(data: bytes) -> bytes:
    reply = http.client.HTTPResponse(_Memory(data), method="GET")  # type: ignore[arg-type]
    reply.begin()
    return reply.read()


class _Memory:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def _key() -> dict[str, str]:
    private = pow(65537, -1, (_P - 1) * (_Q - 1))
    numbers = {
        "modulus": _P * _Q,
        "p": _P,
        "q": _Q,
        "dp": private % (_P - 1),
        "dq": private % (_Q - 1),
        "inverseQ": pow(_Q, -1, _P),
    }
    return {
        name: base64.b64encode(n.to_bytes((n.bit_length() + 7) // 8, "big")).decode() for name, n in numbers.items()
    }
