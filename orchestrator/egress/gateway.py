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
from orchestrator.egress.acceptor import NO_ROOM, Acceptor
from orchestrator.egress.connection import Block, Command, Connection, Dial, Fail, Read, Resolve
from orchestrator.egress.flow import LiveFlow
from orchestrator.egress.ledger import LedgerFull
from orchestrator.egress.links import Links, LinkState
from orchestrator.egress.recorder import Recorder
from orchestrator.egress.relay import Pipes, Relay, reset
from orchestrator.egress.upstream import Upstream

PROGRESS_S = 60.0
_READ = 65_536


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
        self._upstream = upstream
        self._own = own
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._pipes = Pipes()
        self._acceptors: list[Acceptor] = []
        self._prefix = secrets.token_hex(4)
        self._count = 0

    def serve(self, listener: socket.socket, protocol: Literal["tls", "tcp"]) -> None:
        """Accept on ``listener`` from now on; the gateway closes it at its end."""
        self._acceptors.append(Acceptor(listener, partial(self._admit, protocol)))

    async def close(self) -> None:
        """Stop listening and end every flow."""
        for acceptor in self._acceptors:
            acceptor.close()
        await self._end(set(self.flows), "gateway_stopped")
        self._pipes.close()

    async def drop(self, state: LinkState, reason: str) -> int:
        """End every flow of a link; how many there were.  Returns when none is left and all of it is on record."""
        count = await self._end(set(state.flows), reason)
        with contextlib.suppress(LedgerFull):  # the link must go all the same; its last lines wait in memory
            await self._recorder.ledger.durable()
        return count

    async def reevaluate(self, state: LinkState) -> int:
        """Judge a link's open flows by its policy as it is now, and end those that it forbids; how many."""
        live = [flow for flow in state.flows if flow.relay is not None]
        losers = {flow for flow in live if not flow.connection.judge_live(flow.resolved).passes}
        return await self._end(losers, "policy")

    def sweep(self) -> None:
        """End idle flows and record the progress of long ones.  To be called every second or so."""
        now = self._loop.time()
        for flow in tuple(self.flows):
            relay = flow.relay
            if relay is None:
                continue
            if now - relay.active > self._options.idle_timeout_s:
                flow.abort("idle")
            elif now - flow.progressed >= PROGRESS_S:
                flow.record_progress(now)

    def _admit(self, protocol: Literal["tls", "tcp"], client: socket.socket, guest: str) -> None:
        state = self._links.of_guest(guest)
        dialled = sockets.original_destination(client)
        now = self._loop.time()
        if state is None or dialled is None:
            reason = "unknown_link" if state is None else "not_redirected"
            address, port = dialled or ("", 0)
            event = self._recorder.event(
                "drop", state, protocol, Decision("blocked", reason), orig_dst=address or guest, port=port
            )
            self._recorder.limited(state.link.tap if state else "", event)
            reset(client)
            return
        connection = Connection(state, protocol, *dialled, self._own)
        self._count += 1
        flow = LiveFlow(f"{self._prefix}-{self._count:x}", client, connection, self._recorder, now)
        refusal = state.refusal(now)
        if refusal:
            flow.record_blocked(Decision("blocked", refusal))
            reset(client)
            return
        if protocol == "tls":
            flow.half_open = True
            state.half_open += 1
        self.flows.add(flow)
        state.flows.add(flow)
        flow.task = self._loop.create_task(self._run(flow))

    async def _run(self, flow: LiveFlow) -> None:
        reason = "error"
        try:
            reason = await self._serve(flow)
        except asyncio.CancelledError:
            reason = flow.ending or "gateway_stopped"
        except OSError as error:
            reason = "no_room" if error.errno in NO_ROOM else f"error_{error.errno}"
        finally:
            flow.decided()
            reset(flow.client)
            self.flows.discard(flow)
            flow.connection.state.flows.discard(flow)
            if flow.opened:
                flow.record_close(self._loop.time(), reason)
            elif reason != "blocked":
                flow.record_blocked(Decision("blocked", reason, flow.connection.decision.rule))

    async def _serve(self, flow: LiveFlow) -> str:
        """Carry ``flow`` to its end; why it ended."""
        command = await self._hello(flow)
        flow.decided()
        if isinstance(command, Resolve):
            command = flow.connection.answered(await self._upstream.resolve(command.name))
        match command:
            case Block(decision):
                flow.record_blocked(decision)
                return "blocked"
            case Dial():
                return await self._dial(flow, command)
            case Fail(reason):
                flow.record_open()
                return reason
            case _:
                raise AssertionError(command)

    async def _hello(self, flow: LiveFlow) -> Command:
        connection = flow.connection
        command = connection.begin()
        if not isinstance(command, Read):
            return command
        try:
            async with asyncio.timeout(self._options.hello_timeout_s):
                while isinstance(command, Read):
                    command = connection.received(await self._loop.sock_recv(flow.client, _READ))
        except TimeoutError:
            return connection.timed_out()
        except ConnectionError:
            return connection.received(b"")
        return command

    async def _dial(self, flow: LiveFlow, dial: Dial) -> str:
        flow.resolved = dial.addresses[0]
        flow.record_open()
        if not self._on_record():
            return "ledger_full"
        try:
            upstream, flow.resolved = await sockets.dial(dial.addresses, dial.port)
        except sockets.OwnAddress:
            flow.connection.decision = Decision("blocked", "floor_own_address", flow.connection.decision.rule)
            return "own_address"
        except TimeoutError:
            return "connect_timeout"
        except OSError as error:
            return "no_room" if error.errno in NO_ROOM else "connect_failed"
        try:
            return await self._join(flow, upstream, dial.head)
        finally:
            reset(upstream)  # closed already where it ended well

    async def _join(self, flow: LiveFlow, upstream: socket.socket, head: bytes) -> str:
        """Send the head and move bytes until the end, so long as the policy lets it; why it ended."""
        if not self._still_passes(flow):
            return "policy"
        if head:
            await self._loop.sock_sendall(upstream, head)
        relay = Relay(flow.client, upstream, pipes=self._pipes, loop=self._loop, sent_up=len(head))
        if not self._still_passes(flow):
            return "policy"
        flow.relay = relay
        relay.start()
        try:
            return await relay.finished
        finally:
            relay.abort("gateway_stopped")

    def _still_passes(self, flow: LiveFlow) -> bool:
        """Judge by the policy as it is now: it may have changed while we waited."""
        return flow.connection.judge_live(flow.resolved).passes

    def _on_record(self) -> bool:
        """True once everything recorded so far outlives this process; False where that stops the flow."""
        try:
            self._recorder.ledger.flush()
        except LedgerFull:
            return not self._options.block_when_ledger_full
        return True

    async def _end(self, flows: set[LiveFlow], reason: str) -> int:
        for flow in flows:
            flow.abort(reason)
        tasks = [flow.task for flow in flows if flow.task is not None]
        if tasks:
            await asyncio.wait(tasks)
        return len(tasks)
