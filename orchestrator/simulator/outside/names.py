"""The world's names and addresses, and the DNS answers that follow from them (RFC 1035; A records only)."""

from __future__ import annotations

import dns.exception
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

TTL_S = 30


class Names:
    """Addresses by name; ``*.x`` stands for every name below x.  May be changed while it answers."""

    def __init__(self, names: dict[str, list[str]]) -> None:
        self._names = {name.lower(): list(addresses) for name, addresses in names.items()}

    def set(self, name: str, addresses: list[str]) -> None:
        self._names[name.lower()] = list(addresses)

    def find(self, name: str) -> list[str] | None:
        """The addresses of ``name``: its own entry before a wildcard's, the nearest wildcard first."""
        name = name.lower().rstrip(".")
        if name in self._names:
            return self._names[name]
        labels = name.split(".")
        for cut in range(1, len(labels)):
            if (found := self._names.get("*." + ".".join(labels[cut:]))) is not None:
                return found
        return None

    def answer(self, query: bytes) -> bytes | None:
        """The reply to ``query``; None for what isn't one, which gets no answer."""
        try:
            message = dns.message.from_wire(query)
        except dns.exception.DNSException:
            return None
        if message.flags & dns.flags.QR or message.opcode() != dns.opcode.QUERY or len(message.question) != 1:
            return None
        reply = dns.message.make_response(message, recursion_available=True)
        question = message.question[0]
        addresses = self.find(question.name.to_text(omit_final_dot=True))
        if addresses is None:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        else:
            kinds = {dns.rdatatype.A: ".", dns.rdatatype.AAAA: ":"}
            mark = kinds.get(question.rdtype, "\0")
            matching = [address for address in addresses if mark in address]
            if matching:
                reply.answer.append(
                    dns.rrset.from_text(question.name, TTL_S, dns.rdataclass.IN, question.rdtype, *matching)
                )
        return reply.to_wire(max_size=65_535)


def question_of(query: bytes) -> tuple[str, str]:
    """The name and type that ``query`` asks for; empty for what isn't a query."""
    try:
        message = dns.message.from_wire(query)
    except dns.exception.DNSException:
        return "", ""
    if not message.question:
        return "", ""
    first = message.question[0]
    return first.name.to_text(omit_final_dot=True).lower(), dns.rdatatype.to_text(first.rdtype)
