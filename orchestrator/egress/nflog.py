"""Reads what the kernel dropped (netfilter's NFLOG) and makes events of it.

A rule logs with the prefix ``<tap> <why> ``; the first bytes of the packet give protocol, destination and port.  Where the
kernel had no room for a message, or numbers are missing in its sequence, a ``lost`` event says how many.
Sources: linux/netfilter/nfnetlink_log.h, linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Iterator

import msgspec

from orchestrator.core.flow import Protocol
from orchestrator.core.policy import Decision
from orchestrator.egress.links import Links
from orchestrator.egress.recorder import Recorder

NETLINK_NETFILTER = 12
_LOG_PACKET = 4 << 8
_LOG_CONFIG = 4 << 8 | 1
_REQUEST_ACK = 1 | 4
_CMD, _MODE, _TIMEOUT, _FLAGS = 1, 2, 4, 6
_CMD_BIND = 1
_COPY_PACKET = 2
_FLAG_SEQ = 1
_PAYLOAD, _PREFIX, _SEQ = 9, 10, 12
_SNAP = 128
_GATHER_CS = 10
"""Hundredths of a second that the kernel gathers messages before it hands them over."""
_RECEIVE_BUFFER = 8 << 20
_SO_RCVBUFFORCE = 33

_PROTOCOLS: dict[int, Protocol] = {1: "icmp", 6: "tcp", 17: "udp"}


class Drop(msgspec.Struct, frozen=True):
    """One packet that the kernel didn't let pass.  ``seq`` counts the group's messages."""

    tap: str
    why: str
    protocol: Protocol
    address: str
    port: int
    seq: int


class Message(msgspec.Struct, frozen=True):
    """One log message: the two words of its prefix, and the packet's first bytes."""

    tap: str
    why: str
    payload: bytes
    seq: int


class DropReader:
    """Turns the messages of ``sock`` into events."""

    def __init__(self, sock: socket.socket, *, links: Links, recorder: Recorder) -> None:
        self._sock = sock
        self._links = links
        self._recorder = recorder
        self._next: int | None = None
        self._overrun = False
        self._told = 0
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._read)

    def close(self) -> None:
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()

    def flush(self) -> None:
        """Say that something was lost where no later message has said how much.  To be called each second."""
        if self._overrun:
            self._overrun = False
            self._told += 1
            self._lost(1)

    def _read(self) -> None:
        for _ in range(64):
            try:
                data = self._sock.recv(262_144)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._overrun = True
                # libuv stops to watch a socket that has an error pending.
                self._loop.remove_reader(self._sock.fileno())
                self._loop.add_reader(self._sock.fileno(), self._read)
                continue
            for drop in parse(data):
                self._take(drop)

    def _take(self, drop: Drop) -> None:
        if self._next is not None and drop.seq != self._next:
            missing = ((drop.seq - self._next) & 0xFFFFFFFF) - self._told
            self._told = 0
            self._overrun = False
            if missing > 0:
                self._lost(missing)
        self._next = (drop.seq + 1) & 0xFFFFFFFF
        state = self._links.of_tap(drop.tap)
        event = self._recorder.event(
            "drop", state, drop.protocol, Decision("blocked", drop.why), orig_dst=drop.address, port=drop.port
        )
        per_second = state.link.limits.events_per_second if state else 100
        self._recorder.limited(drop.tap if state else "", event, per_second=per_second)

    def _lost(self, count: int) -> None:
        decision = Decision("blocked", "nflog_overrun")
        self._recorder.always(self._recorder.event("lost", None, "other", decision, count=count))


def open_nflog(group: int, *, snap: int = _SNAP) -> socket.socket:
    """A non-blocking netlink socket that gets the messages of ``group`` in the present namespace.

    Of each packet it gets the first ``snap`` bytes, or fewer where the rule says so.
    """
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    try:
        sock.bind((0, 0))
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        sock.settimeout(5)
        _configure(sock, group, _CMD, struct.pack("B", _CMD_BIND))
        _configure(sock, group, _MODE, struct.pack("!IBx", snap, _COPY_PACKET))
        _configure(sock, group, _TIMEOUT, struct.pack("!I", _GATHER_CS))
        _configure(sock, group, _FLAGS, struct.pack("!H", _FLAG_SEQ))
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _configure(sock: socket.socket, group: int, kind: int, value: bytes) -> None:
    attribute = struct.pack("=HH", 4 + len(value), kind) + value
    attribute += bytes(-len(attribute) % 4)
    body = struct.pack("!BBH", socket.AF_UNSPEC, 0, group) + attribute
    sock.send(struct.pack("=IHHII", 16 + len(body), _LOG_CONFIG, _REQUEST_ACK, 1, 0) + body)
    while True:
        reply = sock.recv(65_536)
        if struct.unpack_from("=H", reply, 4)[0] != 2:  # not NLMSG_ERROR: a packet of a group bound before
            continue
        code = -struct.unpack_from("=i", reply, 16)[0]
        if code:
            raise OSError(code, f"NFLOG group {group}: {errno.errorcode.get(code, code)}")
        return


def parse(data: bytes) -> Iterator[Drop]:
    """The drops in ``data``, one read of the socket.  Messages of other kinds are passed over."""
    for message in messages(data):
        protocol, address, port = _packet(message.payload)
        yield Drop(message.tap, message.why, protocol, address, port, message.seq)


def messages(data: bytes) -> Iterator[Message]:
    """What the kernel logged in ``data``, one read of the socket."""
    at = 0
    while at + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, at)
        if length < 16 or at + length > len(data):
            return
        if kind == _LOG_PACKET:
            yield _message(data[at + 20 : at + length])
        at += length + (-length % 4)


def _message(attributes: bytes) -> Message:
    prefix, payload, seq = b"", b"", 0
    at = 0
    while at + 4 <= len(attributes):
        length, kind = struct.unpack_from("=HH", attributes, at)
        if length < 4:
            break
        value = attributes[at + 4 : at + length]
        match kind & 0x3FFF:
            case 10:  # _PREFIX
                prefix = value
            case 9:  # _PAYLOAD
                payload = value
            case 12:  # _SEQ
                seq = int.from_bytes(value, "big")
        at += length + (-length % 4)
    tap, _, why = prefix.rstrip(b"\0 ").decode("ascii", "backslashreplace").partition(" ")
    return Message(tap, why or "other", payload, seq)


def _packet(packet: bytes) -> tuple[Protocol, str, int]:
    """Protocol, destination and port of an IP packet's first bytes; ``other`` and nothing where they can't be read."""
    if len(packet) < 20 or packet[0] >> 4 != 4:
        return "other", "", 0
    protocol = _PROTOCOLS.get(packet[9], "other")
    at = (packet[0] & 0x0F) * 4
    first = int.from_bytes(packet[6:8], "big") & 0x1FFF == 0
    port = 0
    if protocol in ("tcp", "udp") and first and len(packet) >= at + 4:
        port = int.from_bytes(packet[at + 2 : at + 4], "big")
    return protocol, socket.inet_ntoa(packet[16:20]), port
