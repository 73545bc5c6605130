"""Rows 1 to 25: what can be tried with a TLS hello.  Scored by what the other side received."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import time
from collections.abc import Callable

import pytest

from orchestrator.core.link import Limits
from orchestrator.core.policy import Policy
from orchestrator.system.process import CommandFailed, run
from tests.security.conftest import standard
from tests.security.lab.lab import Lab, Listener, policy
from tests.security.lab.machine import Machine
from tests.security.lab.world import ALLOWED, ATTACKER, CDN, RANGE, RETRY
from tests.unit.egress.hellos import (
    ECH,
    PADDING,
    SNI,
    USUAL,
    X25519MLKEM768,
    entry,
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


def handshake(machine: Machine, name: str, reshape: object, address: str = ALLOWED) -> bytes:
    """A whole TLS session whose first flight is sent as ``reshape(bytes)`` says: a list of pieces.  A site's answer."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with machine.tcp(address) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        first = True
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                flight = outgoing.read()
                for piece in reshape(flight) if first else [flight]:  # type: ignore[operator]
                    sock.sendall(piece)
                first = False
                data = sock.recv(65_536)
                if not data:
                    raise ConnectionError("ended during the handshake") from None
                incoming.write(data)
        client.write(b"GET x\n")
        sock.sendall(outgoing.read())
        while True:
            try:
                return client.read(1000)
            except ssl.SSLWantReadError:
                incoming.write(sock.recv(65_536))


def refuses(lab: Lab, machine: Machine, data: bytes, reason: str, address: str = ATTACKER, **fields: object) -> None:
    """``data`` must end in a reset, reach nobody, and be on record with ``reason``."""
    seq, asked = lab.seq(), len(lab.world.queries)
    with lab.nothing_leaves():
        assert machine.refused(address, data)
    event = lab.blocked(seq, machine, reason, **fields)
    assert (event.event, event.protocol, event.orig_dst, event.port) == ("open", "tls", address, 443)
    assert lab.world.queries[asked:] == []


def test_row_01_allowed_name_to_the_attackers_address(lab: Lab, attacker: Machine, ca: str) -> None:
    seq = lab.seq()
    with lab.nothing_leaves():
        assert attacker.get(ATTACKER, "allowed.example", ca=ca).startswith(ALLOWED.encode())
    event = lab.wait_event(seq, lambda event: event.event == "open" and event.orig_dst == ATTACKER)
    assert (event.verdict, event.resolved, event.flags) == ("allowed", ALLOWED, ("dst_mismatch",))


def test_row_02_hosts_file_sends_an_allowed_name_elsewhere(lab: Lab, attacker: Machine, ca: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    seq = lab.seq()
    where = f"allowed.example:443:{ATTACKER}"
    argv = ["ip", "netns", "exec", attacker.namespace, "curl", "-sS", "--http0.9", "--max-time", "5", "--cacert", ca]
    with lab.nothing_leaves():
        body = run([*argv, "--resolve", where, "https://allowed.example/"])
    assert ALLOWED in body
    event = lab.wait_event(seq, lambda event: event.event == "open" and event.orig_dst == ATTACKER)
    assert "dst_mismatch" in event.flags


def test_row_03_fronting_behind_an_allowed_name_is_flagged_not_stopped(lab: Lab, attacker: Machine) -> None:
    # What is inside TLS can't be seen: documented, and the record says that others share the place.
    seq = lab.seq()
    assert attacker.get(CDN, "cdn-ok.example", host="cdn-evil.example").startswith(CDN.encode())
    event = lab.wait_event(seq, lambda event: event.event == "close" and event.host == "cdn-ok.example")
    assert (event.verdict, event.rule, event.flags) == ("allowed", "test#cdn", ("multi_tenant",))
    assert event.bytes_up > 0


def test_row_03_what_goes_there_has_a_budget_and_an_alert(lab: Lab, attacker: Machine) -> None:
    lab.apply(attacker, standard(), limits=Limits(bytes_up_per_host=5_000), generation=2)
    try:
        seq = lab.seq()
        with attacker.tls(CDN, "cdn-ok.example") as sock:
            sock.sendall((b"#" * 999 + b"\n") * 10)
            event = lab.wait_event(seq, lambda event: event.event == "alert")
        assert (event.reason, event.host, event.who.runner) == ("bytes_up_budget", "cdn-ok.example", attacker.runner)
        assert event.flags == ("multi_tenant", "bytes_up")
    finally:
        lab.apply(attacker, standard(), generation=3)


def test_row_04_ech_with_an_allowed_outer_name(lab: Lab, attacker: Machine) -> None:
    refuses(lab, attacker, hello(NAME, (ECH, b"\0" + bytes(240))), "ech", ALLOWED)


def test_row_05_ech_passes_where_the_policy_says_so_and_is_flagged(lab: Lab, attacker: Machine) -> None:
    lab.apply(attacker, standard(allow_ech=True), generation=2)
    try:
        seq = lab.seq()
        attacker.send(ALLOWED, hello(NAME, (ECH, b"\0" + bytes(240))))
        event = lab.wait_event(seq, lambda event: event.event == "open")
        assert (event.verdict, event.flags, event.tls["ech"]) == ("allowed", ("ech",), "present")
    finally:
        lab.apply(attacker, standard(), generation=3)
    refuses(lab, attacker, hello(NAME, (ECH, b"\0" + bytes(240))), "ech", ALLOWED)


def test_row_06_no_name(lab: Lab, attacker: Machine, ca: str) -> None:
    refuses(lab, attacker, openssl(None), "missing_sni")
    # An IP literal is no name; a range's rule applies to the address that was dialled, and that is what is dialled on.
    refuses(lab, attacker, hello(ATTACKER.encode()), "ip_literal")
    seq = lab.seq()
    with lab.nothing_leaves(), attacker.tls(RANGE, None, ca=ca) as sock:
        sock.sendall(b"GET x\n")
        assert sock.recv(100).startswith(RANGE.encode())
    event = lab.wait_event(seq, lambda event: event.event == "open" and event.orig_dst == RANGE)
    assert (event.verdict, event.rule, event.resolved, event.host_source) == ("allowed", "test#range", RANGE, "ip")


def test_row_07_a_real_hello_byte_by_byte(lab: Lab, attacker: Machine) -> None:
    def bytewise(flight: bytes) -> list[bytes]:
        return [flight[at : at + 1] for at in range(len(flight))]

    assert handshake(attacker, "allowed.example", bytewise).startswith(ALLOWED.encode())
    seq = lab.seq()
    with lab.nothing_leaves(), pytest.raises(ConnectionError):
        handshake(attacker, "evil.example", bytewise, ATTACKER)
    lab.blocked(seq, attacker, "not_allowed", host="evil.example")


@pytest.mark.parametrize("step", [1, 5, 64])
def test_row_08_a_real_hello_over_many_records(lab: Lab, attacker: Machine, step: int) -> None:
    def cut(flight: bytes) -> list[bytes]:
        msg = flight[5:]
        return [records(msg, range(0, len(msg), step))]

    def cut_in_name(flight: bytes) -> list[bytes]:
        msg = flight[5:]
        return [records(msg, [msg.index(b".example") - 2])]

    assert handshake(attacker, "allowed.example", cut).startswith(ALLOWED.encode())
    assert handshake(attacker, "allowed.example", cut_in_name).startswith(ALLOWED.encode())
    for reshape in (cut, cut_in_name):
        seq = lab.seq()
        with lab.nothing_leaves(), pytest.raises(ConnectionError):
            handshake(attacker, "evil.example", reshape, ATTACKER)
        lab.blocked(seq, attacker, "not_allowed", host="evil.example")


def test_row_09_a_record_header_hidden_in_the_session_id(lab: Lab, attacker: Machine) -> None:
    decoy = (b"\x16\x03\x01" + u16(b"\x01\x00" + NAME)).ljust(32, b"\0")[:32]
    refuses(lab, attacker, hello(b"evil.example", session=decoy), "not_allowed", host="evil.example")
    refuses(lab, attacker, hello(NAME, session=bytes(33)), "session_id")
    refuses(lab, attacker, hello(NAME, after=b"\0"), "extensions_length")
    refuses(lab, attacker, records(message(sni(NAME)) + message(sni(b"evil.example"))), "trailing_handshake")


@pytest.mark.parametrize("size", [1_500, 5_000, 17_000, 60_000])
def test_row_10_a_name_behind_kilobytes(lab: Lab, attacker: Machine, size: int) -> None:
    bulk = [key_share(X25519MLKEM768, 1216), *USUAL[:4], (PADDING, bytes(size - 1_400))]
    seq, data = lab.seq(), with_extensions([*bulk, sni(b"raw.example")])
    arrives_whole(lab, attacker, data)
    event = lab.wait_event(seq, lambda event: event.event == "open")
    assert (event.verdict, event.host, event.tls["pq_group"]) == ("allowed", "raw.example", "X25519MLKEM768")
    assert int(event.tls["hello_bytes"]) > size - 200
    refuses(lab, attacker, with_extensions([*bulk, sni(b"evil.example")]), "not_allowed", host="evil.example")


def arrives_whole(lab: Lab, machine: Machine, data: bytes) -> None:
    """``data``, which names raw.example, must get there byte for byte."""
    got = len(lab.world.raw)
    with lab.nothing_leaves(), machine.tcp(ATTACKER) as sock:
        sock.sendall(data)
        sizes = b""
        while sum(map(int, sizes[1:].split())) < len(data):
            sizes += sock.recv(1000)
    assert bytes(lab.world.raw[got:]) == data


def test_row_11_hellos_that_never_end(lab: Lab, attacker: Machine, neighbour: Machine) -> None:
    seq = lab.seq()
    part = hello(NAME)[:40]
    with lab.nothing_leaves():
        slow = []
        for _ in range(100):
            with contextlib.suppress(ConnectionError):
                slow.append(attacker.tcp(ALLOWED))
        assert len(slow) >= 64
        for sock in slow:
            with contextlib.suppress(ConnectionError):
                sock.sendall(part)
        began = time.monotonic()
        assert neighbour.get(ALLOWED, "allowed.example").startswith(ALLOWED.encode())
        assert time.monotonic() - began < lab.settings.hello_timeout_s, "it waited for the attacker's to end"
        lab.blocked(seq, attacker, "limit_half_open")
        for at in range(40, 60):  # a byte now and then doesn't buy time
            time.sleep(0.15)
            for sock in slow[:5]:
                with contextlib.suppress(ConnectionError):
                    sock.sendall(hello(NAME)[at : at + 1])
        lab.blocked(seq, attacker, "hello_timeout")
    for sock in slow:
        sock.close()
    assert lab.ask("ping").flows == 0
    assert attacker.get(ALLOWED, "allowed.example").startswith(ALLOWED.encode())


def test_row_12_several_names(lab: Lab, attacker: Machine) -> None:
    refuses(lab, attacker, with_extensions([sni(NAME, b"evil.example")]), "several_names")
    refuses(lab, attacker, with_extensions([(SNI, u16(entry(b"evil", 9) + entry(NAME)))]), "server_name_type")


def test_row_13_the_extension_twice(lab: Lab, attacker: Machine) -> None:
    refuses(lab, attacker, with_extensions([sni(NAME), *USUAL, sni(b"evil.example")]), "duplicate_extension")


@pytest.mark.parametrize(
    "name",
    [b"allowed.example\0", b"allowed.example\n", b'allowed.example"}\n{"verdict":"allowed', b"\x1b[2J", b"%s%n", b"\xff\xfe"],
)  # fmt: skip
def test_row_14_and_62_names_that_would_break_a_log(lab: Lab, attacker: Machine, name: bytes) -> None:
    seq = lab.seq()
    refuses(lab, attacker, hello(name), "name_characters")
    mine = [event for event in lab.events(seq) if event.event == "open"]
    assert len(mine) == 1  # one line for one attempt, and each line parses
    raw = b"".join(path.read_bytes() for path in lab.ledger.glob("*.jsonl"))
    assert not {*raw} & {*range(10), *range(11, 32), 127}  # no control byte but the newline that ends a line
    assert "\x1b" not in lab.gateway_log()


def test_row_15_case_dots_and_lookalikes(lab: Lab, attacker: Machine) -> None:
    for spelling in (b"RAW.Example", b"raw.example."):
        seq = lab.seq()
        arrives_whole(lab, attacker, hello(spelling))
        assert lab.wait_event(seq, lambda event: event.event == "open").host == "raw.example"
    refuses(lab, attacker, hello(b"allowed.example.."), "name_labels")
    refuses(lab, attacker, hello("allowed.example".replace("l", "\u212a").encode()), "name_characters")


@pytest.mark.parametrize(
    "name", [b"evilallowed.example", b"allowed.example.evil.example", b"example", b"x.allowed.example", b"wild.example", b"a.b.wild.example"]
)  # fmt: skip
def test_row_16_names_that_only_look_like_it(lab: Lab, attacker: Machine, name: bytes) -> None:
    refuses(lab, attacker, hello(name), "not_allowed", host=name.decode())


@pytest.mark.parametrize("name", [b"2130706433", b"0x7f.1", b"127.1", b"127.0.0.1", b"0x7f000001", b"localhost"])
def test_row_17_names_that_are_numbers(lab: Lab, attacker: Machine, name: bytes) -> None:
    local = Listener(lab.settings.uplink_netns, "127.0.0.1", 443)
    try:
        refuses(lab, attacker, hello(name), "not_allowed" if name == b"localhost" else "ip_literal")
        assert local.got == []
    finally:
        local.close()


def second_flight(machine: Machine, change: Callable[[bytes], bytes]) -> bytes:
    """What retry.example answers to a client whose second flight is sent as ``change`` makes it."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    client = context.wrap_bio(incoming, outgoing, server_hostname="retry.example")
    with machine.tcp(RETRY) as sock:
        for number in range(10):
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                flight = outgoing.read()
                sock.sendall(change(flight) if number == 1 else flight)
                incoming.write(sock.recv(65_536))
        client.write(b"GET x\n")
        sock.sendall(outgoing.read())
        while True:
            try:
                return client.read(100)
            except ssl.SSLWantReadError:
                incoming.write(sock.recv(65_536))


def test_row_18_another_name_in_the_second_hello(lab: Lab, attacker: Machine) -> None:
    assert second_flight(attacker, lambda flight: flight).startswith(RETRY.encode())

    def other_name(flight: bytes) -> bytes:
        assert flight.count(b"retry.example") == 1  # so this is a hello again
        return flight.replace(b"retry.example", b"other.example")

    seq, got = lab.seq(), len(lab.world.requests)
    with lab.nothing_leaves(), pytest.raises(ConnectionError):
        second_flight(attacker, other_name)
    event = lab.wait_event(seq, lambda event: event.event == "close")
    assert (event.close_reason, event.verdict, event.host) == ("sni_changed", "blocked", "retry.example")
    assert len(lab.world.requests) == got


def test_row_19_whatever_is_sent_later_goes_to_the_same_place(lab: Lab, attacker: Machine) -> None:
    # Inside TLS a renegotiation can't be seen.  The upstream is the one that the first hello named, and stays it.
    first, later = hello(b"raw.example"), hello(b"evil.example")
    asked, got = lab.world.queries.count("evil.example"), len(lab.world.raw)
    with lab.nothing_leaves(), attacker.tcp(ATTACKER) as sock:
        sock.sendall(first)
        sizes = sock.recv(100)
        sock.sendall(later)
        while sum(map(int, sizes[1:].split())) < len(first + later):
            sizes += sock.recv(100)
    assert bytes(lab.world.raw[got:]) == first + later
    assert lab.world.queries.count("evil.example") == asked


def test_row_20_resumption_and_early_data_do_not_skip_the_check(lab: Lab, attacker: Machine) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with attacker.tcp(ALLOWED) as raw, context.wrap_socket(raw, server_hostname="allowed.example") as sock:
        session = sock.session
    with lab.nothing_leaves(), attacker.tcp(ATTACKER) as raw, pytest.raises(ConnectionError):
        context.wrap_socket(raw, server_hostname="evil.example", session=session)
    early = hello(b"evil.example") + b"\x17\x03\x03" + u16(b"secret" * 100)
    refuses(lab, attacker, early, "not_allowed", host="evil.example")


def test_row_21_hellos_of_long_ago(lab: Lab, attacker: Machine) -> None:
    refuses(lab, attacker, b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + bytes(40), "not_tls")
    refuses(lab, attacker, hello(NAME, version=b"\x03\x00"), "version")
    refuses(lab, attacker, records(message(block=b"")), "missing_sni")


@pytest.mark.parametrize(
    "data", [b"SSH-2.0-OpenSSH_9.2\r\n", b"GET / HTTP/1.1\r\nHost: allowed.example\r\n\r\n", b"\x05\x01\x00", b"\0"]
)
def test_row_22_no_tls_on_443(lab: Lab, attacker: Machine, data: bytes) -> None:
    refuses(lab, attacker, data, "not_tls", ALLOWED)


def test_row_22_a_client_that_waits_for_the_server_to_speak(lab: Lab, attacker: Machine) -> None:
    refuses(lab, attacker, b"", "hello_timeout")


@pytest.mark.parametrize("port", [853, 4444, 8080, 8443])
def test_row_23_tls_on_other_ports(lab: Lab, attacker: Machine, port: int) -> None:
    seq = lab.seq()
    with lab.nothing_leaves():
        assert attacker.refused(ATTACKER, hello(NAME), port)
    lab.blocked(seq, attacker, "other", event="drop", protocol="tcp", orig_dst=ATTACKER, port=port)


def test_row_23_a_range_is_open_at_the_ports_it_names_only(lab: Lab, attacker: Machine) -> None:
    assert attacker.get(RANGE, "whatever.example", port=4444).startswith(RANGE.encode())
    assert attacker.refused(RANGE, b"x", 8443)


def test_row_24_an_allowed_host_that_answers_with_something_else(lab: Lab, attacker: Machine) -> None:
    seq = lab.seq()
    with lab.nothing_leaves(), attacker.tcp(ALLOWED) as sock:
        sock.sendall(hello(b"ssh.example"))
        with pytest.raises(ConnectionError):
            sock.recv(100)
    event = lab.wait_event(seq, lambda event: event.event == "close")
    assert (event.close_reason, event.verdict, event.host) == ("upstream_not_tls", "blocked", "ssh.example")


def test_row_25_another_tenant_on_the_same_address(lab: Lab, attacker: Machine) -> None:
    before = len(lab.world.requests)
    assert attacker.get(CDN, "cdn-ok.example").startswith(CDN.encode())
    refuses(lab, attacker, hello(b"cdn-evil.example"), "not_allowed", CDN, host="cdn-evil.example")
    assert [name for _, name, _ in lab.world.requests[before:]] == ["cdn-ok.example"]


def test_warn_changes_one_decision_only(lab: Lab, attacker: Machine) -> None:
    lab.apply(attacker, standard(mode="warn"), generation=2)
    try:
        seq = lab.seq()
        assert attacker.get(CDN, "cdn-evil.example").startswith(CDN.encode())
        event = lab.wait_event(seq, lambda event: event.event == "open")
        assert (event.verdict, event.would_block, event.mode) == ("warn", True, "warn")
        for data, reason in (
            (openssl(None), "missing_sni"),
            (b"SSH-2.0-x\r\n", "not_tls"),
            (hello(NAME, (ECH, b"")), "ech"),
        ):
            refuses(lab, attacker, data, reason)
        with lab.nothing_leaves():
            assert attacker.refused("169.254.169.254", hello(NAME))
            assert attacker.refused(ATTACKER, b"x", 80)
    finally:
        lab.apply(attacker, standard(), generation=3)


def test_a_client_sees_the_allowed_sites_own_certificate(lab: Lab, attacker: Machine, ca: str) -> None:
    """Nothing is decrypted: the session is between the VM and the site, and the whole of it is counted."""
    seq = lab.seq()
    with attacker.tls(ALLOWED, "allowed.example", ca=ca) as sock:
        sock.sendall(b"SEND 3000000\n")
        left = 3_000_000
        while left:
            left -= len(sock.recv(1 << 16))
    event = lab.wait_event(seq, lambda event: event.event == "close")
    assert event.bytes_down > 3_000_000
    assert (event.host, event.close_reason) == ("allowed.example", "ended")


def test_the_policys_digest_is_on_every_event(lab: Lab, attacker: Machine) -> None:
    rules: Policy = policy("only.example")
    lab.apply(attacker, rules, generation=7)
    try:
        seq = lab.seq()
        assert attacker.refused(ALLOWED, hello(NAME))
        event = lab.blocked(seq, attacker, "not_allowed", host="allowed.example")
        assert (event.policy, event.generation, event.who.repo) == (rules.digest, 7, "lab/site")
    finally:
        lab.apply(attacker, standard(), generation=8)


def test_an_ordinary_client_gets_its_page(lab: Lab, attacker: Machine, ca: str) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    address = attacker.address_of("allowed.example")
    argv = ["ip", "netns", "exec", attacker.namespace, "openssl", "s_client", "-connect", f"{address}:443", "-quiet"]
    try:
        shown = run([*argv, "-servername", "allowed.example", "-CAfile", ca, "-verify_return_error"], stdin="GET x\n")
    except CommandFailed as failed:
        shown = failed.output
    assert f"{ALLOWED} got GET x" in shown
