"""The internet, in a network namespace of its own: `World`.

Two namespaces joined by one wire: ``PREFIX-up`` is where the gateway dials from, ``PREFIX-out`` is everything else.  In
the latter every address and every port is local: a packet that comes over the wire is answered and recorded, wherever
it was going, so nothing can get out unseen.  Nothing in the machine's own namespace is changed.

Addresses (of the ranges for documentation, RFC 5737):
203.0.113.1 the uplink · .2 its router · .10 allowed.example · .20 blocked.example · .30 GitHub · .53 the resolver ·
198.51.100.66 the attacker, evil.example.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import shutil
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Self

from orchestrator.core.errors import ConfigurationError, OperationalError
from orchestrator.simulator.certificates import Authority
from orchestrator.simulator.github import RUNNER_HOSTS, Simulator
from orchestrator.simulator.outside.endpoint import Endpoint
from orchestrator.simulator.outside.names import Names
from orchestrator.simulator.outside.records import Received, Recorder
from orchestrator.simulator.outside.sniffer import drain, open_sniffer
from orchestrator.system import netns
from orchestrator.system.process import CommandFailed, run

UPLINK = "203.0.113.1"
ROUTER = "203.0.113.2"
ALLOWED = "203.0.113.10"
BLOCKED = "203.0.113.20"
GITHUB = "203.0.113.30"
RESOLVER = "203.0.113.53"
ATTACKER = "198.51.100.66"
_PREFIX = re.compile(r"(icdt-[a-z0-9]{1,16}|icd-demo-[a-z0-9]{1,16})")
_TCP_PORT, _DNS_PORT, _UDP_PORT = 40_001, 40_053, 40_002
START_S = 20.0
_ANY = "0.0.0.0"  # noqa: S104 - of a namespace that has one wire

NAMES: dict[str, list[str]] = {
    "allowed.example": [ALLOWED],
    "*.allowed.example": [ALLOWED],
    "blocked.example": [BLOCKED],
    "evil.example": [ATTACKER],
    "*.evil.example": [ATTACKER],
    "github.com": [GITHUB],
    "*.github.com": [GITHUB],
    "*.githubusercontent.com": [GITHUB],
    "*.actions.githubusercontent.com": [GITHUB],
    "*.blob.core.windows.net": [GITHUB],
}

_RULES = """
table ip world {{
    set kept {{
        type ipv4_addr . inet_service
    }}
    chain prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
        ip daddr . tcp dport @kept accept
        ip daddr . udp dport @kept accept
        meta l4proto tcp redirect to :{tcp}
        udp dport 53 redirect to :{dns}
        meta l4proto udp redirect to :{udp}
    }}
}}
table netdev world {{
    set sources {{
        type ipv4_addr
        size 65535
        flags dynamic
    }}
    set sources6 {{
        type ipv6_addr
        size 65535
        flags dynamic
    }}
    chain ingress {{
        type filter hook ingress device "out0" priority 0; policy accept;
        update @sources {{ ip saddr counter }}
        update @sources6 {{ ip6 saddr counter }}
    }}
}}
"""


def new_prefix() -> str:
    """A prefix for a test's namespaces that nobody uses."""
    return f"icdt-{secrets.token_hex(4)}"


class World:
    """``with World(prefix) as world:``; needs root.  ``replace`` takes away what an earlier one of this prefix left."""

    def __init__(
        self,
        prefix: str,
        *,
        names: dict[str, list[str]] | None = None,
        folder: Path | None = None,
        replace: bool = False,
    ) -> None:
        if not _PREFIX.fullmatch(prefix):
            raise ConfigurationError(
                f"{prefix!r} is no prefix for the simulator's namespaces",
                code="world-prefix",
                remedy="Use icdt-NAME in tests, icd-demo-NAME in the demo.",
            )
        self.uplink_netns, self.netns = f"{prefix}-up", f"{prefix}-out"
        self.names = Names({**NAMES, **(names or {})})
        self._replace = replace
        self._own_folder = folder is None
        self._folder = folder or Path(tempfile.mkdtemp(prefix="ironcd-world-"))
        self._recorder = Recorder()
        self._made: list[str] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopping: asyncio.Event | None = None
        self.authority = Authority(self._folder / "ca")
        """Signs the sites' certificates; guests and clients trust it."""
        self.ca_file = self.authority.ca_file
        self.attacker_authority = Authority(self._folder / "attacker-ca", "Nobody's CA")

    # Life

    def start(self) -> Self:
        try:
            self._make_namespaces()
            self._listen()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Take everything away again; what isn't there is no error."""
        if self._loop is not None and self._stopping is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
        if self._thread is not None:
            self._thread.join(START_S)
        self._loop = self._thread = self._stopping = None
        while self._made:
            netns.delete(self._made.pop())
        if self._own_folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _make_namespaces(self) -> None:
        for name in (self.uplink_netns, self.netns):
            if netns.exists(name):
                if not self._replace:
                    raise OperationalError(
                        f"network namespace {name} exists already",
                        code="world-exists",
                        remedy=f"If nothing uses it: ip netns del {name}",
                    )
                netns.delete(name)
            self._made.append(name)
            netns.create(name)
        up, out = self.uplink_netns, self.netns
        run(["ip", "-n", up, "link", "add", "up0", "type", "veth", "peer", "name", "out0", "netns", out])
        commands = [
            [up, "addr", "add", f"{UPLINK}/24", "dev", "up0"],
            [up, "link", "set", "up0", "up"],
            [out, "addr", "add", f"{ROUTER}/24", "dev", "out0"],
            *([out, "addr", "add", f"{it}/32", "dev", "out0"] for it in (ALLOWED, BLOCKED, GITHUB, RESOLVER, ATTACKER)),
            [out, "link", "set", "out0", "up"],
            [up, "route", "add", "default", "via", ROUTER],
            [out, "route", "add", "default", "via", UPLINK],
            # Whatever comes over the wire is for here, whatever its address.
            [out, "route", "add", "local", "0.0.0.0/0", "dev", "lo", "table", "100"],
            [out, "rule", "add", "iif", "out0", "lookup", "100", "priority", "1"],
        ]
        for namespace, *rest in commands:
            run(["ip", "-n", namespace, *rest])
        with netns.inside(out):
            # A forged source is to be seen, not dropped.
            for interface in ("all", "out0"):
                Path(f"/proc/sys/net/ipv4/conf/{interface}/rp_filter").write_text("0")
        rules = _RULES.format(tcp=_TCP_PORT, dns=_DNS_PORT, udp=_UDP_PORT)
        run(["ip", "netns", "exec", out, "nft", "-f", "-"], stdin=rules)

    # What listens

    def _listen(self) -> None:
        with netns.inside(self.netns):
            tcp = socket.create_server((_ANY, _TCP_PORT), backlog=4096)
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            udp = [_udp_socket(port) for port in (_DNS_PORT, _UDP_PORT)]
            sniffer = open_sniffer("out0")
        ready: Future[None] = Future()
        arguments = (tcp, udp, sniffer, ready)
        self._thread = threading.Thread(target=lambda: self._main(*arguments), name="world", daemon=True)
        self._thread.start()
        ready.result(START_S)

    def _main(self, tcp: socket.socket, udp: list[socket.socket], sniffer: socket.socket, ready: Future[None]) -> None:
        with contextlib.closing(tcp), contextlib.closing(sniffer), contextlib.ExitStack() as stack:
            for item in udp:
                stack.enter_context(contextlib.closing(item))
            asyncio.run(self._serve(tcp, udp, sniffer, ready))

    async def _serve(
        self, tcp: socket.socket, udp: list[socket.socket], sniffer: socket.socket, ready: Future[None]
    ) -> None:
        try:
            self._loop = loop = asyncio.get_running_loop()
            self._stopping = asyncio.Event()
            contexts = self._contexts()
            dns, echo = udp
            loop.add_reader(dns, _answer_all, dns, self.names)
            loop.add_reader(echo, _echo_all, echo)
            loop.add_reader(sniffer, drain, sniffer, self._recorder)

            def make() -> Endpoint:
                return Endpoint(self._recorder, self.names, lambda at: contexts.get(at, contexts[""])(), _greeting)

            server = await loop.create_server(make, sock=tcp)
        except BaseException as error:
            ready.set_exception(error)
            raise
        ready.set_result(None)
        await self._stopping.wait()
        for item in (dns, echo, sniffer):
            loop.remove_reader(item)
        server.close()

    def _contexts(self) -> dict[str, Callable[[], ssl.SSLContext]]:
        """How each address makes a TLS context; under the empty one, those that have no site."""
        site = self.authority.issue(["allowed.example", "*.allowed.example"])
        other = self.authority.issue(["blocked.example"])
        forged = self.attacker_authority.issue(["allowed.example", "github.com", ATTACKER], label="forged")
        evil = self.authority.issue(["evil.example", "*.evil.example"])
        return {
            ALLOWED: site.server_context,
            BLOCKED: other.server_context,
            ATTACKER: evil.server_context,
            "": forged.server_context,
        }

    def keep(self, address: str, port: int) -> None:
        """Leave ``address:port`` (TCP and UDP) to a socket that the caller binds in `netns`."""
        element = f"add element ip world kept {{ {address} . {port} }}"
        run(["ip", "netns", "exec", self.netns, "nft", "-f", "-"], stdin=element)

    def serve_github(self, simulator: Simulator) -> None:
        """Serve ``simulator`` over HTTPS under GitHub's names too, for the runners in guests."""
        certificate = self.authority.issue(
            [*RUNNER_HOSTS, "*.actions.githubusercontent.com", "*.blob.core.windows.net"], label="github"
        )
        self.keep(GITHUB, 443)
        with netns.inside(self.netns):
            listener = socket.create_server((GITHUB, 443), backlog=1024)
        simulator.listen(listener, certificate=certificate.chain, key=certificate.key)

    # What arrived

    def received(self, address: str | None = None, port: int | None = None, proto: str | None = None) -> list[Received]:
        """All that arrived and matches, oldest first.  Connections to GitHub's address aren't among it."""
        return self._recorder.find(address=address, port=port, proto=proto)

    def clear(self) -> None:
        """Forget what arrived, and start the counters of `packets_from` again."""
        self._recorder.clear()
        orders = "flush set netdev world sources\nflush set netdev world sources6\n"
        run(["ip", "netns", "exec", self.netns, "nft", "-f", "-"], stdin=orders)

    def sources(self) -> dict[str, int]:
        """Packets that came over the wire, by source address, as the kernel counted them."""
        counts: dict[str, int] = {}
        for name in ("sources", "sources6"):
            text = run(["ip", "netns", "exec", self.netns, "nft", "-j", "list", "set", "netdev", "world", name])
            for entry in json.loads(text)["nftables"]:
                for element in entry.get("set", {}).get("elem", []):
                    inner = element["elem"]
                    counts[str(inner["val"])] = int(inner["counter"]["packets"])
        return counts

    def packets_from(self, address: str) -> int:
        """How many packets came over the wire with this source address."""
        return self.sources().get(address, 0)

    def strangers(self) -> dict[str, int]:
        """`sources` without the uplink's own address and the interfaces' housekeeping: a leak, where not empty."""
        return {
            source: count
            for source, count in self.sources().items()
            if source not in (UPLINK, "::") and not source.startswith("fe80:")
        }

    @staticmethod
    def remove(prefix: str) -> None:
        """Delete the namespaces that a world of ``prefix`` left when its process was killed."""
        if _PREFIX.fullmatch(prefix):
            for name in (f"{prefix}-up", f"{prefix}-out"):
                with contextlib.suppress(CommandFailed):
                    netns.delete(name)


def _udp_socket(port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    made.bind((_ANY, port))
    return made


def _answer_all(listener: socket.socket, names: Names) -> None:
    with contextlib.suppress(BlockingIOError, OSError):
        while True:
            query, source = listener.recvfrom(65_535)
            if (answer := names.answer(query)) is not None:
                listener.sendto(answer, source)


def _echo_all(listener: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError, OSError):
        while True:
            data, source = listener.recvfrom(65_535)
            listener.sendto(data, source)


def _greeting(address: str, port: int) -> str:
    who = {ALLOWED: "allowed.example", BLOCKED: "blocked.example", ATTACKER: "the attacker"}.get(address, "nobody")
    return f"hello from {who} ({address}:{port})\n"
