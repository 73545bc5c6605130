"""Row 37: ICMP.  A runner's goes nowhere; a sandbox's echoes go where its policy says, and carry nothing."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

import pytest

from orchestrator.core.link import Limits
from orchestrator.system import netns
from orchestrator.system.process import run
from tests.security.conftest import standard
from tests.security.lab.lab import UPLINK, Lab
from tests.security.lab.machine import Machine
from tests.security.lab.world import ALLOWED, ATTACKER, RANGE
from tests.security.test_packets import checksum, ipv4

SECRET = b"the secret"
QUICK = Limits(echoes_per_second=200)
"""What an echo a second is limited to isn't what most of these tests are about."""
KINDS = (0, 3, 4, 5, 8, 9, 10, 11, 12, 13, 15, 17, 42)


def sandbox_policy(**fields):
    return standard(profile="sandbox", **fields)


@pytest.fixture(scope="module")
def sandbox(lab: Lab) -> Iterator[Machine]:
    machine = lab.machine("s", sandbox_policy(), limits=QUICK)
    yield machine
    lab.ask("drop", machine.tap)  # an echo's flow has no end of its own: who comes next would wait until it is idle


@pytest.fixture
def outside(lab: Lab) -> Iterator[socket.socket]:
    """All ICMP that arrives outside, each packet with its IP header."""
    with netns.inside(lab.out):
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    sock.settimeout(0.2)
    yield sock
    sock.close()


def received(sock: socket.socket, *, kinds: tuple[int, ...] = (8,)) -> list[bytes]:
    found = []
    with contextlib.suppress(TimeoutError):
        while True:
            packet = sock.recv(65_536)
            if packet[20] in kinds:
                found.append(packet)
    return found


def message(kind: int, data: bytes = bytes(56), *, code: int = 0, ident: int = 0x4242, number: int = 1) -> bytes:
    body = struct.pack("!BBHHH", kind, code, 0, ident, number) + data
    return body[:2] + struct.pack("!H", checksum(body)) + body[4:]


@contextlib.contextmanager
def pinging(machine: Machine) -> Iterator[socket.socket]:
    with machine.socket(kind=socket.SOCK_RAW, proto=socket.IPPROTO_ICMP) as sock:
        sock.settimeout(0.5)
        yield sock


def ping(machine: Machine, target: str, data: bytes = bytes(56), *, ident: int = 0x4242) -> tuple[int, int, bytes, str]:
    """Kind, code, rest and source of what an echo is answered with; raises TimeoutError where nothing comes."""
    with pinging(machine) as sock:
        sock.sendto(message(8, data, ident=ident), (target, 0))
        while True:
            packet = sock.recv(65_536)
            if packet[20] != 8:
                return packet[20], packet[21], packet[24:], socket.inet_ntoa(packet[12:16])


def test_row_37_a_runners_icmp_of_every_kind_is_dropped_and_on_record(
    lab: Lab, attacker: Machine, outside: socket.socket
) -> None:
    seq = lab.seq()
    with lab.nothing_leaves():
        for kind in KINDS:
            for target in (ATTACKER, RANGE, attacker.slot.gateway_ip, UPLINK):
                attacker.frame(ipv4(attacker.ip, target, 1, message(kind, SECRET)))
        for target in (ATTACKER, RANGE, attacker.address_of("allowed.example")):
            with pytest.raises(TimeoutError):
                ping(attacker, target)
        assert received(outside, kinds=KINDS) == []
    event = lab.blocked(seq, attacker, "icmp", event="drop", protocol="icmp", orig_dst=ATTACKER)
    assert event.policy == standard().digest
    assert [event for event in lab.events(seq) if event.event == "open"] == []


def test_row_37_a_sandbox_pings_an_allowed_name_and_nothing_of_it_gets_out(
    lab: Lab, sandbox: Machine, outside: socket.socket
) -> None:
    seq = lab.seq()
    target = sandbox.address_of("allowed.example")
    kind, _, rest, source = ping(sandbox, target, SECRET * 140, ident=0x5EC7)
    assert (kind, rest[4:], source) == (0, SECRET * 140, target)
    assert rest[:2] == b"\x5e\xc7"
    (packet,) = received(outside)
    assert (socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])) == (UPLINK, ALLOWED)
    assert packet[20:22] == b"\x08\0"
    assert packet[28:] == bytes(56)
    assert packet[24:26] != b"\x5e\xc7"
    event = lab.wait_event(seq, lambda event: event.event == "open" and event.protocol == "icmp")
    assert (event.who.runner, event.verdict, event.host, event.host_source, event.resolved, event.rule) == (
        sandbox.runner, "allowed", "allowed.example", "dns", ALLOWED, "test#1",
    )  # fmt: skip


def test_row_37_a_sandbox_pings_a_listed_range(lab: Lab, sandbox: Machine, outside: socket.socket) -> None:
    seq = lab.seq(flows=99)
    assert ping(sandbox, RANGE, ident=1)[0] == 0
    assert len(received(outside)) == 1
    event = lab.wait_event(seq, lambda event: event.event == "open")
    assert (event.protocol, event.host_source, event.orig_dst, event.rule) == ("icmp", "ip", RANGE, "test#range")


def test_row_37_a_sandbox_pings_nothing_else(lab: Lab, sandbox: Machine, outside: socket.socket) -> None:
    unknown = "198.18.200.200"
    blocked = {
        ATTACKER: "not_allowed",
        unknown: "unknown_name",
        "169.254.169.254": "floor_metadata",
        UPLINK: "floor_own_address",
        sandbox.slot.gateway_ip: "floor_own_address",
        sandbox.address_of("to-loopback.example"): "floor_loopback",
        sandbox.address_of("to-host.example"): "floor_own_address",
    }
    seq = lab.seq(flows=99)
    with lab.nothing_leaves():
        for target in blocked:
            kind, code, _, source = ping(sandbox, target)
            assert (kind, code, source) == (3, 13, target)
        assert received(outside) == []
    for target, reason in blocked.items():
        assert lab.blocked(seq, sandbox, reason, event="open", orig_dst=target).protocol == "icmp"


def test_row_37_a_name_that_is_only_watched_is_not_pinged(lab: Lab, sandbox: Machine, outside: socket.socket) -> None:
    lab.apply(sandbox, sandbox_policy(mode="warn"), generation=2)
    try:
        with lab.nothing_leaves():
            assert ping(sandbox, sandbox.address_of("evil.example"))[:2] == (3, 13)
            assert received(outside) == []
    finally:
        lab.apply(sandbox, sandbox_policy(), generation=3)


def test_row_37_a_sandbox_cannot_tunnel(lab: Lab, sandbox: Machine, outside: socket.socket) -> None:
    """Whatever is in an echo but its being sent (data, size, identifier, number, code, TTL, type), none of it is outside."""
    seq = lab.seq(flows=99)
    for number, (kind, code, data) in enumerate(
        [(8, 0, SECRET), (8, 0, SECRET * 100), (8, 0, b""), (8, 7, SECRET), *((kind, 0, SECRET) for kind in KINDS if kind != 8)]
    ):  # fmt: skip
        body = message(kind, data, code=code, ident=0x5345 + number, number=0x4352)
        sandbox.frame(ipv4(sandbox.ip, RANGE, 1, body))
    sandbox.frame(ipv4(sandbox.ip, RANGE, 1, message(8, SECRET)[:16], more=True))
    sandbox.frame(ipv4(sandbox.ip, RANGE, 1, message(8, SECRET)[16:], fragment=16))
    sandbox.frame(ipv4(sandbox.ip, RANGE, 1, message(8, SECRET), options=b"\x07\x07\x04" + bytes(5)))
    packets = received(outside, kinds=KINDS)
    assert len(packets) == 3
    assert {packet[20:22] + packet[28:] for packet in packets} == {b"\x08\0" + bytes(56)}
    assert {packet[8] for packet in packets} == {64}
    assert len({packet[24:26] for packet in packets}) == 1  # the gateway's own identifier
    assert lab.wait_event(seq, lambda event: event.reason == "malformed").protocol == "icmp"
    assert lab.blocked(seq, sandbox, "icmp", event="drop", orig_dst=RANGE)


def test_row_37_echoes_have_a_rate(lab: Lab, sandbox: Machine, outside: socket.socket) -> None:
    lab.install(sandbox, sandbox_policy())
    try:
        seq = lab.seq(flows=99)
        with pinging(sandbox) as sock:
            for number in range(100):
                sock.sendto(message(8, number=number), (RANGE, 0))
        assert 5 <= len(received(outside)) <= 2 * Limits().echoes_per_second + 2
        assert lab.blocked(seq, sandbox, "other", event="drop", protocol="icmp", orig_dst=RANGE)
    finally:
        lab.install(sandbox, sandbox_policy(), limits=QUICK)


def test_row_37_what_the_outside_sends_by_itself_does_not_get_in(lab: Lab, sandbox: Machine) -> None:
    with netns.inside(lab.out):
        sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with sender, pinging(sandbox) as sock:
        for kind in KINDS:
            sender.sendto(message(kind, SECRET), (UPLINK, 0))
        sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            sock.recv(1000)


def test_row_37_a_sandbox_that_becomes_a_runner_pings_no_more(
    lab: Lab, sandbox: Machine, outside: socket.socket
) -> None:
    assert ping(sandbox, RANGE, ident=2)[0] == 0
    received(outside)
    seq = lab.seq(flows=99)
    try:
        assert lab.apply(sandbox, standard(), generation=4).flows_closed >= 1
        assert lab.wait_event(seq, lambda event: event.event == "close").close_reason == "policy"
        # the kernel's first layer is changed behind it; before that the gateway refuses by itself
        assert ping(sandbox, RANGE, ident=2)[:2] == (3, 13)
        lab.install(sandbox, standard())
        with pytest.raises(TimeoutError):
            ping(sandbox, RANGE, ident=2)
        assert received(outside) == []
        assert lab.blocked(seq, sandbox, "protocol_icmp", event="open", orig_dst=RANGE).protocol == "icmp"
    finally:
        lab.install(sandbox, sandbox_policy(), limits=QUICK)
        lab.apply(sandbox, sandbox_policy(), generation=5)


def test_row_37_and_58_without_a_gateway_no_echo_goes_anywhere(
    lab: Lab, sandbox: Machine, outside: socket.socket
) -> None:
    lab.kill_gateway()
    try:
        with lab.nothing_leaves():
            for target in (RANGE, ATTACKER, sandbox.slot.gateway_ip):
                with pytest.raises(TimeoutError):
                    ping(sandbox, target)
            assert received(outside, kinds=KINDS) == []
    finally:
        lab.start_gateway()
    assert ping(sandbox, RANGE)[0] == 0


def test_row_37_the_systems_own_ping_works(lab: Lab, sandbox: Machine) -> None:
    target = sandbox.address_of("allowed.example")
    answer = run(["ip", "netns", "exec", sandbox.namespace, "ping", "-c", "2", "-i", "0.3", "-s", "1000", target])
    assert "2 packets transmitted, 2 received, 0% packet loss" in answer
    assert "wrong data" not in answer
