"""Hand-made ClientHellos: valid ones, and each of the malformed ones that the parser must refuse."""

from __future__ import annotations

import contextlib
import itertools
import ssl
from collections.abc import Iterable, Sequence

Extension = tuple[int, bytes]

SNI, ALPN, VERSIONS, KEY_SHARE, PADDING, ECH, GREASE = 0, 16, 43, 51, 21, 0xFE0D, 0x1A1A
X25519MLKEM768 = 0x11EC


def u16(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def extension(kind: int, body: bytes) -> bytes:
    return kind.to_bytes(2, "big") + u16(body)


def entry(name: bytes, kind: int = 0) -> bytes:
    return bytes([kind]) + u16(name)


def sni(*names: bytes) -> Extension:
    return SNI, u16(b"".join(entry(name) for name in names))


def key_share(group: int, size: int) -> Extension:
    return KEY_SHARE, u16(group.to_bytes(2, "big") + u16(bytes(size)))


USUAL: tuple[Extension, ...] = (
    (VERSIONS, b"\x04\x03\x04\x03\x03"),
    (ALPN, u16(b"\x02h2\x08http/1.1")),
    (10, u16(b"\x00\x1d\x00\x17")),
    (13, u16(b"\x04\x03\x08\x04\x04\x01")),
    key_share(0x1D, 32),
)


def message(
    *extensions: Extension,
    session: bytes = b"",
    version: bytes = b"\x03\x03",
    ciphers: bytes = b"\x13\x01\xc0\x2f",
    methods: bytes = b"\x00",
    block: bytes | None = None,
    after: bytes = b"",
) -> bytes:
    """A client_hello handshake message.  ``block`` takes the place of the extension block, its length included."""
    if block is None:
        block = u16(b"".join(extension(*item) for item in extensions))
    body = version + bytes(range(32)) + bytes([len(session)]) + session + u16(ciphers)
    body += bytes([len(methods)]) + methods + block + after
    return b"\x01" + len(body).to_bytes(3, "big") + body


def records(msg: bytes, cuts: Iterable[int] = (), version: bytes = b"\x03\x01") -> bytes:
    """``msg`` in TLS records, a new one beginning at each of ``cuts`` and wherever one is full."""
    points = sorted({0, len(msg), *cuts, *range(0, len(msg), 16_384)})
    pieces = [msg[start:end] for start, end in itertools.pairwise(points)]
    return b"".join(b"\x16" + version + u16(piece) for piece in pieces if piece)


def hello(name: bytes = b"allowed.example", *extensions: Extension, cuts: Iterable[int] = (), **fields: bytes) -> bytes:
    """The bytes of a usual client that names ``name``, with ``extensions`` besides."""
    return records(message(sni(name), *USUAL, *extensions, **fields), cuts)


def with_extensions(extensions: Sequence[Extension], **fields: bytes) -> bytes:
    return records(message(*extensions, **fields))


def openssl(name: str | None, **context_fields: object) -> bytes:
    """What this Python's OpenSSL sends for ``name``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    for key, value in context_fields.items():
        setattr(context, key, value)
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()
