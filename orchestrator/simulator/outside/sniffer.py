"""Every packet that reaches the world's end of the wire and isn't TCP, recorded from the wire itself.

A socket sees only what the kernel delivers to it; a packet socket sees what arrived, whoever it was for.
"""

from __future__ import annotations

import ctypes
import socket
import struct

from orchestrator.simulator.outside.names import question_of
from orchestrator.simulator.outside.records import Received, Recorder

_ETH_P_ALL = 0x0003
_ETH_P_IP = 0x0800
_ETH_P_IPV6 = 0x86DD
_OUTGOING = 4
_SO_ATTACH_FILTER = 26
_FILTER = (
    # Protocol of the frame (ancillary data); anything but IPv4 passes; IPv4 passes unless it is TCP.
    (0x28, 0, 0, 0xFFFFF000),
    (0x15, 0, 2, _ETH_P_IP),
    (0x30, 0, 0, 9),
    (0x15, 1, 0, 6),
    (0x06, 0, 0, 0x40000),
    (0x06, 0, 0, 0),
)


def open_sniffer(interface: str) -> socket.socket:
    """A packet socket on ``interface`` of the calling thread's namespace."""
    sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
    program = b"".join(struct.pack("HBBI", *line) for line in _FILTER)
    buffer = ctypes.create_string_buffer(program, len(program))
    sniffer.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(_FILTER), ctypes.addressof(buffer)))
    sniffer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    sniffer.bind((interface, _ETH_P_ALL))
    return sniffer


def drain(sniffer: socket.socket, recorder: Recorder) -> None:
    """Record what waits on ``sniffer``."""
    while True:
        try:
            packet, where = sniffer.recvfrom(65_536)
        except (BlockingIOError, OSError):
            return
        if where[2] == _OUTGOING:
            continue
        item = received_of(where[1], packet)
        if item is not None:
            recorder.add(item)


def received_of(ethertype: int, packet: bytes) -> Received | None:
    """``packet`` (from its IP header on) as a record; None for the wire's own housekeeping."""
    if ethertype == _ETH_P_IPV6:
        return _ipv6(packet)
    if ethertype != _ETH_P_IP or len(packet) < 20:
        return None
    protocol = packet[9]
    source, address = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
    body = packet[(packet[0] & 15) * 4 : int.from_bytes(packet[2:4], "big")]
    fragment = int.from_bytes(packet[6:8], "big") & 0x1FFF
    if protocol != 17 or len(body) < 8 or fragment:
        name = "icmp" if protocol == 1 else f"ip-{protocol}"
        return Received(name, source, 0, address, 0, raw=body, bytes_in=len(packet))
    source_port, port = struct.unpack_from("!HH", body)
    data = body[8:]
    item = Received("udp", source, source_port, address, port, raw=data, bytes_in=len(data))
    if port == 53:
        item.proto = "dns"
        item.name, item.kind = question_of(data)
    return item


def _ipv6(packet: bytes) -> Received | None:
    if len(packet) < 40:
        return None
    source = socket.inet_ntop(socket.AF_INET6, packet[8:24])
    if source.startswith("fe80:") or source == "::":
        # Neighbour discovery and the like, which every interface does by itself.
        return None
    address = socket.inet_ntop(socket.AF_INET6, packet[24:40])
    return Received(f"ip-{packet[6]}", source, 0, address, 0, raw=packet[40:], bytes_in=len(packet))
