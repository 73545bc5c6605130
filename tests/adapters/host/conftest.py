"""A VM's link with a real tap, and in place of QEMU a whole network stack of a namespace of its own behind it."""

from __future__ import annotations

import fcntl
import os
import secrets
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from orchestrator.core.link import Limits
from orchestrator.host.links import Links, make_namespace
from orchestrator.host.nft import LibNft, NamespaceThread
from orchestrator.host.ruleset import GUEST_MAC, Listeners, VmRules
from orchestrator.host.slots import Slot, slot_at
from orchestrator.host.wall import Wall
from orchestrator.system import netns
from orchestrator.system.process import run

PORTS = Listeners(tls=10443, tcp=10022, dns=10053, nflog_group=5, echo_group=6)
RANGE = "10.201.0.0/16"
_TUNSETIFF = 0x400454CA
_TAP_FLAGS = 0x0002 | 0x1000 | 0x4000


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("real") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root for network namespaces"))


def new_name() -> str:
    return "icdt-" + secrets.token_hex(3)


def new_tap() -> str:
    return "ic" + "".join(secrets.choice("0123456789abcdefghjkmnpqrstvwxyz") for _ in range(13))


def open_tap(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP_FLAGS))
    os.set_blocking(descriptor, False)
    return descriptor


class Guest:
    """Behind ``tap`` (whose other end it holds, as QEMU would) a namespace ``name`` with a stack of its own."""

    def __init__(self, tap: str, slot: Slot) -> None:
        self.name, self.tap, self.slot = new_name(), tap, slot
        self.theirs = open_tap(tap)  # before the tap is moved: the descriptor stays with it
        netns.create(self.name)
        with netns.inside(self.name):
            self.ours = open_tap("eth0")
        self._ended = threading.Event()
        self._pump = threading.Thread(target=self._copy, daemon=True)
        self._pump.start()
        run(["ip", "-n", self.name, "link", "set", "eth0", "address", GUEST_MAC])
        run(["ip", "-n", self.name, "addr", "add", f"{slot.guest_ip}/31", "dev", "eth0"])
        run(["ip", "-n", self.name, "link", "set", "eth0", "up"])
        run(["ip", "-n", self.name, "route", "add", "default", "via", slot.gateway_ip])

    def _copy(self) -> None:
        pairs = {self.theirs: self.ours, self.ours: self.theirs}
        while not self._ended.is_set():
            for ready in select.select(list(pairs), [], [], 0.1)[0]:
                try:
                    os.write(pairs[ready], os.read(ready, 65536))
                except OSError:
                    continue  # a link that is down, or a full queue: a frame lost

    def inject(self, frame: bytes) -> None:
        """A frame of the guest's own making, past its stack."""
        os.write(self.theirs, bytes(10) + frame)

    def tcp(self, address: str, port: int, *, timeout_s: float = 30.0) -> str:
        """``open``, ``reset``, ``refused`` by ICMP, or ``silence``."""
        with netns.inside(self.name):
            link = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        with link:
            link.settimeout(timeout_s)
            try:
                link.connect((address, port))
            except TimeoutError:
                return "silence"
            except ConnectionRefusedError:
                return "reset"
            except OSError:
                return "refused"
            return "open"

    def udp(self, address: str, port: int, data: bytes = b"?", *, timeout_s: float = 30.0) -> bytes | str:
        with netns.inside(self.name):
            link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with link:
            link.settimeout(timeout_s)
            try:
                link.connect((address, port))
                link.send(data)
                return link.recv(2048)
            except TimeoutError:
                return "silence"
            except OSError:
                return "refused"

    def close(self) -> None:
        self._ended.set()
        self._pump.join()
        os.close(self.theirs)
        os.close(self.ours)
        netns.delete(self.name)


class Gateway:
    """Listeners where the gateway's would be: they answer with what they saw, and keep a list of it."""

    def __init__(self, name: str) -> None:
        self.seen: list[tuple[str, str, int]] = []
        self._ended = threading.Event()
        with netns.inside(name):
            self._tcp = {port: socket.create_server(("0.0.0.0", port), backlog=600) for port in (10443, 10022, 10053)}
            self._other = socket.create_server(("0.0.0.0", 9000))
            self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._udp.bind(("0.0.0.0", 10053))
        self._links: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        listeners = {sock: port for port, sock in self._tcp.items()} | {self._other: 9000}
        while not self._ended.is_set():
            for ready in select.select([*listeners, self._udp], [], [], 0.1)[0]:
                if ready is self._udp:
                    data, peer = self._udp.recvfrom(2048)
                    self.seen.append(("udp", peer[0], 10053))
                    self._udp.sendto(b"answer " + data, peer)
                    continue
                link, peer = ready.accept()
                self._links.append(link)
                self.seen.append(("tcp", peer[0], listeners[ready]))

    def arrived(self, count: int = 0) -> list[tuple[str, str, int]]:
        """What has arrived, once there are ``count``, and a moment for more."""
        deadline = time.monotonic() + 30
        while len(self.seen) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        return list(self.seen)

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        for sock in [*self._tcp.values(), self._other, self._udp, *self._links]:
            sock.close()


class Nflog:
    """The prefixes that the kernel logged, as the gateway's reader would see them."""

    def __init__(self, name: str, group: int = 5) -> None:
        with netns.inside(name):
            self._link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
        self._link.bind((0, 0))
        self._config(socket.AF_INET, group, _attribute(1, bytes([1])))
        self._config(socket.AF_INET, group, _attribute(2, struct.pack(">IBx", 0xFFFF, 2)))
        self._link.settimeout(0.3)

    def _config(self, family: int, group: int, attribute: bytes) -> None:
        body = struct.pack(">BBH", family, 0, group) + attribute
        header = struct.pack("=IHHII", 16 + len(body), (4 << 8) | 1, 5, 1, 0)
        self._link.send(header + body)

    def prefixes(self) -> list[str]:
        found = []
        try:
            while True:
                data = self._link.recv(65536)
                at = 0
                while at + 16 <= len(data):
                    length, kind = struct.unpack_from("=IH", data, at)
                    if kind == 4 << 8:
                        found += _prefixes(data[at + 20 : at + length])
                    at += max(16, (length + 3) & ~3)
        except TimeoutError:
            return found

    def close(self) -> None:
        self._link.close()


def _attribute(kind: int, value: bytes) -> bytes:
    length = 4 + len(value)
    return struct.pack("=HH", length, kind) + value + bytes(-length % 4)


def _prefixes(attributes: bytes) -> Iterator[str]:
    at = 0
    while at + 4 <= len(attributes):
        length, kind = struct.unpack_from("=HH", attributes, at)
        if length < 4:
            return
        if kind & 0x3FFF == 10:
            yield attributes[at + 4 : at + length].rstrip(b"\0").decode()
        at += (length + 3) & ~3


@pytest.fixture
def namespace() -> Iterator[NamespaceThread]:
    name = new_name()
    thread = make_namespace(name)
    try:
        yield thread
    finally:
        thread.close()
        netns.delete(name)


@pytest.fixture
def links(namespace: NamespaceThread) -> Links:
    return Links(namespace)


@pytest.fixture
def wall(namespace: NamespaceThread) -> Wall:
    made = Wall(namespace, namespace.call(LibNft), PORTS)
    made.ensure_base([])
    return made


class Wired:
    """One VM behind the wall, as the agent would wire it up."""

    def __init__(self, links: Links, wall: Wall, index: int, **rules: object) -> None:
        self.tap, self.slot = new_tap(), slot_at(RANGE, index)
        self.links, self.wall = links, wall
        limits = rules.pop("limits", Limits())
        self.rules = VmRules(self.tap, self.slot.guest_ip, self.slot.gateway_ip, limits, **rules)
        links.make(self.tap)
        self.guest = Guest(self.tap, self.slot)
        links.move(self.tap)

    def up(self) -> Wired:
        self.wall.install(self.rules)
        self.links.up(self.tap, self.slot)
        return self

    def close(self) -> None:
        self.guest.close()
        self.links.delete(self.tap)


@pytest.fixture
def wire(links: Links, wall: Wall) -> Iterator[object]:
    made: list[Wired] = []

    def make(index: int = 0, *, up: bool = True, **rules: object) -> Wired:
        wired = Wired(links, wall, index, **rules)
        made.append(wired)
        return wired.up() if up else wired

    try:
        yield make
    finally:
        for wired in made:
            wired.close()


@pytest.fixture
def gateway(namespace: NamespaceThread) -> Iterator[Gateway]:
    made = Gateway(namespace.name)
    yield made
    made.close()


@pytest.fixture
def nflog(namespace: NamespaceThread) -> Iterator[Nflog]:
    made = Nflog(namespace.name)
    yield made
    made.close()
