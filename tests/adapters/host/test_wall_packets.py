"""The wall in a real namespace, judged by what arrives at the other side and by what the guest is answered."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from orchestrator.core.link import Limits
from orchestrator.system import netns
from orchestrator.system.process import run
from tests.adapters.host.conftest import PORTS, Nflog

pytestmark = pytest.mark.real

OUTSIDE = "198.51.100.66"


def test_tls_to_any_address_reaches_the_gateway_and_nothing_else(wire, gateway):
    vm = wire()
    assert vm.guest.tcp(OUTSIDE, 443) == "open"
    assert gateway.arrived(1) == [("tcp", vm.slot.guest_ip, 10443)]


def test_dns_to_any_resolver_is_answered_by_ours(wire, gateway):
    vm = wire()
    assert vm.guest.udp("8.8.8.8", 53, b"q") == b"answer q"
    assert vm.guest.tcp("8.8.8.8", 53) == "open"
    assert gateway.arrived(2) == [("udp", vm.slot.guest_ip, 10053), ("tcp", vm.slot.guest_ip, 10053)]


@pytest.mark.parametrize(
    ("port", "why"), [(80, "http"), (22, "ssh"), (8443, "other"), (853, "other"), (10443, "other")]
)
def test_other_tcp_is_reset_at_once_and_logged(wire, gateway, nflog, port, why):
    vm = wire()
    assert vm.guest.tcp(OUTSIDE, port) == "reset"
    assert nflog.prefixes() == [f"{vm.tap} {why} "]
    assert gateway.arrived() == []


@pytest.mark.parametrize(("port", "why"), [(443, "quic"), (80, "quic"), (123, "other"), (10053, "other")])
def test_other_udp_is_refused_at_once_and_logged(wire, gateway, nflog, port, why):
    vm = wire()
    assert vm.guest.udp(OUTSIDE, port) == "refused"
    assert nflog.prefixes() == [f"{vm.tap} {why} "]
    assert gateway.arrived() == []


@pytest.mark.parametrize("port", [10443, 10022, 10053, 9000])
def test_listeners_of_the_host_cant_be_reached_directly(wire, gateway, port):
    vm = wire()
    assert vm.guest.tcp(vm.slot.gateway_ip, port) == "reset"
    assert gateway.arrived() == []


def test_ranges_reach_the_range_listener_of_their_own_vm_only(wire, gateway):
    one = wire(0, ranges=(("203.0.113.0/24", 22), ("203.0.113.7/32", 22), ("198.51.100.9/32", 2222)))
    two = wire(1)
    assert one.guest.tcp("203.0.113.200", 22) == "open"
    assert one.guest.tcp("198.51.100.9", 2222) == "open"
    assert one.guest.tcp("198.51.100.10", 2222) == "reset"
    assert one.guest.tcp("203.0.114.1", 22) == "reset"
    assert two.guest.tcp("203.0.113.200", 22) == "reset"
    assert gateway.arrived(2) == [("tcp", one.slot.guest_ip, 10022)] * 2


def test_ranges_change_while_the_vm_runs(wire, wall, gateway):
    vm = wire(ranges=(("203.0.113.0/25", 22),))
    wall.change(replace(vm.rules, ranges=(("203.0.113.0/24", 22),)))
    assert vm.guest.tcp("203.0.113.200", 22) == "open"
    wall.change(replace(vm.rules, ranges=()))
    assert vm.guest.tcp("203.0.113.200", 22) == "reset"
    assert wall.drift() == []


def test_no_vm_reaches_another(wire, gateway):
    one, two = wire(0), wire(1)
    assert one.guest.tcp(two.slot.guest_ip, 80) == "reset"
    assert one.guest.tcp(two.slot.gateway_ip, 9000) == "reset"
    assert one.guest.udp(two.slot.guest_ip, 9999) == "refused"
    assert gateway.arrived() == []


def test_a_link_without_rules_gets_nothing(wire, links, gateway):
    vm = wire(up=False)
    links.up(vm.tap, vm.slot)
    assert vm.guest.tcp(OUTSIDE, 443, timeout_s=0.5) == "silence"
    assert vm.guest.udp("8.8.8.8", 53, timeout_s=0.5) == "silence"
    assert gateway.arrived() == []


def test_connections_are_limited(wire, gateway, nflog):
    vm = wire(limits=Limits(connections=5))
    held = []
    try:
        for _ in range(8):
            with netns.inside(vm.guest.name):
                link = socket.socket()
            held.append(link)
            link.settimeout(30)
            link.connect_ex((OUTSIDE, 443))
        time.sleep(0.2)
        assert len(gateway.arrived(5)) == 5
        assert set(nflog.prefixes()) == {f"{vm.tap} limit "}
    finally:
        for link in held:
            link.close()


def test_new_connections_a_second_are_limited(wire, gateway):
    vm = wire(limits=Limits(new_per_second=10))
    begun = time.monotonic()
    results = [vm.guest.tcp(OUTSIDE, 443) for _ in range(40)]
    took_s = time.monotonic() - begun
    assert 10 <= results.count("open") <= 20 + 10 * took_s
    assert results.count("open") + results.count("reset") == 40
    assert len(gateway.arrived(results.count("open"))) == results.count("open")


def _checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _packed(address: str) -> bytes:
    return bytes(map(int, address.split(".")))


def _udp(source: str, destination: str, port: int, payload: bytes = b"hello") -> bytes:
    return struct.pack(">HHHH", 40000, port, 8 + len(payload), 0) + payload


def _ip(source: str, destination: str, protocol: int, body: bytes, *, options: bytes = b"") -> bytes:
    words = 5 + len(options) // 4
    head = struct.pack(">BBHHHBBH", 0x40 | words, 0, words * 4 + len(body), 1, 0, 64, protocol, 0)
    head += _packed(source) + _packed(destination) + options
    return head[:10] + struct.pack(">H", _checksum(head)) + head[12:] + body


def _frame(kind: int, body: bytes, *, source: str = "02:00:00:00:00:01", target: str = "02:00:00:00:00:02") -> bytes:
    return _mac(target) + _mac(source) + struct.pack(">H", kind) + body


def _arp(op: int, mac: str, sender: str, target: str) -> bytes:
    return struct.pack(">HHBBH", 1, 0x800, 6, 4, op) + _mac(mac) + _packed(sender) + bytes(6) + _packed(target)


GUEST, OURS, OTHER = "10.201.0.1", "10.201.0.0", "10.201.0.3"
DNS = _udp(GUEST, "8.8.8.8", 53)
BAD_FRAMES = {
    "mac_spoof": _frame(0x800, _ip(GUEST, "8.8.8.8", 17, DNS), source="02:00:00:00:00:99"),
    "ip_spoof": _frame(0x800, _ip(OTHER, "8.8.8.8", 17, DNS)),
    "ip_spoof_gateway": _frame(0x800, _ip(OURS, "8.8.8.8", 17, DNS)),
    "vlan": _frame(0x8100, struct.pack(">HH", 10, 0x800) + _ip(GUEST, "8.8.8.8", 17, DNS)),
    "vlan_zero": _frame(0x8100, struct.pack(">HH", 0, 0x800) + _ip(GUEST, "8.8.8.8", 17, DNS)),
    "qinq": _frame(0x88A8, struct.pack(">HHHH", 5, 0x8100, 10, 0x800) + _ip(GUEST, "8.8.8.8", 17, DNS)),
    "ipv6": _frame(0x86DD, b"\x60" + bytes(39)),
    "lldp": _frame(0x88CC, bytes(40), target="01:80:c2:00:00:0e"),
    "icmp": _frame(0x800, _ip(GUEST, OURS, 1, b"\x08\x00\xf7\xff\x00\x00\x00\x00")),
    "gre": _frame(0x800, _ip(GUEST, OUTSIDE, 47, bytes(8))),
    "ipip": _frame(0x800, _ip(GUEST, OUTSIDE, 4, _ip(GUEST, "8.8.8.8", 17, DNS))),
    "esp": _frame(0x800, _ip(GUEST, OUTSIDE, 50, bytes(16))),
    "sctp": _frame(0x800, _ip(GUEST, OUTSIDE, 132, bytes(16))),
    "udplite": _frame(0x800, _ip(GUEST, "8.8.8.8", 136, DNS)),
    "raw255": _frame(0x800, _ip(GUEST, OUTSIDE, 255, bytes(8))),
    "lsrr": _frame(0x800, _ip(GUEST, "8.8.8.8", 17, DNS, options=b"\x83\x07\x04" + _packed(OUTSIDE) + b"\x00")),
    "record_route": _frame(0x800, _ip(GUEST, "8.8.8.8", 17, DNS, options=b"\x07\x07\x04" + bytes(5))),
    "arp_spoof_gateway": _frame(0x806, _arp(2, "02:00:00:00:00:01", OURS, GUEST)),
    "arp_other_mac": _frame(0x806, _arp(2, "02:00:00:00:00:99", GUEST, OURS)),
    "arp_other_target": _frame(0x806, _arp(1, "02:00:00:00:00:01", GUEST, OTHER), target="ff:ff:ff:ff:ff:ff"),
    "broadcast": _frame(0x800, _ip(GUEST, "255.255.255.255", 17, _udp(GUEST, "255.255.255.255", 67)), target="ff:ff:ff:ff:ff:ff"),
    "multicast": _frame(0x800, _ip(GUEST, "224.0.0.251", 17, _udp(GUEST, "224.0.0.251", 5353)), target="01:00:5e:00:00:fb"),
}  # fmt: skip


def test_a_well_formed_frame_of_this_kind_does_arrive(wire, gateway):
    vm = wire()
    vm.guest.inject(_frame(0x800, _ip(GUEST, "8.8.8.8", 17, DNS)))
    time.sleep(0.3)
    assert gateway.arrived(1) == [("udp", vm.slot.guest_ip, 10053)]


@pytest.mark.parametrize("kind", BAD_FRAMES)
def test_frames_that_no_honest_vm_sends_arrive_nowhere(wire, gateway, namespace, kind):
    vm = wire()
    before = run(["ip", "-n", namespace.name, "neigh", "show"])
    vm.guest.inject(BAD_FRAMES[kind])
    time.sleep(0.2)
    assert gateway.arrived() == []
    assert run(["ip", "-n", namespace.name, "neigh", "show"]) == before


def _icmp(kind: int, target: str = OUTSIDE) -> bytes:
    body = struct.pack(">BBHHH", kind, 0, 0, 1, 1) + bytes(56)
    return _frame(0x800, _ip(GUEST, target, 1, body[:2] + struct.pack(">H", _checksum(body)) + body[4:]))


@pytest.fixture
def echoes(namespace) -> Iterator[Nflog]:
    made = Nflog(namespace.name, PORTS.echo_group)
    yield made
    made.close()


@pytest.mark.parametrize("sandbox", [False, True])
def test_icmp_is_dropped_and_logged_but_for_a_sandboxs_echo_requests(wire, nflog, echoes, sandbox):
    vm = wire(echo=sandbox)
    kinds = [0, 3, 5, 13, 15, 17, 42, *([] if sandbox else [8])]
    for kind in kinds:
        vm.guest.inject(_icmp(kind))
    assert nflog.prefixes() == [f"{vm.tap} icmp "] * len(kinds)
    assert echoes.prefixes() == []


def test_a_sandboxs_echo_requests_are_handed_to_the_gateway_within_their_rate(wire, nflog, echoes):
    vm = wire(echo=True, limits=Limits(echoes_per_second=2))
    begun = time.monotonic()
    for _ in range(9):
        vm.guest.inject(_icmp(8))
    for _ in range(3):
        vm.guest.inject(_icmp(8, OURS))  # the host's own end isn't answered by the kernel either
    took_s = time.monotonic() - begun
    handed = echoes.prefixes()
    assert 4 <= len(handed) <= 4 + 2 * took_s
    assert set(handed) == {f"{vm.tap} echo "}
    assert nflog.prefixes() == [f"{vm.tap} other "] * (12 - len(handed))
    with netns.inside(vm.guest.name):
        heard = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with heard, contextlib.suppress(TimeoutError):
        heard.settimeout(0.3)
        vm.guest.inject(_icmp(8, OURS))
        while True:
            assert heard.recv(2000)[20] == 3  # a refusal, never an echo's reply


def test_echoes_are_let_in_while_the_vm_runs_and_shut_out_again(wire, wall, nflog, echoes):
    vm = wire()
    wall.change(replace(vm.rules, echo=True))
    vm.guest.inject(_icmp(8))
    assert echoes.prefixes() == [f"{vm.tap} echo "]
    wall.change(vm.rules)
    vm.guest.inject(_icmp(8))
    assert echoes.prefixes() == []
    assert nflog.prefixes() == [f"{vm.tap} icmp "]


def test_fragments_cant_carry_a_flow_past_the_ports(wire, gateway, nflog):
    """Tiny fragments of a datagram to a port that isn't allowed: put together first, then judged."""
    vm = wire()
    whole = _udp(GUEST, OUTSIDE, 9999, b"x" * 24)
    for offset, more, part in ((0, 1, whole[:8]), (1, 0, whole[8:])):
        packet = bytearray(_ip(GUEST, OUTSIDE, 17, part))
        packet[6:8] = struct.pack(">H", (more << 13) | offset)
        packet[10:12] = b"\0\0"
        packet[10:12] = struct.pack(">H", _checksum(bytes(packet[:20])))
        vm.guest.inject(_frame(0x800, bytes(packet)))
    time.sleep(0.2)
    assert gateway.arrived() == []
    assert nflog.prefixes() == [f"{vm.tap} other "]
