"""ICMP echo packets, read and made.  No I/O: `orchestrator.egress.echo_relay` has the sockets.

What goes out in place of a VM's echo has nothing of the VM in it: `request` is the same 64 bytes whatever the VM sent, but
for a number of ours.  So an echo carries no data out, only the fact that one was sent; and the answer brings none in:
`reply` gives the VM its own bytes back.  Sources: RFC 792, RFC 1071.
"""

from __future__ import annotations

import socket
import struct

import msgspec

SIZE = 64
"""Bytes of ICMP that go out, and come back, for one echo: what ``ping`` sends unless it is told otherwise."""

_REPLY, _UNREACHABLE, _REQUEST = 0, 3, 8
_PROHIBITED = 13
"""Communication administratively prohibited (RFC 1812, 5.2.7.1)."""
_PAYLOAD = bytes(SIZE - 8)
_TTL = 64
_FRAGMENT = 0x3FFF


class Echo(msgspec.Struct, frozen=True):
    """A VM's echo request.  ``packet`` is the whole of it, its IP header (20 bytes) included."""

    source: str
    target: str
    ident: int
    packet: bytes


def parse_echo(packet: bytes) -> Echo | None:
    """The echo request that ``packet`` (IPv4) is; None where it isn't exactly one, whole and with its checksum right."""
    if len(packet) < 28 or packet[0] != 0x45 or packet[9] != socket.IPPROTO_ICMP:
        return None
    size = packet[2] << 8 | packet[3]
    if size != len(packet) or (packet[6] << 8 | packet[7]) & _FRAGMENT:
        return None
    if packet[20] != _REQUEST or packet[21] or checksum(packet[20:]):
        return None
    source, target = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
    return Echo(source, target, packet[24] << 8 | packet[25], packet)


def request(ident: int, number: int) -> bytes:
    """The ICMP message that goes out."""
    return _message(_REQUEST, 0, struct.pack("!HH", ident, number) + _PAYLOAD)


def parse_reply(packet: bytes) -> tuple[str, int, int] | None:
    """(source, ident, number) of the answer to a `request`, an IPv4 packet; None for any other."""
    if len(packet) < 20:
        return None
    at = (packet[0] & 0x0F) * 4
    message = packet[at:]
    if len(message) != SIZE or message[:2] != bytes((_REPLY, 0)) or message[8:] != _PAYLOAD or checksum(message):
        return None
    ident, number = struct.unpack_from("!HH", message, 4)
    return socket.inet_ntoa(packet[12:16]), ident, number


def reply(echo: Echo) -> bytes:
    """The IPv4 packet that answers ``echo``, as its target would: all of the VM's own bytes."""
    return _packet(echo, _message(_REPLY, 0, echo.packet[24:]))


def prohibited(echo: Echo) -> bytes:
    """The IPv4 packet that says that ``echo`` may not go there."""
    return _packet(echo, _message(_UNREACHABLE, _PROHIBITED, bytes(4) + echo.packet[:28]))


def checksum(data: bytes) -> int:
    """The Internet checksum of ``data``; zero where it holds its own."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) & ~1]))
    if len(data) % 2:
        total += data[-1] << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _message(kind: int, code: int, rest: bytes) -> bytes:
    return struct.pack("!BBH", kind, code, checksum(bytes((kind, code, 0, 0)) + rest)) + rest


def _packet(echo: Echo, message: bytes) -> bytes:
    """``message`` from the target of ``echo`` to the VM; the kernel fills in the header's checksum and identification."""
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(message), 0, 0, _TTL, socket.IPPROTO_ICMP, 0)
    return head + socket.inet_aton(echo.target) + socket.inet_aton(echo.source) + message
