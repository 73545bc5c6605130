"""Echo packets: what goes out has nothing of the VM in it, what goes back to the VM is its own."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.egress.echo import SIZE, Echo, checksum, parse_echo, parse_reply, prohibited, reply, request

VM, SITE = "10.201.0.3", "198.18.0.7"


def ipv4(source: str, target: str, message: bytes, **fields: int) -> bytes:
    head = struct.pack(
        "!BBHHHBBH",
        fields.get("first", 0x45),
        0,
        fields.get("size", 20 + len(message)),
        1,
        fields.get("fragment", 0),
        fields.get("ttl", 64),
        fields.get("protocol", 1),
        0,
    )
    return head + socket.inet_aton(source) + socket.inet_aton(target) + message


def icmp(kind: int = 8, code: int = 0, ident: int = 77, number: int = 3, data: bytes = bytes(56)) -> bytes:
    rest = struct.pack("!HH", ident, number) + data
    return struct.pack("!BBH", kind, code, checksum(bytes((kind, code, 0, 0)) + rest)) + rest


@given(st.binary(max_size=1472), st.integers(0, 65_535), st.integers(0, 65_535))
def test_an_echo_is_read_and_the_vm_gets_its_own_bytes_back(data: bytes, ident: int, number: int) -> None:
    packet = ipv4(VM, SITE, icmp(ident=ident, number=number, data=data))
    echo = parse_echo(packet)
    assert echo == Echo(VM, SITE, ident, packet)
    answer = reply(echo)
    assert (answer[9], socket.inet_ntoa(answer[12:16]), socket.inet_ntoa(answer[16:20])) == (1, SITE, VM)
    assert checksum(answer[20:]) == 0
    assert answer[20:22] == b"\0\0"
    assert answer[24:] == packet[24:]


def test_what_goes_out_is_the_same_whatever_the_vm_sent() -> None:
    message = request(0x1234, 0x5678)
    assert len(message) == SIZE
    assert message[:2] == b"\x08\0"
    assert message[4:] == b"\x12\x34\x56\x78" + bytes(56)
    assert checksum(message) == 0


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        bytes(28),
        ipv4(VM, SITE, icmp(kind=0)),
        ipv4(VM, SITE, icmp(kind=5)),
        ipv4(VM, SITE, icmp(kind=13)),
        ipv4(VM, SITE, icmp(code=1)),
        ipv4(VM, SITE, icmp()[:-1] + b"x"),  # a wrong checksum
        ipv4(VM, SITE, icmp(), fragment=0x2000),
        ipv4(VM, SITE, icmp(), fragment=3),
        ipv4(VM, SITE, icmp(), protocol=17),
        ipv4(VM, SITE, icmp(), size=40),
        ipv4(VM, SITE, icmp()) + b"more",
        ipv4(VM, SITE, bytes(4) + icmp(), first=0x46),
        ipv4(VM, SITE, icmp(), first=0x65),
        ipv4(VM, SITE, b"\x08\0\0\0"),
    ],
)
def test_anything_but_one_whole_echo_request_is_refused(packet: bytes) -> None:
    assert parse_echo(packet) is None


@given(st.binary(max_size=100))
def test_no_packet_upsets_the_readers(packet: bytes) -> None:
    parse_echo(packet)
    parse_reply(packet)


def test_an_answer_is_known_by_all_of_its_bytes() -> None:
    good = ipv4(SITE, VM, icmp(kind=0, ident=9, number=4))
    assert parse_reply(good) == (SITE, 9, 4)
    for bad in (
        good[:-1],
        ipv4(SITE, VM, icmp(kind=0, data=b"x" * 56)),
        ipv4(SITE, VM, icmp(kind=0, data=bytes(57))),
        ipv4(SITE, VM, icmp(kind=3)),
        ipv4(SITE, VM, icmp(kind=8)),
        ipv4(SITE, VM, icmp(kind=0)[:-1] + b"\1"),
        b"",
    ):
        assert parse_reply(bad) is None


def test_a_refusal_names_the_echo() -> None:
    packet = ipv4(VM, SITE, icmp(data=b"payload"))
    echo = parse_echo(packet)
    assert echo is not None
    answer = prohibited(echo)
    assert answer[20:22] == bytes((3, 13))
    assert checksum(answer[20:]) == 0
    assert answer[28:] == packet[:28]
