"""One accepted connection from its first byte to its last, driven by what the poller says of its two sockets.

```
hello ─▶ resolving ─▶ recording ─▶ dialling ─▶ open ─▶ over
```
`Connection` says what to do next, `Relay` moves the bytes once both sides stand; this does the I/O in between.  Each step
ends in the next, or in `end`, from any of them.  A phase that waits for somebody else has a deadline, looked at by the
gateway's sweep, so it may be up to a second late.
"""

from __future__ import annotations

import asyncio
import errno
import math
import socket
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from orchestrator.core.policy import Decision
from orchestrator.egress import sockets
from orchestrator.egress.acceptor import NO_ROOM
from orchestrator.egress.connection import Block, Command, Connection, Dial, Fail, Read, Resolve
from orchestrator.egress.flow import LiveFlow
from orchestrator.egress.poller import BROKEN, ENDED, READABLE, WRITABLE, Poller
from orchestrator.egress.recorder import Recorder
from orchestrator.egress.relay import Pipes, Relay, reset
from orchestrator.egress.second_hello import SecondHello
from orchestrator.egress.upstream import Upstream

CONNECT_TIMEOUT_S = 5.0
MAX_ADDRESSES = 4
"""Addresses of one name that are tried, one after the other."""
_READ = 65_536
_MORE = READABLE & ~ENDED
"""Bytes are there, and nobody has said that they are the last: those are held back for the end that follows."""

_log = structlog.get_logger()


@dataclass(frozen=True)
class Services:
    """What every session uses."""

    loop: asyncio.AbstractEventLoop
    poller: Poller
    pipes: Pipes
    recorder: Recorder
    upstream: Upstream
    hello_timeout_s: float
    record: Callable[[LiveFlow], None]
    """Call the flow's `recorded` once what it appended to the ledger outlives this process."""
    gone: Callable[[LiveFlow], None]
    """The flow is over: forget it."""


class Session(LiveFlow):
    """``deadline`` is on the event loop's clock; infinite where nothing is waited for, or the relay has its own rules."""

    __slots__ = ("_addresses", "_dial", "_events", "_services", "_task", "_upstream", "client", "kept_alive", "over")

    def __init__(
        self, identifier: str, client: socket.SocketType, connection: Connection, services: Services, now: float
    ) -> None:
        super().__init__(identifier, connection, services.recorder, now)
        self.client = client
        self.over = False
        self.kept_alive = False
        self._services = services
        self._events = 0
        """What the poller said of the client while nobody read from it."""
        self._task: asyncio.Task[None] | None = None
        self._upstream: socket.SocketType | None = None
        self._dial: Dial | None = None
        self._addresses: list[str] = []

    def begin(self) -> None:
        try:
            self._begin()
        except Exception as error:  # noqa: BLE001 - as `failed` says
            self.failed(error)

    def _begin(self) -> None:
        command = self.connection.begin()
        if isinstance(command, Read):
            self.deadline = self.began + self._services.hello_timeout_s
            self._services.poller.watch(self.client.fileno(), self._hello, self.failed)
        else:
            self._services.poller.watch(self.client.fileno(), self._client_waits, self.failed)
            self._obey(command)

    def abort(self, reason: str) -> None:
        """End it now, with resets to both sides."""
        self.ending = self.ending or reason
        self.end(reason)

    def expire(self) -> None:
        if self._dial is None:
            self._obey(self.connection.timed_out())
        else:
            self._next_address(TimeoutError())

    def keep_alive(self) -> None:
        """Have the kernel ask after the server too, now that the flow is one that lasts (the listener's do so from birth)."""
        if self._upstream is not None and not self.kept_alive:
            self.kept_alive = True
            sockets.keep_alive(self._upstream)

    def end(self, reason: str) -> None:
        """Close both sides, record it, and be forgotten; once.  Anything but ``ended`` is a reset to both."""
        if self.over:
            return
        self.over = True
        if self.relay is not None:
            self.relay.abort(reason)
        if self._task is not None:
            self._task.cancel()
        close = socket.SocketType.close if reason == "ended" else reset
        for sock in (self.client, self._upstream):
            if sock is not None:
                self._services.poller.forget(sock.fileno())
                close(sock)
        self.decided()
        self._services.gone(self)
        if self.opened:
            self.record_close(self._services.loop.time(), reason)
        elif reason != "blocked":
            self.record_blocked(Decision("blocked", reason, self.connection.decision.rule))

    # -- hello -------------------------------------------------------------------------------------------------------

    def _hello(self, events: int) -> None:
        if not events & READABLE:
            return
        command: Command = Read()
        while isinstance(command, Read):
            try:
                data = self.client.recv(_READ)
            except BlockingIOError:
                return
            except ConnectionError:
                data = b""
            command = self.connection.received(data)
            if isinstance(command, Read) and len(data) < _READ and not events & ENDED:
                return
        self._events = events & ENDED | (_MORE if len(data) == _READ else 0)
        self._services.poller.change(self.client.fileno(), self._client_waits, self.failed)
        self._obey(command)

    def _client_waits(self, events: int) -> None:
        self._events |= events
        if events & BROKEN:
            self.end("reset")

    def _obey(self, command: Command) -> None:
        self.decided()
        self.deadline = math.inf
        match command:
            case Resolve(name):
                self._resolve(name)
            case Block(decision):
                self.record_blocked(decision)
                self.end("blocked")
            case Dial():
                self._dial = command
                self._addresses = list(command.addresses[:MAX_ADDRESSES])
                self.resolved = command.addresses[0]
                self.record_open()
                self._services.record(self)
            case Fail(reason):
                self.record_open()
                self.end(reason)
            case _:
                raise AssertionError(command)

    def _resolve(self, name: str) -> None:
        answers = self._services.upstream.known(name)
        if answers is None:
            self._task = self._services.loop.create_task(self._ask(name))
        else:
            self._obey(self.connection.answered(answers))

    async def _ask(self, name: str) -> None:
        try:
            answers = await self._services.upstream.resolve(name)
            self._task = None
            self._obey(self.connection.answered(answers))
        except Exception as error:  # noqa: BLE001 - as `failed` says
            self.failed(error)

    # -- dialling ----------------------------------------------------------------------------------------------------

    def recorded(self, ok: bool) -> None:
        if self.over:
            return
        if ok:
            try:
                self._next_address(ConnectionRefusedError())
            except Exception as error:  # noqa: BLE001 - as `failed` says
                self.failed(error)
        else:
            self.end("ledger_full")

    def _next_address(self, error: OSError) -> None:
        """Dial the next address; ``error`` is what became of the last."""
        self._hang_up()
        assert self._dial is not None
        while self._addresses:
            if not self._still_passes():
                return
            self.resolved = self._addresses.pop(0)
            try:
                self._upstream = sockets.start_connecting(self.resolved, self._dial.port)
            except OSError as failed:
                error = failed
                continue
            self.deadline = self._services.loop.time() + CONNECT_TIMEOUT_S
            self._services.poller.watch(self._upstream.fileno(), self._connected, self.failed)
            return
        if error.errno in NO_ROOM:
            self.end("no_room")
        else:
            self.end("connect_timeout" if isinstance(error, TimeoutError) else "connect_failed")

    def _hang_up(self) -> None:
        if self._upstream is not None:
            self._services.poller.forget(self._upstream.fileno())
            self._upstream.close()
            self._upstream = None

    def _connected(self, events: int) -> None:
        upstream, dial = self._upstream, self._dial
        assert upstream is not None
        assert dial is not None
        if events & BROKEN:
            error = upstream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error == 0:
                return
            self._next_address(OSError(error, "connect") if error != errno.ETIMEDOUT else TimeoutError())
            return
        if not events & WRITABLE:
            return
        if sockets.reached_itself(upstream, self.resolved):
            self.connection.decision = Decision("blocked", "floor_own_address", self.connection.decision.rule)
            self.end("own_address")
        elif self._still_passes():
            self._join(upstream, dial.head, events)

    def _still_passes(self) -> bool:
        """Judge by the policy as it is now: it may have changed while we waited.  Ends it where it doesn't pass."""
        passes = self.connection.judge_live(self.resolved).passes
        if not passes:
            self.end("policy")
        return passes

    # -- open --------------------------------------------------------------------------------------------------------

    def _join(self, upstream: socket.SocketType, head: bytes, events: int) -> None:
        """Send the head and move bytes until the end."""
        connection = self.connection
        self.deadline = math.inf
        tls = None
        if connection.protocol == "tls":
            tls = SecondHello(connection.name, allow_ech=connection.state.policy.policy.allow_ech)
        services = self._services
        relay = Relay(
            self.client,
            upstream,
            pipes=services.pipes,
            loop=services.loop,
            finished=self._relayed,
            head=head,
            tls=tls,
        )
        self.relay = relay
        self._dial = None  # a connection may live for hours; its hello needn't
        services.poller.change(self.client.fileno(), relay.client_ready, self.failed)
        services.poller.change(upstream.fileno(), relay.upstream_ready, self.failed)
        relay.start(client=self._events, upstream=events & READABLE)

    def _relayed(self, reason: str) -> None:
        if reason in ("upstream_not_tls", "sni_changed"):
            self.connection.decision = Decision("blocked", reason, self.connection.decision.rule)
        self.end(reason)

    def failed(self, error: Exception) -> None:
        """Whatever goes wrong ends this session, closed."""
        if isinstance(error, OSError):
            self.end("no_room" if error.errno in NO_ROOM else f"error_{error.errno}")
        else:
            _log.error("session_failed", conn=self.id, exc_info=error)
            self.end("error")
