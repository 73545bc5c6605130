"""Answers sandboxes' ICMP echoes by sending our own in their place (ADR 14).

The kernel hands a VM's echo request over as a log message and drops it: nothing of a VM's ICMP is ever forwarded.  An echo
that the policy lets go is recorded, sent by us (`orchestrator.egress.echo`), and when its answer comes the VM is answered
from what it sent itself.  Nothing else that comes back is passed on: no redirect, no unreachable, no time exceeded.

Echoes of one VM to one place with one identifier (one run of ``ping``) are one flow, with an ``open`` before the first goes
out, ``progress`` each minute, and a ``close`` once it has been silent for ten seconds.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import structlog

from orchestrator.core.policy import Decision, is_dialled
from orchestrator.egress import echo as icmp
from orchestrator.egress.connection import Block, Command, Connection, Dial, Fail, Resolve
from orchestrator.egress.echo import Echo
from orchestrator.egress.flow import LiveFlow
from orchestrator.egress.links import Links, LinkState
from orchestrator.egress.nflog import messages
from orchestrator.egress.session import Services

IDLE_S = 10.0
ANSWER_S = 10.0
"""An answer that takes longer isn't one."""
MAX_WAITING = 8
"""Echoes of one flow that are kept while its name is looked up."""
MAX_PENDING = 16_384
ECHO_BYTES = 1500
"""What the kernel hands over of one: all of a packet that comes in one piece."""
AT_ONCE = 64

_SOL_RAW, _ICMP_FILTER = 255, 1
_ONLY_REPLIES = struct.pack("=I", ~(1 << 0) & 0xFFFFFFFF)

_log = structlog.get_logger()


def open_outer() -> socket.socket:
    """What echoes are sent with and answered to, in the present namespace (the uplink's)."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_ICMP)
    sock.setsockopt(_SOL_RAW, _ICMP_FILTER, _ONLY_REPLIES)
    sock.setblocking(False)
    return sock


def open_inner() -> socket.socket:
    """What VMs are answered with, in the present namespace (theirs); it receives nothing."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW)
    sock.setblocking(False)
    return sock


class Echoed:
    """What went each way in one flow, in bytes of ICMP; ``active`` is on the event loop's clock."""

    __slots__ = ("active", "bytes_down", "bytes_up")

    def __init__(self, now: float) -> None:
        self.active = now
        self.bytes_up = 0
        self.bytes_down = 0

    def abort(self, reason: str) -> None:
        """There is nothing to break off between two echoes."""


class EchoFlow(LiveFlow):
    """Echoes of one VM to one place with one identifier."""

    __slots__ = ("_echoes", "_services", "_task", "_waiting", "echoed", "key", "over")

    def __init__(
        self, identifier: str, key: tuple[str, str, int], connection: Connection, relay: EchoRelay, services: Services
    ) -> None:
        super().__init__(identifier, connection, services.recorder, services.loop.time())
        self.key = key
        self.over = False
        self.echoed = Echoed(self.began)
        self._echoes = relay
        self._services = services
        self._task: asyncio.Task[None] | None = None
        self._waiting: list[Echo] = []

    def ask(self, echo: Echo) -> None:
        """Send ``echo`` where the policy, as it is now, lets it go."""
        if self.relay is None:
            if len(self._waiting) < MAX_WAITING:
                self._waiting.append(echo)
        elif self.connection.judge_live(self.resolved).passes:
            self._send(echo)
        else:
            self.end("policy")

    def begin(self) -> None:
        self._obey(self.connection.begin())

    def recorded(self, ok: bool) -> None:
        if self.over:
            return
        if not ok:
            self.end("ledger_full")
        elif not self.connection.judge_live(self.resolved).passes:
            self.end("policy")
        else:
            self.relay = self.echoed
            waiting, self._waiting = self._waiting, []
            for echo in waiting:
                self._send(echo)

    def abort(self, reason: str) -> None:
        self.ending = self.ending or reason
        self.end(reason)

    def expire(self) -> None:
        self.end("ended")

    def keep_alive(self) -> None:
        pass

    def end(self, reason: str) -> None:
        """Tell the VM where it still waits, record it, and be forgotten; once."""
        if self.over:
            return
        self.over = True
        if self._task is not None:
            self._task.cancel()
        for echo in self._waiting:
            self._echoes.refuse(echo)
        self._waiting.clear()
        self._echoes.gone(self)
        self._services.gone(self)
        if self.opened:
            self.record_close(self._services.loop.time(), reason)
        elif reason != "blocked":
            self.record_blocked(Decision("blocked", reason, self.connection.decision.rule))

    def _obey(self, command: Command) -> None:
        match command:
            case Resolve(name):
                self._task = self._services.loop.create_task(self._resolve(name))
            case Block(decision):
                self.record_blocked(decision)
                self.end("blocked")
            case Dial(addresses):
                self._dial(addresses)
            case Fail(reason):
                self.record_open()
                self.end(reason)
            case _:
                raise AssertionError(command)

    async def _resolve(self, name: str) -> None:
        try:
            answers = await self._services.upstream.resolve(name)
            self._task = None
            self._obey(self.connection.answered(answers))
        except Exception as error:  # noqa: BLE001 - one flow's fault must not be the others'
            _log.error("echo_failed", conn=self.id, exc_info=error)
            self.end("error")

    def _dial(self, addresses: Iterable[str]) -> None:
        self.resolved = next((address for address in addresses if ":" not in address), "")
        self.record_open()
        if self.resolved:
            self._services.record(self)
        else:
            self.end("no_ipv4")

    def _send(self, echo: Echo) -> None:
        self.deadline = self._services.loop.time() + IDLE_S
        self._echoes.send(self, echo)


@dataclass(frozen=True, slots=True)
class _Sent:
    """An echo of ours that isn't answered yet, and the VM's that it stands for."""

    at: float
    flow: EchoFlow
    echo: Echo


class EchoRelay:
    """Reads echoes from ``log`` (see `open_nflog`), sends with ``outer``, answers with ``inner``; closes all three."""

    def __init__(
        self,
        sockets: tuple[socket.socket, socket.socket, socket.socket],
        *,
        links: Links,
        services: Services,
        flows: set[LiveFlow],
        own: Iterable[str],
    ) -> None:
        self._log, self._inner, self._outer = sockets
        self._links = links
        self._services = services
        self._all = flows
        self._own = own
        self._flows: dict[tuple[str, str, int], EchoFlow] = {}
        self._pending: dict[int, _Sent] = {}
        self._ident = secrets.randbelow(1 << 16)
        self._number = secrets.randbelow(1 << 16)
        self._count = 0
        services.loop.add_reader(self._log.fileno(), self._asked)
        services.loop.add_reader(self._outer.fileno(), self._answered)

    def close(self) -> None:
        for sock in (self._log, self._outer):
            self._services.loop.remove_reader(sock.fileno())
        for sock in (self._log, self._inner, self._outer):
            sock.close()

    def send(self, flow: EchoFlow, echo: Echo) -> None:
        """Send an echo in place of ``echo``."""
        now = self._services.loop.time()
        self._forget(now - ANSWER_S)
        number = self._number = (self._number + 1) & 0xFFFF
        if len(self._pending) >= MAX_PENDING or number in self._pending:
            return
        try:
            self._outer.sendto(icmp.request(self._ident, number), (flow.resolved, 0))
        except BlockingIOError:
            return
        except OSError as error:
            flow.end(f"error_{error.errno}")
            return
        self._pending[number] = _Sent(now, flow, echo)
        flow.echoed.bytes_up += icmp.SIZE
        flow.echoed.active = now

    def refuse(self, echo: Echo) -> None:
        """Tell the VM that ``echo`` doesn't go there."""
        self._tell(echo, icmp.prohibited(echo))

    def gone(self, flow: EchoFlow) -> None:
        if self._flows.get(flow.key) is flow:
            del self._flows[flow.key]

    def _asked(self) -> None:
        for _ in range(AT_ONCE):
            data = self._receive(self._log, self._asked)
            if data is None:
                return
            for message in messages(data):
                self._take(message.tap, message.payload)

    def _take(self, tap: str, packet: bytes) -> None:
        echo, state = icmp.parse_echo(packet), self._links.of_tap(tap)
        if echo is None:
            self._stray(state, "malformed")
            return
        if state is None or state.link.guest_ip != echo.source:
            self._stray(None, "unknown_link", echo.target)
            return
        key = tap, echo.target, echo.ident
        flow = self._flows.get(key)
        if flow is not None and flow.connection.state is state:
            flow.ask(echo)
            return
        self._admit(key, echo, state)

    def _admit(self, key: tuple[str, str, int], echo: Echo, state: LinkState) -> None:
        connection = Connection(state, "icmp", echo.target, 0, self._own)
        if not is_dialled(echo.target):
            connection.name = state.fake_names.name_of(echo.target)
        self._count += 1
        flow = EchoFlow(f"{self._ident:04x}-echo-{self._count:x}", key, connection, self, self._services)
        refusal = state.refusal(self._services.loop.time())
        if refusal:
            flow.record_blocked(Decision("blocked", refusal))
            self.refuse(echo)
            return
        self._flows[key] = flow
        self._all.add(flow)
        state.flows.add(flow)
        flow.ask(echo)
        flow.begin()

    def _answered(self) -> None:
        for _ in range(AT_ONCE):
            packet = self._receive(self._outer, self._answered)
            if packet is None:
                return
            answer = icmp.parse_reply(packet)
            if answer is not None and answer[1] == self._ident:
                self._pass_on(answer[0], answer[2])

    def _pass_on(self, source: str, number: int) -> None:
        sent = self._pending.get(number)
        if sent is None or source != sent.flow.resolved:
            return
        del self._pending[number]
        if not sent.flow.over:
            sent.flow.echoed.bytes_down += icmp.SIZE
            self._tell(sent.echo, icmp.reply(sent.echo))

    def _receive(self, sock: socket.socket, ready: Callable[[], None]) -> bytes | None:
        try:
            return sock.recv(262_144)
        except BlockingIOError:
            return None
        except OSError as error:
            # libuv stops to watch a socket that has an error pending.
            _log.warning("echoes_lost", error=str(error))
            self._services.loop.remove_reader(sock.fileno())
            self._services.loop.add_reader(sock.fileno(), ready)
            return None

    def _tell(self, echo: Echo, packet: bytes) -> None:
        try:
            self._inner.sendto(packet, (echo.source, 0))
        except OSError as error:  # the link is down, or its queue full: an answer lost
            _log.info("echo_not_answered", guest=echo.source, error=str(error))

    def _forget(self, before: float) -> None:
        """Drop what was sent ``before`` and never answered: the oldest stand first."""
        while self._pending:
            number = next(iter(self._pending))
            if self._pending[number].at >= before:
                return
            del self._pending[number]

    def _stray(self, state: LinkState | None, reason: str, target: str = "") -> None:
        recorder = self._services.recorder
        event = recorder.event("drop", state, "icmp", Decision("blocked", reason), orig_dst=target)
        recorder.limited(state.link.tap if state else "", event)
