"""The parser on hand-made hellos: each malformed one has its own reason, and each odd but valid one its name."""

from __future__ import annotations

import pytest

from orchestrator.egress.hello import MAX_MESSAGE, Hello, HelloReader, Invalid, Result, host_name
from orchestrator.egress.inspect import inspect_bytes
from tests.unit.egress import hellos
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
    with_extensions,
)

NAME = b"allowed.example"


def read(data: bytes, **options: bool) -> Result | None:
    return HelloReader(**options).feed(data)


def reason_of(data: bytes) -> str:
    result = read(data)
    assert isinstance(result, Invalid), result
    return result.reason


def name_of(data: bytes) -> str | None:
    result = read(data)
    assert isinstance(result, Hello), result
    return result.name


# -- what is read ----------------------------------------------------------------------------------------------------


def test_a_usual_hello_gives_name_and_facts() -> None:
    result = read(hello(NAME))
    assert isinstance(result, Hello)
    assert result.name == "allowed.example"
    assert result.facts() == {
        "hello_bytes": len(message(sni(NAME), *USUAL)),
        "records": 1,
        "alpn": "h2,http/1.1",
        "versions": "1.3,1.2",
    }


def test_what_openssl_sends_is_read() -> None:
    assert name_of(openssl("Allowed.Example")) == "allowed.example"
    assert name_of(openssl(None)) is None


def test_a_hello_without_extensions_names_no_host() -> None:
    assert name_of(records(message(block=b""))) is None


def test_post_quantum_share_and_grease_and_padding_pass() -> None:
    data = with_extensions(
        [(GREASE, b""), key_share(X25519MLKEM768, 1216), *USUAL[:4], (PADDING, bytes(6000)), sni(NAME), (0x2A2A, b"\0")]
    )
    result = read(data)
    assert isinstance(result, Hello)
    assert (result.name, result.pq_group) == ("allowed.example", "X25519MLKEM768")


def padded(size: int) -> bytes:
    """A message of ``size`` bytes behind its header, its name at the very end."""
    bare = len(message((PADDING, b""), sni(NAME))) - 4
    return message((PADDING, bytes(size - bare)), sni(NAME))


def test_a_name_at_the_end_of_64_kib_is_found() -> None:
    msg = padded(MAX_MESSAGE)
    assert len(msg) == 65_536 + 4
    assert name_of(records(msg)) == "allowed.example"
    assert name_of(records(msg, range(0, len(msg), 100))) == "allowed.example"
    assert reason_of(records(padded(MAX_MESSAGE + 1))) == "too_big"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_segments_of_any_size_make_no_difference(size: int) -> None:
    data = hello(NAME)
    reader = HelloReader()
    results = [reader.feed(data[at : at + size]) for at in range(0, len(data), size)]
    assert results[:-1] == [None] * (len(results) - 1)
    assert isinstance(results[-1], Hello)
    assert results[-1].name == "allowed.example"
    assert bytes(reader.data) == data


@pytest.mark.parametrize("step", [1, 2, 5, 40, 100])
def test_records_of_any_size_make_no_difference(step: int) -> None:
    msg = message(sni(NAME), *USUAL)
    result = read(records(msg, range(0, len(msg), step)))
    assert isinstance(result, Hello)
    assert result.name == "allowed.example"
    assert result.records == -(-len(msg) // step)


def test_a_record_cut_inside_the_name_makes_no_difference() -> None:
    msg = message(sni(NAME), *USUAL)
    assert name_of(records(msg, [msg.index(NAME) + 4])) == "allowed.example"


def test_a_post_quantum_hello_in_one_byte_records_and_segments_is_read_in_no_time() -> None:
    msg = message(key_share(X25519MLKEM768, 1216), sni(NAME))
    data = records(msg, range(len(msg)))
    reader = HelloReader()
    last = [reader.feed(data[at : at + 1]) for at in range(len(data))][-1]
    assert isinstance(last, Hello)
    assert last.name == "allowed.example"


def test_bytes_behind_the_hello_are_kept_and_not_looked_at() -> None:
    data = hello(NAME) + b"\x14\x03\x03\x00\x01\x01" + b"\x17\x03\x03\x00\x05early"
    reader = HelloReader()
    result = reader.feed(data)
    assert isinstance(result, Hello)
    assert bytes(reader.data) == data


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        (b"ALLOWED.Example", "allowed.example"),
        (b"allowed.example.", "allowed.example"),
        (b"_acme-challenge.allowed.example", "_acme-challenge.allowed.example"),
        (b"xn--bcher-kva.example", "xn--bcher-kva.example"),
        (b"localhost", "localhost"),
        (b"a" * 63 + b".example", "a" * 63 + ".example"),
        (b".".join([b"a" * 61] * 4), ".".join(["a" * 61] * 4)),
        (b"1.2.3.4.example", "1.2.3.4.example"),
    ],
)
def test_names_are_folded_and_nothing_else(spelling: bytes, name: str) -> None:
    assert name_of(hello(spelling)) == name


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (b"", "name_empty"),
        (b".", "name_empty"),
        (b"allowed.example..", "name_labels"),
        (b".allowed.example", "name_labels"),
        (b"allowed..example", "name_labels"),
        (b"a" * 64 + b".example", "name_labels"),
        (b".".join([b"a" * 62] * 5), "name_length"),
        (b"allowed.example\x00.evil.example", "name_characters"),
        (b"allowed.example\n", "name_characters"),
        (b"allowed.example\r\nevil", "name_characters"),
        (b'allowed"example', "name_characters"),
        (b"allowed%2eexample", "name_characters"),
        (b"\x1b[2Jallowed.example", "name_characters"),
        ("allowed.exampl\u0435".encode(), "name_characters"),
        ("\u212aallowed.example".encode(), "name_characters"),
        (b"user@allowed.example", "name_characters"),
        (b"allowed.example:443", "name_characters"),
        (b"allowed.example/", "name_characters"),
        (b"*.example", "name_characters"),
        (b"[::1]", "name_characters"),
        (b"::1", "name_characters"),
        (b"127.0.0.1", "ip_literal"),
        (b"127.1", "ip_literal"),
        (b"2130706433", "ip_literal"),
        (b"0x7f.1", "ip_literal"),
        (b"0x7f000001", "ip_literal"),
        (b"0x7F.0X0", "ip_literal"),
        (b"0177.0.0.01.", "ip_literal"),
        (b"allowed.123", "ip_literal"),
        (b"allowed.0x", "ip_literal"),
    ],
)
def test_names_that_are_no_host_names(name: bytes, reason: str) -> None:
    assert reason_of(hello(name)) == reason


@pytest.mark.parametrize(
    ("what", "data", "reason"),
    [
        ("ssh", b"SSH-2.0-OpenSSH_9.2\r\n", "not_tls"),
        ("http", b"GET / HTTP/1.1\r\nHost: allowed.example\r\n\r\n", "not_tls"),
        ("sslv2", b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + bytes(40), "not_tls"),
        ("one byte that isn't tls", b"S", "not_tls"),
        ("second byte that isn't tls", b"\x16S", "not_tls"),
        ("alert", b"\x15\x03\x01\x00\x02\x02\x28", "not_tls"),
        ("dtls", b"\x16\xfe\xff" + bytes(10), "not_tls"),
        ("record of tls 2", b"\x16\x03\x09\x00\x05", "record_version"),
        ("server_hello", records(b"\x02" + message(sni(NAME))[1:]), "not_client_hello"),
        ("server_hello, five bytes of it", b"\x16\x03\x01\x40\x00\x02", "not_client_hello"),
        ("empty record", b"\x16\x03\x01\x00\x00", "empty_record"),
        ("empty record in between", records(message(sni(NAME)))[:0] + b"\x16\x03\x01\x00\x01\x01\x16\x03\x01\x00\x00", "empty_record"),
        ("record too big", b"\x16\x03\x01\x40\x01", "record_too_big"),
        ("alert in between", b"\x16\x03\x01\x00\x01\x01\x15\x03\x01\x00\x02\x01\x00", "interleaved_record"),
        ("other version in between", b"\x16\x03\x01\x00\x01\x01\x16\x02", "record_version"),
        ("message of 16 MiB", b"\x16\x03\x01\x00\x04\x01\xff\xff\xff", "too_big"),
        ("message over 64 KiB", b"\x16\x03\x01\x00\x04\x01\x01\x00\x01", "too_big"),
        ("second message in the record", records(message(sni(NAME)) + b"\x01\x00\x00\x00"), "trailing_handshake"),
        ("ssl 3", hello(NAME, version=b"\x03\x00"), "version"),
        ("tls 1.3 as legacy version", hello(NAME, version=b"\x03\x04"), "version"),
        ("session id of 33 bytes", hello(NAME, session=bytes(33)), "session_id"),
        ("odd cipher suites", hello(NAME, ciphers=b"\x13\x01\x00"), "cipher_suites"),
        ("no cipher suites", hello(NAME, ciphers=b""), "cipher_suites"),
        ("no compression methods", hello(NAME, methods=b""), "compression"),
        ("compression only", hello(NAME, methods=b"\x01"), "compression"),
        ("bytes behind the extensions", hello(NAME, after=b"\x00"), "extensions_length"),
        ("extensions longer than the message", records(message(block=b"\x00\x09\x00\x00")), "extensions_length"),
        ("one byte of extensions' length", records(message(block=b"\x00")), "malformed"),
        ("extension longer than its block", records(message(block=u16(b"\x00\x00\x00\x50"))), "extension_length"),
        ("half an extension's header", records(message(block=u16(extension(*sni(NAME)) + b"\x00\x10"))), "malformed"),
        ("two names", with_extensions([sni(NAME, b"evil.example")]), "several_names"),
        ("the same name twice", with_extensions([sni(NAME, NAME)]), "several_names"),
        ("an unknown type first", with_extensions([(SNI, u16(entry(b"x", 7) + entry(NAME)))]), "server_name_type"),
        ("an unknown type only", with_extensions([(SNI, u16(entry(NAME, 1)))]), "server_name_type"),
        ("an empty extension", with_extensions([(SNI, b"")]), "server_name_length"),
        ("an empty list", with_extensions([(SNI, u16(b""))]), "server_name_length"),
        ("list shorter than extension", with_extensions([(SNI, u16(entry(NAME)) + b"\x00")]), "server_name_length"),
        ("list longer than extension", with_extensions([(SNI, b"\x00\x40" + entry(NAME))]), "server_name_length"),
        ("name longer than list", with_extensions([(SNI, u16(b"\x00\x00\x40" + NAME))]), "server_name_length"),
        ("server_name twice", with_extensions([sni(NAME), sni(b"evil.example")]), "duplicate_extension"),
        ("alpn twice", with_extensions([(ALPN, b"\0\0"), sni(NAME), (ALPN, b"\0\0")]), "duplicate_extension"),
        ("the same grease twice", with_extensions([(GREASE, b""), sni(NAME), (GREASE, b"")]), "duplicate_extension"),
        ("ech", hello(NAME, (ECH, b"\x00" + bytes(200))), "ech"),
        ("ech, inner", hello(NAME, (ECH, b"\x01")), "ech"),
        ("esni of the drafts", hello(NAME, (0xFFCE, bytes(100))), "ech"),
    ],
)  # fmt: skip
def test_refused_with_its_own_reason(what: str, data: bytes, reason: str) -> None:
    assert reason_of(data) == reason, what


def test_a_record_header_hidden_in_the_session_id_is_session_id() -> None:
    # A parser that looks for the next record inside the first sees allowed.example; a server sees evil.example.
    decoy = (b"\x16\x03\x01" + u16(NAME))[:32].ljust(32, b"\0")
    assert name_of(hello(b"evil.example", session=decoy)) == "evil.example"


def test_a_cut_that_fools_one_parser_gives_what_the_server_sees() -> None:
    # Cut where the record header takes the place of the name's bytes for a parser that doesn't reassemble.
    msg = message(sni(b"evil.example"), *USUAL)
    for cut in range(1, len(msg)):
        assert name_of(records(msg, [cut])) == "evil.example"


def test_too_many_records() -> None:
    msg = message((PADDING, bytes(4000)), sni(NAME))
    assert reason_of(records(msg, range(len(msg)))) == "too_many_records"


def test_ech_passes_where_the_policy_lets_it_and_is_flagged() -> None:
    result = read(hello(NAME, (ECH, bytes(200))), allow_ech=True)
    assert isinstance(result, Hello)
    assert (result.name, result.ech) == ("allowed.example", True)


def test_no_prefix_of_a_hello_is_judged_early() -> None:
    data = hello(NAME)
    for end in range(len(data)):
        assert read(data[:end]) is None


def test_every_one_byte_change_gives_a_result_or_waits() -> None:
    data = hello(NAME)
    for at in range(len(data)):
        for value in (0, 1, 0x7F, 0xFF, data[at] ^ 1):
            result = read(data[:at] + bytes([value]) + data[at + 1 :])
            if isinstance(result, Hello) and result.name is not None:
                assert host_name(result.name.encode()) == (result.name, "")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (hello(NAME), ("allowed.example", None)),
        (openssl(None), (None, "missing_sni")),
        (hello(NAME)[:-1], (None, "truncated")),
        (b"", (None, "truncated")),
        (b"SSH-2.0", (None, "not_tls")),
        (hello(NAME, (ECH, b"")), (None, "ech")),
    ],
)
def test_inspect(data: bytes, expected: tuple[str | None, str | None]) -> None:
    assert inspect_bytes(data) == expected


def test_the_builder_is_right_where_it_is_meant_to_be() -> None:
    assert hellos.records(b"ab", [1]) == b"\x16\x03\x01\x00\x01a\x16\x03\x01\x00\x01b"
