from __future__ import annotations

import socket
import struct

import pytest

from orchestrator.egress.nflog import Drop, parse


def attribute(kind: int, value: bytes) -> bytes:
    data = struct.pack("=HH", 4 + len(value), kind) + value
    return data + bytes(-len(data) % 4)


def packet(proto: int, address: str, port: int, *, offset: int = 0) -> bytes:
    header = struct.pack("!BBHHHBBH", 0x45, 0, 40, 1, offset, 64, proto, 0)
    return header + socket.inet_aton("10.201.0.3") + socket.inet_aton(address) + struct.pack("!HH", 40000, port)


def message(prefix: bytes, payload: bytes, seq: int = 1) -> bytes:
    body = struct.pack("!BBH", 2, 0, 5) + attribute(10, prefix + b"\0") + attribute(9, payload)
    body += attribute(12, struct.pack("!I", seq))
    return struct.pack("=IHHII", 16 + len(body), 4 << 8, 0, 0, 0) + body


TAP = "ickekrnevmn9t95"


@pytest.mark.parametrize(
    ("proto", "name", "port"), [(6, "tcp", 80), (17, "udp", 443), (1, "icmp", 0), (47, "other", 0)]
)
def test_a_message_is_a_drop(proto: int, name: str, port: int) -> None:
    (drop,) = parse(message(f"{TAP} http ".encode(), packet(proto, "198.51.100.66", port), 9))
    assert drop == Drop(TAP, "http", name, "198.51.100.66", port, 9)  # type: ignore[arg-type]


def test_several_messages_in_one_read() -> None:
    one = message(f"{TAP} quic ".encode(), packet(17, "1.1.1.1", 443), 1)
    two = message(f"{TAP} other ".encode(), packet(17, "1.1.1.2", 123), 2)
    assert [(drop.why, drop.port, drop.seq) for drop in parse(one + two)] == [("quic", 443, 1), ("other", 123, 2)]


def test_a_later_fragment_has_no_port() -> None:
    (drop,) = parse(message(f"{TAP} other ".encode(), packet(17, "1.1.1.1", 4444, offset=3)))
    assert (drop.protocol, drop.port) == ("udp", 0)


@pytest.mark.parametrize("payload", [b"", b"\x45", b"\x60" + bytes(40), bytes(20)])
def test_packets_that_cannot_be_read_are_still_drops(payload: bytes) -> None:
    (drop,) = parse(message(f"{TAP} other ".encode(), payload))
    assert (drop.tap, drop.protocol, drop.port) == (TAP, "other", 0)


@pytest.mark.parametrize("data", [b"", b"\0" * 16, struct.pack("=IHHII", 4000, 4 << 8, 0, 0, 0), b"\xff" * 40])
def test_other_messages_are_passed_over(data: bytes) -> None:
    assert list(parse(data)) == []


def test_a_prefix_without_a_reason() -> None:
    (drop,) = parse(message(TAP.encode(), packet(6, "1.1.1.1", 25)))
    assert (drop.tap, drop.why) == (TAP, "other")
