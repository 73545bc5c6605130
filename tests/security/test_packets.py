"""Rows 35 to 51: what can be tried below TLS, frame by frame, as root of the VM."""

from __future__ import annotations

import contextlib
import socket
import struct
import time

import pytest

from orchestrator.host.ruleset import GUEST_MAC
from orchestrator.system.process import run
from tests.security.lab.lab import UPLINK, Lab, Listener
from tests.security.lab.machine import Machine
from tests.security.lab.world import ALLOWED, ATTACKER, RANGE
from tests.unit.egress.hellos import hello

NAME = b"allowed.example"
SECRET = b"the secret"
UNHEARD = "198.51.100.77"
"""Where frames go that must die before anything takes note of them: no event names it."""


def checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(
    source: str,
    target: str,
    protocol: int,
    payload: bytes,
    *,
    options: bytes = b"",
    fragment: int = 0,
    more: bool = False,
) -> bytes:
    words = 5 + len(options) // 4
    flags = (0x2000 if more else 0) | fragment // 8
    head = struct.pack("!BBHHHBBH", 0x40 | words, 0, words * 4 + len(payload), 0x1234, flags, 64, protocol, 0)
    head += socket.inet_aton(source) + socket.inet_aton(target) + options
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + payload


def udp(source: str, target: str, port: int, data: bytes = SECRET) -> bytes:
    return ipv4(source, target, 17, struct.pack("!HHHH", 40_000, port, 8 + len(data), 0) + data)


def syn(source: str, target: str, port: int) -> bytes:
    segment = struct.pack("!HHIIBBHHH", 40_001, port, 1, 0, 5 << 4, 2, 64_000, 0, 0)
    pseudo = socket.inet_aton(source) + socket.inet_aton(target) + struct.pack("!BBH", 0, 6, len(segment))
    total = checksum(pseudo + segment)
    return ipv4(source, target, 6, segment[:16] + total.to_bytes(2, "big") + segment[18:])


def ipv6(source: str, target: str, header: int, payload: bytes) -> bytes:
    return (
        struct.pack("!IHBB", 6 << 28, len(payload), header, 255)
        + socket.inet_pton(socket.AF_INET6, source)
        + socket.inet_pton(socket.AF_INET6, target)
        + payload
    )


def arp(operation: int, mac: str, claims: str, target: str) -> bytes:
    return (
        struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
        + bytes.fromhex(mac.replace(":", ""))
        + socket.inet_aton(claims)
        + bytes(6)
        + socket.inet_aton(target)
    )


@pytest.mark.parametrize("port", [443, 80, 8443])
def test_row_35_quic(lab: Lab, attacker: Machine, port: int) -> None:
    seq = lab.seq()
    with lab.nothing_leaves():
        assert any(told(attacker, port) for _ in range(8))  # a client falls back at once and doesn't wait
    lab.blocked(seq, attacker, "quic", event="drop", protocol="udp", orig_dst=ATTACKER, port=port)


def told(machine: Machine, port: int) -> bool:
    """True where a datagram is answered with an ICMP error within a second (the kernel sends about one a second)."""
    with machine.socket(kind=socket.SOCK_DGRAM) as sock:
        sock.settimeout(1)
        sock.connect((ATTACKER, port))
        sock.send(bytes([0xC0]) + SECRET)
        try:
            sock.recv(100)
        except TimeoutError:
            return False
        except OSError:
            return True
    raise AssertionError("answered")


@pytest.mark.parametrize("port", [123, 4444, 853, 5353, 67])
def test_row_36_any_other_udp(lab: Lab, attacker: Machine, port: int) -> None:
    seq = lab.seq()
    with lab.nothing_leaves(), attacker.socket(kind=socket.SOCK_DGRAM) as sock:
        sock.connect((ATTACKER, port))
        sock.send(SECRET)
    lab.blocked(seq, attacker, "other", event="drop", protocol="udp", orig_dst=ATTACKER, port=port)


def test_row_37_icmp(lab: Lab, attacker: Machine) -> None:
    with lab.nothing_leaves():
        for kind in (8, 0, 13, 15, 42):
            body = bytes([kind, 0, 0, 0]) + b"\0\1\0\1" + SECRET
            for target in (ATTACKER, attacker.slot.gateway_ip, UPLINK):
                attacker.frame(ipv4(attacker.ip, target, 1, body[:2] + checksum(body).to_bytes(2, "big") + body[4:]))
        with attacker.socket(kind=socket.SOCK_RAW, proto=socket.IPPROTO_ICMP) as sock:
            sock.settimeout(0.3)
            with contextlib.suppress(TimeoutError):
                while True:
                    assert sock.recv(1000)[20] != 0  # an echo's answer


def test_row_38_ipv6(lab: Lab, attacker: Machine) -> None:
    advert = bytes([134, 0, 0, 0, 64, 0, 255, 255]) + bytes(8)
    prefix = bytes([3, 4, 64, 0xC0]) + b"\xff" * 8 + bytes(4) + socket.inet_pton(socket.AF_INET6, "2001:db8:bad::")
    before = run(["ip", "-n", lab.settings.netns, "-6", "address"])
    with lab.nothing_leaves():
        for target in ("ff02::1", "2001:db8::66", "::ffff:198.51.100.66", "64:ff9b::c633:6442"):
            attacker.frame(ipv6("fe80::1", target, 58, advert + prefix), ether=0x86DD, target="33:33:00:00:00:01")
            attacker.frame(ipv6("fe80::1", target, 17, udp("0.0.0.0", "0.0.0.0", 443)[20:]), ether=0x86DD)
        time.sleep(0.1)
    assert run(["ip", "-n", lab.settings.netns, "-6", "address"]) == before
    assert "2001:db8" not in run(["ip", "-n", lab.settings.netns, "-6", "route"])


def test_row_39_someone_elses_addresses(lab: Lab, attacker: Machine, neighbour: Machine) -> None:
    time.sleep(1.3)  # what an earlier test sent there is counted by now
    seq = lab.seq()
    with lab.nothing_leaves():
        for source in (neighbour.ip, attacker.slot.gateway_ip, ATTACKER, "127.0.0.1", "0.0.0.0", "255.255.255.255"):
            attacker.frame(syn(source, UNHEARD, 80))
            attacker.frame(udp(source, UNHEARD, 4444))
        for mac in ("02:00:00:00:00:03", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"):
            attacker.frame(syn(attacker.ip, UNHEARD, 80), source=mac)
        time.sleep(0.1)
    # none of them got as far as the gateway or the kernel's log, under anybody's name
    assert [event for event in lab.events(seq) if event.orig_dst == UNHEARD] == []
    attacker.frame(syn(attacker.ip, UNHEARD, 80))
    lab.blocked(seq, attacker, "http", orig_dst=UNHEARD)  # the same frame under its own name is heard


def test_row_40_arp_poisoning(lab: Lab, attacker: Machine, neighbour: Machine) -> None:
    own, other = attacker.slot, neighbour.slot
    with lab.nothing_leaves():
        for claims in (own.gateway_ip, other.guest_ip, other.gateway_ip, own.guest_ip, ATTACKER):
            for operation in (1, 2):
                for mac in (GUEST_MAC, "02:00:00:00:00:66"):
                    frame = arp(operation, mac, claims, own.gateway_ip)
                    attacker.frame(frame, ether=0x0806, source=mac, target="ff:ff:ff:ff:ff:ff")
        time.sleep(0.1)
    known = run(["ip", "-n", lab.settings.netns, "neighbour"])
    assert "02:00:00:00:00:66" not in known
    for machine in (attacker, neighbour):
        (line,) = (line for line in known.splitlines() if line.startswith(machine.ip + " "))
        assert f"dev {machine.tap} lladdr {GUEST_MAC} PERMANENT" in line
    assert neighbour.get(ALLOWED, "allowed.example").startswith(ALLOWED.encode())


def test_row_41_vm_to_vm(lab: Lab, attacker: Machine, neighbour: Machine) -> None:
    traps = [Listener(neighbour.namespace, "0.0.0.0", port) for port in (22, 443, 8080, 10443)]
    try:
        with lab.nothing_leaves():
            for port in (22, 443, 8080, 10443):
                for address in (neighbour.ip, neighbour.slot.gateway_ip):
                    assert attacker.refused(address, hello(NAME), port)
            attacker.frame(syn(attacker.ip, neighbour.ip, 8080))
            attacker.frame(udp(attacker.ip, neighbour.ip, 8080))
            time.sleep(0.1)
        assert [trap.got for trap in traps] == [[], [], [], []]
    finally:
        for trap in traps:
            trap.close()


def test_row_42_vlan_tags(lab: Lab, attacker: Machine) -> None:
    time.sleep(1.3)  # what an earlier test sent there is counted by now
    seq = lab.seq()
    with lab.nothing_leaves():
        for packet in (syn(attacker.ip, UNHEARD, 80), udp(attacker.ip, UNHEARD, 443), udp(attacker.ip, UNHEARD, 4444)):
            for tag in (0, 1, 10, 0xE000):
                attacker.frame(struct.pack("!HH", tag, 0x0800) + packet, ether=0x8100)
            attacker.frame(struct.pack("!HHHH", 1, 0x8100, 2, 0x0800) + packet, ether=0x88A8)
            attacker.frame(packet, ether=0x88CC)
            attacker.frame(packet, ether=0x8847)
        time.sleep(0.1)
    assert [event for event in lab.events(seq) if event.orig_dst == UNHEARD] == []


def test_row_43_fragments(lab: Lab, attacker: Machine) -> None:
    whole = udp(attacker.ip, ATTACKER, 4444, bytes(64))[20:]
    tcp = syn(attacker.ip, ATTACKER, 4444)[20:]
    with lab.nothing_leaves():
        attacker.frame(ipv4(attacker.ip, ATTACKER, 17, whole[:16], more=True))
        attacker.frame(ipv4(attacker.ip, ATTACKER, 17, whole[16:], fragment=16))
        attacker.frame(ipv4(attacker.ip, ATTACKER, 17, whole[16:], fragment=24))  # one without a beginning
        attacker.frame(ipv4(attacker.ip, ATTACKER, 6, tcp[:8], more=True))  # ports here, flags in the next
        attacker.frame(ipv4(attacker.ip, ATTACKER, 6, tcp[8:], fragment=8))
        attacker.frame(ipv4(attacker.ip, ATTACKER, 6, syn(attacker.ip, ATTACKER, 443)[20:36], more=True))
        attacker.frame(ipv4(attacker.ip, ATTACKER, 6, tcp[:16], fragment=8))  # overlaps what came before
        time.sleep(0.2)


@pytest.mark.parametrize("protocol", [0, 4, 41, 47, 50, 51, 89, 103, 112, 132, 136, 255])
def test_row_44_other_protocols(lab: Lab, attacker: Machine, protocol: int) -> None:
    seq = lab.seq()
    with lab.nothing_leaves():
        for inner in (SECRET, udp(attacker.ip, ATTACKER, 53), syn(attacker.ip, ATTACKER, 443)):
            attacker.frame(ipv4(attacker.ip, ATTACKER, protocol, inner))
            attacker.frame(ipv4(attacker.ip, attacker.slot.gateway_ip, protocol, inner))
    assert [event for event in lab.events(seq) if event.event == "open"] == []


@pytest.mark.parametrize("option", [131, 137, 7, 68, 148])
def test_row_45_ip_options(lab: Lab, attacker: Machine, option: int) -> None:
    seq = lab.seq()
    options = bytes([option, 11, 4]) + socket.inet_aton(ATTACKER) * 2 + b"\0"
    with lab.nothing_leaves():
        attacker.frame(ipv4(attacker.ip, ALLOWED, 6, syn(attacker.ip, ALLOWED, 443)[20:], options=options))
        attacker.frame(ipv4(attacker.ip, ATTACKER, 17, udp(attacker.ip, ATTACKER, 53)[20:], options=options))
        time.sleep(0.05)
    assert [event for event in lab.events(seq) if event.event in ("open", "dns")] == []


def test_row_46_broadcast_multicast_and_dhcp(lab: Lab, attacker: Machine) -> None:
    with lab.nothing_leaves():
        for target, mac, port in (
            ("255.255.255.255", "ff:ff:ff:ff:ff:ff", 67),
            ("224.0.0.251", "01:00:5e:00:00:fb", 5353),
            ("224.0.0.252", "01:00:5e:00:00:fc", 5355),
            ("239.255.255.250", "01:00:5e:7f:ff:fa", 1900),
            ("224.0.0.1", "01:00:5e:00:00:01", 443),
        ):
            attacker.frame(udp(attacker.ip, target, port), target=mac)
            attacker.frame(ipv4(attacker.ip, target, 2, b"\x16\0\0\0" + socket.inet_aton(target)), target=mac)
        time.sleep(0.1)


@pytest.mark.parametrize("port", [10443, 10022, 10053])
def test_row_47_the_gateways_own_listeners(lab: Lab, attacker: Machine, port: int) -> None:
    seq = lab.seq()
    with lab.nothing_leaves():
        for address in (attacker.slot.gateway_ip, UPLINK, ALLOWED):
            assert attacker.refused(address, hello(NAME), port)
    lab.blocked(seq, attacker, "other", event="drop", port=port)
    assert [event for event in lab.events(seq) if event.event == "open"] == []


def test_row_47_the_gateway_as_its_own_upstream(lab: Lab, attacker: Machine) -> None:
    trap = Listener(lab.settings.uplink_netns, UPLINK, 443)
    try:
        seq = lab.seq()
        with lab.nothing_leaves():
            assert attacker.refused(ALLOWED, hello(b"to-host.example"))
            assert attacker.refused(UPLINK, hello(NAME))
            assert attacker.refused(attacker.slot.gateway_ip, hello(NAME))
        lab.blocked(seq, attacker, "floor_own_address", host="to-host.example")
        lab.blocked(seq, attacker, "floor_own_address", orig_dst=UPLINK)
        lab.blocked(seq, attacker, "floor_own_address", orig_dst=attacker.slot.gateway_ip)
        assert trap.got == []
    finally:
        trap.close()


def test_row_48_the_hosts_services(lab: Lab, attacker: Machine) -> None:
    ports = (22, 80, 2375, 8470, 9090)
    places = ((lab.settings.netns, attacker.slot.gateway_ip), (lab.settings.uplink_netns, UPLINK))
    traps = [Listener(namespace, address, port) for namespace, address in places for port in ports]
    try:
        with lab.nothing_leaves():
            for _, address in places:
                for port in ports:
                    assert attacker.refused(address, SECRET, port)
            for address in ("127.0.0.1", "0.0.0.0"):
                attacker.frame(syn(attacker.ip, address, 8470))
            time.sleep(0.1)
        assert not any(trap.got for trap in traps)
    finally:
        for trap in traps:
            trap.close()


@pytest.mark.parametrize("port", [80, 443])
def test_row_49_the_metadata_service(lab: Lab, attacker: Machine, port: int) -> None:
    run(["ip", "-n", lab.settings.uplink_netns, "address", "add", "169.254.169.254/32", "dev", "lo"])
    trap = Listener(lab.settings.uplink_netns, "169.254.169.254", port)
    try:
        seq = lab.seq()
        with lab.nothing_leaves():
            assert attacker.refused("169.254.169.254", hello(NAME) if port == 443 else b"GET / HTTP/1.0\r\n\r\n", port)
        lab.blocked(seq, attacker, "floor_metadata" if port == 443 else "http", orig_dst="169.254.169.254")
        assert trap.got == []
    finally:
        trap.close()
        run(["ip", "-n", lab.settings.uplink_netns, "address", "del", "169.254.169.254/32", "dev", "lo"])


def test_row_50_plain_http(lab: Lab, attacker: Machine) -> None:
    seq = lab.seq()
    with lab.nothing_leaves():
        assert attacker.refused(ATTACKER, b"GET / HTTP/1.1\r\nHost: allowed.example\r\n\r\n", 80)
        assert attacker.refused(ALLOWED, b"GET / HTTP/1.1\r\nHost: allowed.example\r\n\r\n", 80)
    event = lab.blocked(seq, attacker, "http", orig_dst=ATTACKER)
    assert (event.event, event.protocol, event.port) == ("drop", "tcp", 80)


def test_row_51_ssh(lab: Lab, attacker: Machine) -> None:
    seq = lab.seq()
    with lab.nothing_leaves():
        assert attacker.refused(ATTACKER, b"SSH-2.0-x\r\n", 22)
        assert attacker.refused(ALLOWED, b"SSH-2.0-x\r\n", 443)
    lab.blocked(seq, attacker, "ssh", event="drop", orig_dst=ATTACKER, port=22)
    lab.blocked(seq, attacker, "not_tls", event="open", orig_dst=ALLOWED)
    assert attacker.send(RANGE, b"SSH-2.0-client\r\n", 22).startswith(b"SSH-2.0-lab")
    event = lab.wait_event(seq, lambda event: event.event == "close" and event.port == 22)
    assert (event.verdict, event.rule, event.protocol, event.resolved) == ("allowed", "test#range", "tcp", RANGE)
    assert event.bytes_up == len(b"SSH-2.0-client\r\n")
