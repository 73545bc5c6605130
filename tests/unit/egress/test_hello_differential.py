"""Our parser beside OpenSSL's server (the standard library's): it must never read another name than that one would."""

from __future__ import annotations

import contextlib
import datetime as dt
import random
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.egress.hello import Hello, HelloReader
from tests.unit.egress.hellos import (
    GREASE,
    PADDING,
    SNI,
    USUAL,
    X25519MLKEM768,
    Extension,
    entry,
    key_share,
    message,
    openssl,
    records,
    sni,
    u16,
)

# The standard library can't raise out of OpenSSL's callback where a name isn't ASCII; that is its way of saying so.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

NOT_ASKED = "(OpenSSL never asked)"
SAMPLE = 2500


class Server:
    """OpenSSL's view of a client's first bytes."""

    def __init__(self, certificate: Path) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate)
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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Server:
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
    file = tmp_path_factory.mktemp("differential") / "server.pem"
    file.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return Server(file)


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


def test_on_a_sample_of_mutated_hellos(server: Server) -> None:
    rng = random.Random(20260131)
    bases = [
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
    results: dict[str, int] = {}
    for number in range(SAMPLE):
        msg = rng.choice(bases)
        data = split(msg, rng)
        if number % 5 and rng.random() < 0.5:
            body = mutated(msg[4:], rng)  # the lengths around it right, so that it gets further
            data = split(b"\x01" + len(body).to_bytes(3, "big") + body, rng)
        elif number % 5:
            data = mutated(data, rng)
        outcome = same(server, data)
        results[outcome] = results.get(outcome, 0) + 1
    assert results["same"] > SAMPLE / 10, results
    assert results["refused"] > SAMPLE / 10, results


_names = st.binary(min_size=0, max_size=30) | st.sampled_from(
    [b"allowed.example", b"ALLOWED.example.", b"evil.example", b"allowed.example\x00", b"127.0.0.1", b"a" * 64]
)
_entries = st.lists(st.tuples(st.integers(0, 2), _names), max_size=3)
_extensions = st.one_of(
    st.builds(lambda items: (SNI, u16(b"".join(entry(n, k) for k, n in items))), _entries),
    st.sampled_from(USUAL),
    st.tuples(st.sampled_from([GREASE, 0x2A2A, 5, 23, 0xFF01, PADDING]), st.just(b"\x00") | st.binary(max_size=8)),
)


@settings(max_examples=300, deadline=None)
@given(
    extensions=st.lists(_extensions, max_size=8),
    session=st.binary(max_size=32),
    cuts=st.lists(st.integers(1, 400), max_size=5),
    methods=st.sampled_from([b"\x00", b"\x01\x00", b"\x00\x01"]),
)
def test_on_generated_hellos(
    server: Server, extensions: list[Extension], session: bytes, cuts: list[int], methods: bytes
) -> None:
    msg = message(*USUAL, *extensions, session=session, methods=methods)
    same(server, records(msg, [cut for cut in cuts if cut < len(msg)]))


def test_the_usual_hello_is_read_by_both(server: Server) -> None:
    assert same(server, records(message(sni(b"Allowed.Example"), *USUAL))) == "same"
    assert server.name(openssl(None)) is None
