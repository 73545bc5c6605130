"""What the resolver answers to one DNS message of a VM.  No I/O; nothing is ever forwarded.

- One question, class IN, opcode QUERY, no records beside an OPT: anything else is an error to the asker (FORMERR, NOTIMP,
  REFUSED) and an event.
- A name that the policy allows has an A record: the address that stands for it in this VM.  For every other type the name
  exists and has no such data, so there is no TXT to carry bytes and no HTTPS record to carry ECH keys.
- Any other name is REFUSED, with an event.  In ``warn`` it is answered, with an event that says ``would_block``.
"""

from __future__ import annotations

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import msgspec

from orchestrator.core.flow import Flow
from orchestrator.core.policy import Decision, decide
from orchestrator.egress.hello import host_name
from orchestrator.egress.links import LinkState

TTL_S = 30
MAX_QUERY = 1232
"""Bytes.  A query with one question and an OPT fits many times over."""

_HEADER = 12
_BLOCKED = dns.edns.EDEOption(dns.edns.EDECode.BLOCKED, "not allowed by the IronCD policy")


class Answer(msgspec.Struct, frozen=True):
    """``wire`` goes back to the asker (empty: nothing does); ``decision`` is for the record where it is set."""

    wire: bytes = b""
    decision: Decision | None = None
    name: str = ""


def answer(query: bytes, state: LinkState) -> Answer:
    """Answer ``query``, one DNS message (without TCP's length)."""
    if len(query) < _HEADER or query[2] & 0x80:
        return Answer()  # no header, or an answer: replying to those makes loops
    wrong = _header_error(query)
    if wrong is not None:
        return wrong
    try:
        message = dns.message.from_wire(query)
    except dns.exception.DNSException:
        return _error(query, dns.rcode.FORMERR, "dns_malformed")
    if not isinstance(message, dns.message.QueryMessage) or len(message.question) != 1:
        return _error(query, dns.rcode.FORMERR, "dns_malformed")
    return _judged(message, message.question[0], state)


def _header_error(query: bytes) -> Answer | None:
    if (query[2] >> 3) & 0x0F != dns.opcode.QUERY:
        return _error(query, dns.rcode.NOTIMP, "dns_opcode")
    if query[4:6] != b"\x00\x01" or query[6:10] != bytes(4):
        return _error(query, dns.rcode.FORMERR, "dns_questions")
    if len(query) > MAX_QUERY:
        return _error(query, dns.rcode.FORMERR, "dns_size")
    return None


def _judged(message: dns.message.QueryMessage, question: dns.rrset.RRset, state: LinkState) -> Answer:
    name, why = _name_of(question)
    if question.rdclass != dns.rdataclass.IN:
        return _refused(message, name or "", Decision("blocked", "dns_class"))
    if name is None:
        return _refused(message, "", Decision("blocked", f"dns_{why}"))
    decision = state.within_budget(decide(state.policy, Flow("dns", 443, name)), name)
    if not decision.passes:
        return _refused(message, name, decision)
    address = state.fake_names.address_of(name)
    if address is None:
        return _refused(message, name, Decision("blocked", "name_budget", decision.rule))
    reply = dns.message.make_response(message, recursion_available=True)
    if question.rdtype == dns.rdatatype.A:
        reply.answer.append(dns.rrset.from_text(question.name, TTL_S, "IN", "A", address))
    return Answer(reply.to_wire(), decision if decision.would_block else None, name)


def _name_of(question: dns.rrset.RRset) -> tuple[str | None, str]:
    """The question's name where it is a host name: labels joined by hand, so that a dot inside one isn't taken for two."""
    labels = question.name.labels[:-1]
    if any(b"." in label for label in labels):
        return None, "name_characters"
    return host_name(b".".join(labels))


def _refused(message: dns.message.QueryMessage, name: str, decision: Decision) -> Answer:
    reply = dns.message.make_response(message, recursion_available=True)
    reply.set_rcode(dns.rcode.REFUSED)
    if message.edns >= 0:
        reply.use_edns(0, options=[_BLOCKED])
    return Answer(reply.to_wire(), decision, name)


def _error(query: bytes, rcode: dns.rcode.Rcode, reason: str) -> Answer:
    """An answer with a header only: what the asker sent isn't repeated."""
    flags = (query[2] & 0x79) | 0x80
    wire = query[:2] + bytes((flags, 0x80 | rcode)) + bytes(8)
    return Answer(wire, Decision("blocked", reason))
