"""OpenSSL's reading of a hello (the standard library's server), and hellos to read: mutated, split over records."""

from __future__ import annotations

import contextlib
import datetime as dt
import random
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from orchestrator.egress.hello import Hello, HelloReader
from tests.unit.egress.hellos import (
    GREASE,
    PADDING,
    SNI,
    USUAL,
    X25519MLKEM768,
    entry,
    key_share,
    message,
    openssl,
    records,
    sni,
    u16,
)

NOT_ASKED = "(OpenSSL never asked)"


class Server:
    """OpenSSL's view of a client's first bytes."""

    def __init__(self, folder: Path) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(_certificate(folder))
        self._context.sni_callback = self._named
        self._seen: str | None = NOT_ASKED

    def _named(self, _connection: object, name: str | None, _context: ssl.SSLContext) -> None:
        self._seen = name

    def name(self, data: bytes) -> str | None:
        """The name that OpenSSL would serve, None where the client gave none, NOT_ASKED where it refused before."""
        self._seen = NOT_ASKED
        incoming = ssl.MemoryBIO()
        incoming.write(data)
        connection = self._context.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True)
        with contextlib.suppress(ssl.SSLError, UnicodeDecodeError):
            connection.do_handshake()
        return self._seen


def _certificate(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "differential")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    file = folder / "server.pem"
    file.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return file


def same(server: Server, data: bytes) -> str:
    """Compare the two on ``data``; what it came to."""
    ours = HelloReader().feed(data)
    theirs = server.name(data)
    if not isinstance(ours, Hello):
        return "refused"
    if theirs is NOT_ASKED:
        return "openssl refused"
    folded = None if theirs is None else theirs.lower().removesuffix(".")
    assert ours.name == folded, data.hex()
    return "same"


def mutated(data: bytes, rng: random.Random) -> bytes:
    """``data`` with a few bytes changed, taken out, doubled or put in."""
    buffer = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(buffer))
        match rng.randrange(5):
            case 0:
                buffer[at] = rng.randrange(256)
            case 1:
                buffer[at] ^= 1 << rng.randrange(8)
            case 2:
                del buffer[at : at + rng.randint(1, 8)]
            case 3:
                buffer[at:at] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 8)))
            case 4:
                end = at + rng.randint(1, 40)
                buffer[at:at] = buffer[at:end]
        if not buffer:
            return b"\x16"
    return bytes(buffer)


def split(msg: bytes, rng: random.Random) -> bytes:
    cuts = sorted({rng.randrange(1, len(msg)) for _ in range(rng.choice([0, 0, 1, 2, 9]))}) if len(msg) > 1 else []
    return records(msg, cuts, rng.choice([b"\x03\x01", b"\x03\x03"]))


def bases() -> list[bytes]:
    """Whole messages that mutations start from."""
    return [
        openssl("allowed.example")[5:],
        openssl("allowed.example", maximum_version=ssl.TLSVersion.TLSv1_2)[5:],
        openssl(None)[5:],
        message(sni(b"allowed.example"), *USUAL),
        message(sni(b"allowed.example", b"evil.example"), *USUAL),
        message(sni(b"allowed.example"), *USUAL, sni(b"evil.example")),
        message((SNI, u16(entry(b"allowed.example", 1) + entry(b"evil.example"))), *USUAL),
        message(
            (GREASE, b""), key_share(X25519MLKEM768, 1216), *USUAL[:4], (PADDING, bytes(900)), sni(b"evil.example")
        ),
    ]


def one(number: int, msgs: list[bytes], rng: random.Random) -> bytes:
    """A hello made from one of ``msgs``: every fifth as it is, but for its records."""
    msg = rng.choice(msgs)
    data = split(msg, rng)
    if number % 5 and rng.random() < 0.5:
        body = mutated(msg[4:], rng)  # the lengths around it right, so that it gets further
        return split(b"\x01" + len(body).to_bytes(3, "big") + body, rng)
    return mutated(data, rng) if number % 5 else data
