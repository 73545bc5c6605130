"""Rows 8 to 17, parser beside parser: mitmproxy's, a second opinion next to OpenSSL's (`tests.unit.egress.differential`).

``make security`` and ``make test`` ask it about a sample; ``python -m tests.security.fuzz_hello`` about hundreds of thousands.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.security.lab.second_opinion import FOLDER, STRICTER, Disagreement, Mitmproxy
from tests.unit.egress.differential import bases, one
from tests.unit.egress.hellos import (
    ALPN,
    ECH,
    GREASE,
    PADDING,
    SNI,
    USUAL,
    X25519MLKEM768,
    entry,
    extension,
    hello,
    key_share,
    message,
    openssl,
    records,
    sni,
    u16,
)

SAMPLE = 4_000
NAME = b"allowed.example"


@pytest.fixture(scope="module")
def mitmproxy() -> Iterator[Mitmproxy]:
    if not FOLDER.exists():
        pytest.skip("needs mitmproxy's parser, which scripts/setup installs")
    with Mitmproxy() as other:
        yield other


def test_row_08_and_09_and_12_and_13_mitmproxy_never_reads_another_name(mitmproxy: Mitmproxy) -> None:
    rng = random.Random(20260214)
    msgs = bases()
    results: dict[str, int] = {}
    for number in range(SAMPLE):
        outcome = mitmproxy.compare(one(number, msgs, rng))
        results[outcome] = results.get(outcome, 0) + 1
    assert results["mitmproxy: same"] > SAMPLE / 10, results
    assert results["mitmproxy: refused too"] > SAMPLE / 10, results


BIG = (
    (GREASE, b""),
    key_share(X25519MLKEM768, 1216),
    *USUAL[:4],
    (0x2A2A, b"\0"),
    sni(NAME),
    *((0xAA00 + n, bytes(16_000)) for n in range(3)),
    (PADDING, bytes(15_000)),
)
MODERN = {
    "as OpenSSL sends it": openssl(NAME.decode()),
    "post-quantum, GREASE and padding": records(message(*BIG[:8], (PADDING, bytes(400)))),
    "of nearly 64 KiB": records(message(*BIG)),
    "of nearly 64 KiB in 2,000 records": records(message(*BIG), range(1, 64_000, 32)),
    "in one-byte records": records(message(sni(NAME), *USUAL), range(1, 400)),
    "with its name cut by a record": hello(NAME, cuts=[60]),
}


@pytest.mark.parametrize("shape", MODERN)
def test_row_08_and_10_both_read_a_modern_hello(mitmproxy: Mitmproxy, shape: str) -> None:
    assert mitmproxy.compare(MODERN[shape]) == "mitmproxy: same"
    assert mitmproxy.read(MODERN[shape]) == ("name", NAME.decode())


def _with_name(name: bytes) -> bytes:
    return records(message(sni(name), *USUAL))


_WHOLE = message(sni(NAME), *USUAL)
_BLOCK = b"".join(extension(*item) for item in (sni(NAME), *USUAL))
EXAMPLES = {
    "alpn": records(message(sni(NAME), USUAL[0], (ALPN, u16(b"\x02h2\x00")))),
    "cipher_suites": records(message(sni(NAME), *USUAL, ciphers=b"")),
    "compression": records(message(sni(NAME), *USUAL, methods=b"\x01")),
    "duplicate_extension": records(message(sni(NAME), *USUAL, sni(b"evil.example"))),
    "ech": hello(NAME, (ECH, bytes(40))),
    "extensions_length": records(message(block=(len(_BLOCK) + 4).to_bytes(2, "big") + _BLOCK)),
    "ip_literal": _with_name(b"127.0.0.1"),
    "name_characters": _with_name(b"allowed.example\0evil.example"),
    "name_empty": _with_name(b""),
    "name_labels": _with_name(b"allowed..example"),
    "name_length": _with_name(b".".join([b"a" * 60] * 5)),
    "not_client_hello": records(b"\x02" + _WHOLE[1:]),
    "server_name_length": records(message((SNI, (len(NAME) + 6).to_bytes(2, "big") + entry(NAME)), *USUAL)),
    "server_name_type": records(message((SNI, u16(entry(NAME, 1) + entry(b"evil.example"))), *USUAL)),
    "session_id": records(message(sni(NAME), *USUAL, session=bytes(33))),
    "several_names": records(message(sni(NAME, b"evil.example"), *USUAL)),
    "too_big": records(message(*BIG, ciphers=b"\x13\x01" * 1_000)),
    "too_many_records": records(message(*BIG), range(1, 60_000, 20)),
    "trailing_handshake": records(_WHOLE + b"\x0b\0\0\0"),
    "version": records(message(sni(NAME), *USUAL, version=b"\x04\x03")),
}


@pytest.mark.parametrize("reason", STRICTER)
def test_row_09_each_accepted_difference_exists_and_we_are_the_stricter(mitmproxy: Mitmproxy, reason: str) -> None:
    assert mitmproxy.compare(EXAMPLES[reason]) == f"mitmproxy: {reason}"


def test_another_name_is_noticed(mitmproxy: Mitmproxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mitmproxy, "read", lambda _data: ("name", "evil.example"))
    with pytest.raises(Disagreement, match=r"mitmproxy .evil\.example"):
        mitmproxy.compare(hello(NAME))
