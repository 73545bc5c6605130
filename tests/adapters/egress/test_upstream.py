"""Our resolver against a nameserver on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from orchestrator.egress.upstream import Upstream

BOTH = ["192.0.2.1", "192.0.2.2"]


class Nameserver(asyncio.DatagramProtocol):
    zone: dict[tuple[str, str], tuple[int, list[str]]]
    silent = False

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.zone = {
            ("both.example", "A"): (30, ["192.0.2.1", "192.0.2.2"]),
            ("both.example", "AAAA"): (30, ["2001:db8::1"]),
            ("six.example", "AAAA"): (30, ["2001:db8::6"]),
            ("now.example", "A"): (0, ["192.0.2.9"]),
        }

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, peer: object) -> None:
        query = dns.message.from_wire(data)
        name = query.question[0].name.to_text(omit_final_dot=True)
        kind = dns.rdatatype.to_text(query.question[0].rdtype)
        self.asked.append((name, kind))
        if self.silent:
            return
        reply = dns.message.make_response(query)
        ttl, found = self.zone.get((name, kind), (0, []))
        if name == "gone.example":
            reply.set_rcode(dns.rcode.NXDOMAIN)
        if name == "alias.example" and kind == "A":
            reply.answer.append(dns.rrset.from_text(name + ".", 30, "IN", "CNAME", "both.example."))
            reply.answer.append(dns.rrset.from_text("both.example.", 30, "IN", "A", "192.0.2.1"))
        if found:
            reply.answer.append(dns.rrset.from_text(name + ".", ttl, "IN", kind, *found))
        self.transport.sendto(reply.to_wire(), peer)  # type: ignore[attr-defined]


@pytest.fixture
async def nameserver() -> AsyncIterator[tuple[Nameserver, str]]:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    transport, server = await asyncio.get_running_loop().create_datagram_endpoint(Nameserver, sock=sock)
    yield server, f"127.0.0.1:{sock.getsockname()[1]}"
    transport.close()
    await asyncio.sleep(0)


async def test_all_addresses_of_a_name_ipv4_before_ipv6(nameserver: tuple[Nameserver, str]) -> None:
    server, address = nameserver
    upstream = Upstream([address])
    assert sorted(await upstream.resolve("both.example")) == BOTH  # dnspython's server side shuffles
    assert await upstream.resolve("six.example") == ("2001:db8::6",)
    assert await upstream.resolve("alias.example") == ("192.0.2.1",)
    assert await upstream.resolve("gone.example") == ()
    assert await upstream.resolve("empty.example") == ()
    assert ("both.example", "AAAA") not in server.asked


async def test_answers_are_kept_for_their_time_to_live(nameserver: tuple[Nameserver, str]) -> None:
    server, address = nameserver
    now = 0.0
    upstream = Upstream([address], clock=lambda: now)
    for _ in range(3):
        await upstream.resolve("both.example")
        await upstream.resolve("now.example")
    assert server.asked.count(("both.example", "A")) == 1
    assert server.asked.count(("now.example", "A")) == 3
    now = 31.0
    await upstream.resolve("both.example")
    assert server.asked.count(("both.example", "A")) == 2


async def test_connections_that_wait_for_one_name_ask_once(nameserver: tuple[Nameserver, str]) -> None:
    server, address = nameserver
    upstream = Upstream([address])
    answers = await asyncio.gather(*(upstream.resolve("both.example") for _ in range(20)))
    assert {tuple(sorted(answer)) for answer in answers} == {tuple(BOTH)}
    assert server.asked == [("both.example", "A")]


async def test_one_waiter_that_gives_up_does_not_take_the_answer_from_the_others(
    nameserver: tuple[Nameserver, str],
) -> None:
    _, address = nameserver
    upstream = Upstream([address])
    first = asyncio.create_task(upstream.resolve("both.example"))
    second = asyncio.create_task(upstream.resolve("both.example"))
    await asyncio.sleep(0)
    first.cancel()
    assert sorted(await second) == BOTH


async def test_a_nameserver_that_is_silent_is_no_answer_in_bounded_time(nameserver: tuple[Nameserver, str]) -> None:
    server, address = nameserver
    server.silent = True
    upstream = Upstream([address])
    upstream._resolver.lifetime = 0.3
    upstream._resolver.timeout = 0.1
    async with asyncio.timeout(60):
        assert await upstream.resolve("both.example") == ()
    server.silent = False
    assert sorted(await upstream.resolve("both.example")) == BOTH
