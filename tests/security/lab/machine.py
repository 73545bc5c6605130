"""One attacker: root in a network namespace that stands for a VM, on a link behind the product's own wall."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator

import dns.message
import dns.query

from orchestrator.host.ruleset import GUEST_MAC
from orchestrator.host.slots import Slot
from orchestrator.system import netns

TIMEOUT_S = 30.0


class Machine:
    """``namespace`` is where the attacker lives, ``tap`` our end of its link."""

    def __init__(self, label: str, namespace: str, tap: str, runner: str, slot: Slot) -> None:
        self.label = label
        self.namespace = namespace
        self.tap = tap
        self.runner = runner
        self.slot = slot
        self._wire: socket.socket | None = None

    @property
    def ip(self) -> str:
        return self.slot.guest_ip

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, proto: int = 0) -> socket.socket:
        with netns.inside(self.namespace):
            sock = socket.socket(family, kind, proto)
        sock.settimeout(TIMEOUT_S)
        return sock

    def tcp(self, address: str, port: int = 443) -> socket.socket:
        sock = self.socket()
        try:
            sock.connect((address, port))
        except BaseException:
            sock.close()
            raise
        return sock

    def send(self, address: str, data: bytes, port: int = 443) -> bytes:
        """What comes back for ``data``; raises ConnectionError where it is a reset."""
        with self.tcp(address, port) as sock:
            if data:
                sock.sendall(data)
            return sock.recv(65_536)

    def refused(self, address: str, data: bytes = b"", port: int = 443) -> bool:
        """True where a connection with ``data`` ends in a reset, at once, and with nothing received."""
        try:
            return self.send(address, data, port) == b"" and False
        except ConnectionError:
            return True

    @contextlib.contextmanager
    def tls(self, address: str, name: str | None, *, ca: str | None = None, port: int = 443) -> Iterator[ssl.SSLSocket]:
        """A TLS session with SNI ``name``, its certificate checked against ``ca`` where that is given."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = ca is not None and name is not None
        if ca is None:
            context.verify_mode = ssl.CERT_NONE
        else:
            context.load_verify_locations(ca)
        with self.tcp(address, port) as raw, context.wrap_socket(raw, server_hostname=name) as sock:
            yield sock

    def get(self, address: str, name: str | None, *, ca: str | None = None, host: str = "", port: int = 443) -> bytes:
        """The first line that a site answers to ``GET``, or raises."""
        with self.tls(address, name, ca=ca, port=port) as sock:
            sock.sendall(f"GET {host or name}\n".encode())
            return sock.recv(65_536)

    def dns(self, query: dns.message.Message | bytes, server: str = "203.0.113.53", *, tcp: bool = False) -> bytes:
        """The raw answer to ``query``."""
        wire = query if isinstance(query, bytes) else query.to_wire()
        if tcp:
            with self.tcp(server, 53) as sock:
                sock.sendall(len(wire).to_bytes(2, "big") + wire)
                size = int.from_bytes(_exactly(sock, 2), "big")
                return _exactly(sock, size)
        with self.socket(kind=socket.SOCK_DGRAM) as sock:
            sock.connect((server, 53))
            sock.send(wire)
            return sock.recv(65_536)

    def lookup(self, name: str, kind: str = "A", server: str = "203.0.113.53") -> dns.message.Message:
        return dns.message.from_wire(self.dns(dns.message.make_query(name, kind), server))

    def address_of(self, name: str) -> str:
        """The address that the resolver gives for ``name``."""
        return next(iter(self.lookup(name).answer[0])).to_text()

    def frame(self, payload: bytes, *, ether: int = 0x0800, source: str = GUEST_MAC, target: str = "") -> None:
        """Put one raw Ethernet frame on the wire."""
        if self._wire is None:  # one for all: the kernel takes ten milliseconds to close one
            self._wire = self.socket(socket.AF_PACKET, socket.SOCK_RAW)
            self._wire.bind(("eth0", 0))
        self._wire.send(_mac(target or "02:00:00:00:00:02") + _mac(source) + ether.to_bytes(2, "big") + payload)

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise ConnectionError("ended early")
        data += piece
    return data
