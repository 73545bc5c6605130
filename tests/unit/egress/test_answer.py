"""What the resolver answers, message by message."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address

import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.floor import NAMES_RANGE
from orchestrator.core.link import Limits
from orchestrator.core.policy import Rule, compile_policy
from orchestrator.egress.answer import answer
from orchestrator.egress.links import LinkState
from tests.unit.egress.conftest import make_link, make_policy

Make = Callable[..., LinkState]


def ask(state: LinkState, name: str, kind: str = "A", **fields: object) -> tuple[dns.message.Message, object]:
    query = dns.message.make_query(name, kind, **fields)  # type: ignore[arg-type]
    got = answer(query.to_wire(), state)
    reply = dns.message.from_wire(got.wire)
    assert reply.id == query.id
    assert reply.flags & dns.flags.QR
    return reply, got.decision


def addresses(reply: dns.message.Message) -> list[str]:
    return [rdata.to_text() for rrset in reply.answer for rdata in rrset]


def test_an_allowed_name_gets_an_address_that_stands_for_it(state: Make) -> None:
    link = state("allowed.example")
    reply, decision = ask(link, "Allowed.Example.")
    (address,) = addresses(reply)
    assert IPv4Address(address) in NAMES_RANGE
    assert link.fake_names.name_of(address) == "allowed.example"
    assert decision is None
    assert addresses(ask(link, "allowed.example")[0]) == [address]


@pytest.mark.parametrize(
    "kind", ["AAAA", "HTTPS", "SVCB", "TXT", "MX", "SRV", "ANY", "CNAME", "NS", "PTR", "DNSKEY", "AXFR"]
)
def test_an_allowed_name_has_no_other_data(state: Make, kind: str) -> None:
    reply, decision = ask(state("allowed.example"), "allowed.example", kind)
    assert (reply.rcode(), addresses(reply), decision) == (dns.rcode.NOERROR, [], None)


@pytest.mark.parametrize("kind", ["A", "AAAA", "TXT", "HTTPS"])
def test_any_other_name_is_refused_and_recorded(state: Make, kind: str) -> None:
    reply, decision = ask(state("allowed.example"), "c2VjcmV0.evil.example", kind)
    assert reply.rcode() == dns.rcode.REFUSED
    assert (decision.verdict, decision.reason) == ("blocked", "not_allowed")


def test_a_refusal_tells_those_who_speak_edns_why(state: Make) -> None:
    reply, _ = ask(state("allowed.example"), "evil.example", use_edns=0)
    (option,) = reply.options
    assert isinstance(option, dns.edns.EDEOption)
    assert option.code == dns.edns.EDECode.BLOCKED


def test_in_warn_it_is_answered_and_said(state: Make) -> None:
    link = state("allowed.example", mode="warn")
    reply, decision = ask(link, "other.example")
    assert len(addresses(reply)) == 1
    assert (decision.verdict, decision.would_block) == ("warn", True)


def test_a_denied_name_is_refused_in_warn_too(state: Make) -> None:
    link = state(mode="warn", rules=[Rule(id="org#1", action="deny", host="evil.example")])
    reply, decision = ask(link, "evil.example")
    assert (reply.rcode(), decision.reason, decision.rule) == (dns.rcode.REFUSED, "denied", "org#1")


def test_names_under_a_wildcard_run_out(state: Make) -> None:
    link = state("*.allowed.example", "exact.example", limits=Limits(names_per_wildcard=3))
    results = [ask(link, f"n{n}.allowed.example") for n in range(5)]
    assert [reply.rcode() for reply, _ in results] == [dns.rcode.NOERROR] * 3 + [dns.rcode.REFUSED] * 2
    assert results[3][1].reason == "name_budget"
    assert ask(link, "n0.allowed.example")[0].rcode() == dns.rcode.NOERROR
    assert ask(link, "exact.example")[0].rcode() == dns.rcode.NOERROR


def header(query: bytes, **changes: bytes) -> bytes:
    data = bytearray(query)
    for at, value in changes.items():
        data[int(at[1:]) : int(at[1:]) + len(value)] = value
    return bytes(data)


QUERY = dns.message.make_query("allowed.example", "A").to_wire()


@pytest.mark.parametrize(
    ("what", "query", "rcode", "reason"),
    [
        ("two questions", header(QUERY, _4=b"\0\2") + QUERY[12:], dns.rcode.FORMERR, "dns_questions"),
        ("no question", header(QUERY, _4=b"\0\0")[:12], dns.rcode.FORMERR, "dns_questions"),
        ("answers in a query", header(QUERY, _6=b"\0\1"), dns.rcode.FORMERR, "dns_questions"),
        ("authority in a query", header(QUERY, _8=b"\0\1"), dns.rcode.FORMERR, "dns_questions"),
        ("update", header(QUERY, _2=bytes([dns.opcode.UPDATE << 3])), dns.rcode.NOTIMP, "dns_opcode"),
        ("notify", header(QUERY, _2=bytes([dns.opcode.NOTIFY << 3])), dns.rcode.NOTIMP, "dns_opcode"),
        ("iquery", header(QUERY, _2=bytes([1 << 3])), dns.rcode.NOTIMP, "dns_opcode"),
        ("trailing bytes", QUERY + b"secret", dns.rcode.FORMERR, "dns_malformed"),
        ("cut short", QUERY[:-3], dns.rcode.FORMERR, "dns_malformed"),
        ("pointer to itself", QUERY[:12] + b"\xc0\x0c\0\1\0\1", dns.rcode.FORMERR, "dns_malformed"),
        ("far too big", QUERY + bytes(2000), dns.rcode.FORMERR, "dns_size"),
    ],
)  # fmt: skip
def test_odd_messages(state: Make, what: str, query: bytes, rcode: int, reason: str) -> None:
    got = answer(query, state("allowed.example"))
    reply = dns.message.from_wire(got.wire)
    assert (reply.rcode(), got.decision.reason) == (rcode, reason), what  # type: ignore[union-attr]
    assert b"secret" not in got.wire


def test_other_classes_are_refused(state: Make) -> None:
    query = dns.message.make_query("allowed.example", "TXT", "CH")
    got = answer(query.to_wire(), state("allowed.example"))
    assert dns.message.from_wire(got.wire).rcode() == dns.rcode.REFUSED
    assert got.decision.reason == "dns_class"  # type: ignore[union-attr]


@pytest.mark.parametrize("wire", [b"", b"\0" * 11, header(QUERY, _2=b"\x80")])
def test_what_is_no_query_gets_no_answer(state: Make, wire: bytes) -> None:
    assert answer(wire, state("allowed.example")).wire == b""


@pytest.mark.parametrize(
    "label", [b"allowed.example\x07evil", b"\x0callo.wed\x07example", b"\x04ev\x00l", b"\x05\x1b[2Jx", b"\x03caf\xc3\xa9"]
)  # fmt: skip
def test_names_of_other_bytes_are_refused(state: Make, label: bytes) -> None:
    wire = QUERY[:12] + bytes([len(label)]) + label + b"\0\0\1\0\1"
    got = answer(wire, state("allowed.example", "**.example"))
    assert dns.message.from_wire(got.wire).rcode() == dns.rcode.REFUSED
    assert got.name == ""


def test_a_dot_inside_a_label_is_not_two_labels(state: Make) -> None:
    wire = QUERY[:12] + b"\x0fallowed.example\0\0\1\0\1"
    got = answer(wire, state("allowed.example"))
    assert dns.message.from_wire(got.wire).rcode() == dns.rcode.REFUSED


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.binary(max_size=80).map(lambda tail: QUERY[:12] + tail))
def test_any_bytes_get_an_answer_or_none_and_never_an_error(wire: bytes) -> None:
    policy = make_policy("allowed.example")
    got = answer(wire, LinkState(make_link(policy), compile_policy(policy), 0.0))
    if got.wire:
        assert got.wire[:2] == wire[:2]
        assert got.wire[2] & 0x80
        assert len(got.wire) <= max(len(wire), 12) + 100
