"""The resolver that every VM gets, whichever one it asks: UDP and TCP sockets around `answer`."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from orchestrator.core.policy import Decision
from orchestrator.egress.acceptor import Acceptor
from orchestrator.egress.answer import Answer, answer
from orchestrator.egress.links import Links, LinkState
from orchestrator.egress.recorder import Recorder
from orchestrator.egress.relay import reset

BATCH = 64
TCP_IDLE_S = 10.0
TCP_QUERIES = 100
TCP_OPEN = 8
"""Connections to the resolver that one VM may have open."""


class Resolver:
    def __init__(self, *, links: Links, recorder: Recorder) -> None:
        self._links = links
        self._recorder = recorder
        self._loop = asyncio.get_running_loop()
        self._open: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._udp: list[socket.socket] = []
        self._acceptors: list[Acceptor] = []

    def serve(self, udp: socket.socket, tcp: socket.socket) -> None:
        """Answer on both from now on; they are closed with `close`."""
        self._udp.append(udp)
        self._loop.add_reader(udp.fileno(), self._datagrams, udp)
        self._acceptors.append(Acceptor(tcp, self._admit))

    async def close(self) -> None:
        for sock in self._udp:
            self._loop.remove_reader(sock.fileno())
            sock.close()
        self._udp.clear()
        for acceptor in self._acceptors:
            acceptor.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _datagrams(self, udp: socket.socket) -> None:
        for _ in range(BATCH):
            try:
                query, peer = udp.recvfrom(65_536)
            except BlockingIOError:
                return
            except OSError:  # an error about an earlier answer; libuv stops to watch a socket that has one
                self._loop.remove_reader(udp.fileno())
                self._loop.add_reader(udp.fileno(), self._datagrams, udp)
                return
            reply = self._reply(query, peer[0])
            if reply:
                with contextlib.suppress(OSError):
                    udp.sendto(reply, peer)

    def _admit(self, accepted: socket.SocketType, guest: str) -> None:
        client = socket.socket(fileno=accepted.detach())  # what the event loop reads from
        client.setblocking(False)
        state = self._links.of_guest(guest)
        if state is None or self._open.get(guest, 0) >= TCP_OPEN:
            reason = "limit_connections" if state else "unknown_link"
            self._record(state, Answer(decision=Decision("blocked", reason)))
            reset(client)
            return
        self._open[guest] = self._open.get(guest, 0) + 1
        task = self._loop.create_task(self._talk(client, guest))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _talk(self, client: socket.socket, guest: str) -> None:
        try:
            async with asyncio.timeout(TCP_IDLE_S):
                for _ in range(TCP_QUERIES):
                    query = await self._message(client)
                    if query is None:
                        break
                    reply = self._reply(query, guest)
                    if reply:
                        await self._loop.sock_sendall(client, len(reply).to_bytes(2, "big") + reply)
        except OSError:  # a timeout too
            pass
        finally:
            client.close()
            left = self._open.pop(guest) - 1
            if left:
                self._open[guest] = left

    async def _message(self, client: socket.socket) -> bytes | None:
        head = await self._exactly(client, 2)
        return None if head is None else await self._exactly(client, int.from_bytes(head, "big"))

    async def _exactly(self, client: socket.socket, size: int) -> bytes | None:
        data = bytearray()
        while len(data) < size:
            piece = await self._loop.sock_recv(client, size - len(data))
            if not piece:
                return None
            data += piece
        return bytes(data)

    def _reply(self, query: bytes, guest: str) -> bytes:
        state = self._links.of_guest(guest)
        if state is None:
            self._record(None, Answer(decision=Decision("blocked", "unknown_link")))
            return b""
        if not state.queries.take(self._loop.time()):
            self._record(state, Answer(decision=Decision("blocked", "limit_rate")))
            return b""
        answered = answer(query, state)
        if answered.decision is not None:
            self._record(state, answered)
        return answered.wire

    def _record(self, state: LinkState | None, answered: Answer) -> None:
        assert answered.decision is not None
        event = self._recorder.event(
            "dns",
            state,
            "dns",
            answered.decision,
            host=answered.name,
            host_source="dns" if answered.name else "",
            port=53,
            flags=answered.decision.flags,
        )
        if state is None:
            self._recorder.limited("", event)
        else:
            self._recorder.limited(state.link.tap, event, per_second=state.link.limits.events_per_second)
