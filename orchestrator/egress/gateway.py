"""The gateway: accepts what the kernel redirected to it, does what `Connection` says, and keeps account of every flow.

- The record comes first: the ``open`` event is in the kernel's hands, and so outlives the gateway, before anything is sent
  upstream.  Where the ledger is full, nothing new passes (unless the host's settings say otherwise).
- A block is a reset, at once: tools fail fast, and a sinkhole's answer would look like success.
- What one VM may have open is bounded (`orchestrator.core.link.Limits`), so it can't slow the others down.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Iterable
from functools import partial
from typing import Literal

import msgspec

from orchestrator.core.policy import Decision
from orchestrator.egress import sockets
from orchestrator.egress.acceptor import Acceptor
from orchestrator.egress.connection import Connection
from orchestrator.egress.echo_relay import EchoRelay
from orchestrator.egress.flow import LiveFlow
from orchestrator.egress.ledger import LedgerFull
from orchestrator.egress.links import Links, LinkState
from orchestrator.egress.poller import Poller
from orchestrator.egress.recorder import Recorder
from orchestrator.egress.relay import Pipes, reset
from orchestrator.egress.session import Services, Session
from orchestrator.egress.upstream import Upstream

PROGRESS_S = 60.0


class GatewayOptions(msgspec.Struct, frozen=True):
    """Seconds, and whether a full ledger stops new flows."""

    hello_timeout_s: float = 10.0
    idle_timeout_s: float = 3600.0
    block_when_ledger_full: bool = True


class Gateway:
    def __init__(
        self, *, links: Links, recorder: Recorder, upstream: Upstream, own: Iterable[str], options: GatewayOptions
    ) -> None:
        self.flows: set[LiveFlow] = set()
        self._links = links
        self._recorder = recorder
        self._own = own
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._services = Services(
            self._loop,
            Poller(self._loop),
            Pipes(),
            recorder,
            upstream,
            options.hello_timeout_s,
            record=self._record,
            gone=self._gone,
        )
        self._unrecorded: list[LiveFlow] = []
        self._echoes: EchoRelay | None = None
        self._acceptors: list[Acceptor] = []
        self._prefix = secrets.token_hex(4)
        self._count = 0

    def serve(self, listener: socket.socket, protocol: Literal["tls", "tcp"]) -> None:
        """Accept on ``listener`` from now on; the gateway closes it at its end."""
        self._acceptors.append(Acceptor(listener, partial(self._admit, protocol)))

    def echo(self, log: socket.socket, inner: socket.socket, outer: socket.socket) -> None:
        """Answer the echoes that the kernel logs to ``log`` from now on; the gateway closes all three at its end."""
        self._echoes = EchoRelay(
            (log, inner, outer), links=self._links, services=self._services, flows=self.flows, own=self._own
        )

    async def close(self) -> None:
        """Stop listening and end every flow."""
        for acceptor in self._acceptors:
            acceptor.close()
        self._end(set(self.flows), "gateway_stopped")
        if self._echoes is not None:
            self._echoes.close()
        self._services.pipes.close()
        self._services.poller.close()

    async def drop(self, state: LinkState, reason: str) -> int:
        """End every flow of a link; how many there were.  Returns when none is left and all of it is on record."""
        count = self._end(set(state.flows), reason)
        with contextlib.suppress(LedgerFull):  # the link must go all the same; its last lines wait in memory
            await self._recorder.ledger.durable()
        return count

    def reevaluate(self, state: LinkState) -> int:
        """Judge a link's open flows by its policy as it is now, and end those that it forbids; how many."""
        live = [flow for flow in state.flows if flow.relay is not None]
        return self._end([flow for flow in live if not flow.connection.judge_live(flow.resolved).passes], "policy")

    def sweep(self) -> None:
        """End what has waited too long, and record the progress of long flows.  To be called every second or so."""
        now = self._loop.time()
        for flow in tuple(self.flows):
            relay = flow.relay
            if now >= flow.deadline:
                flow.expire()
                continue
            if relay is None:
                continue
            flow.keep_alive()
            flow.account()
            if now - relay.active > self._options.idle_timeout_s:
                flow.abort("idle")
            elif now - flow.progressed >= PROGRESS_S:
                flow.record_progress(now)

    def _admit(self, protocol: Literal["tls", "tcp"], client: socket.SocketType, guest: str) -> None:
        state = self._links.of_guest(guest)
        dialled = sockets.original_destination(client)
        now = self._loop.time()
        if state is None or dialled is None:
            self._stray(protocol, client, state, dialled or (guest, 0))
            return
        connection = Connection(state, protocol, *dialled, self._own)
        self._count += 1
        session = Session(f"{self._prefix}-{self._count:x}", client, connection, self._services, now)
        refusal = state.refusal(now)
        if refusal:
            session.record_blocked(Decision("blocked", refusal))
            reset(client)
            return
        if protocol == "tls":
            session.half_open = True
            state.half_open += 1
        self.flows.add(session)
        state.flows.add(session)
        session.begin()

    def _stray(
        self,
        protocol: Literal["tls", "tcp"],
        client: socket.SocketType,
        state: LinkState | None,
        dialled: tuple[str, int],
    ) -> None:
        """A connection of nobody that we know, or one that wasn't redirected."""
        decision = Decision("blocked", "unknown_link" if state is None else "not_redirected")
        address, port = dialled
        event = self._recorder.event("drop", state, protocol, decision, orig_dst=address, port=port)
        self._recorder.limited(state.link.tap if state else "", event)
        reset(client)

    def _gone(self, flow: LiveFlow) -> None:
        self.flows.discard(flow)
        flow.connection.state.flows.discard(flow)

    def _record(self, flow: LiveFlow) -> None:
        """Flows that become ready in the same turn share one write."""
        if not self._unrecorded:
            self._loop.call_soon(self._settle)
        self._unrecorded.append(flow)

    def _settle(self) -> None:
        waiting, self._unrecorded = self._unrecorded, []
        ok = self._on_record()
        for flow in waiting:
            flow.recorded(ok)

    def _on_record(self) -> bool:
        """True once everything recorded so far outlives this process; False where that stops the flow."""
        try:
            self._recorder.ledger.flush()
        except LedgerFull:
            return not self._options.block_when_ledger_full
        return True

    def _end(self, flows: Iterable[LiveFlow], reason: str) -> int:
        count = 0
        for flow in flows:
            flow.abort(reason)
            count += 1
        return count
