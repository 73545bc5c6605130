"""The Unix socket on which the agent tells the gateway that a link changed (`orchestrator.core.link`).

One JSON object a line, each way.  Only root reaches the socket (mode 0600); a line that can't be read is answered with an
error, and the connection goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path

import msgspec
import structlog

from orchestrator.core.link import GatewayReply, GatewayRequest
from orchestrator.egress.gateway import Gateway
from orchestrator.egress.ledger import Ledger, LedgerFull
from orchestrator.egress.links import LinkRefused, Links
from orchestrator.egress.recorder import Recorder

MAX_LINE = 65_536
_log = structlog.get_logger()
_decoder = msgspec.json.Decoder(GatewayRequest)


class Control:
    def __init__(self, *, links: Links, gateway: Gateway, recorder: Recorder, ledger: Ledger) -> None:
        self._links = links
        self._gateway = gateway
        self._recorder = recorder
        self._ledger = ledger
        self._loop = asyncio.get_running_loop()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def serve(self, path: Path) -> None:
        """Listen on ``path``; a socket that an earlier process left there is replaced."""
        _unlink(path)
        old = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._talk, path, limit=MAX_LINE)
        finally:
            os.umask(old)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in tuple(self._writers):
                writer.close()
            await self._server.wait_closed()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while line := await reader.readline():
                reply = await self._answer(line)
                writer.write(msgspec.json.encode(reply) + b"\n")
                await writer.drain()
        except (ValueError, ConnectionError):  # a line too long, or the agent is gone
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, line: bytes) -> GatewayReply:
        try:
            request = _decoder.decode(line)
            match request.op:
                case "apply":
                    return await self._apply(request.tap)
                case "drop":
                    return await self._drop(request.tap)
                case "stats":
                    with contextlib.suppress(LedgerFull):
                        await self._ledger.durable()  # so that ``seq`` covers all that happened before the question
                    return self._state(modules=_loaded())
                case "ping":
                    return self._state()
        except LinkRefused as error:
            return GatewayReply(ok=False, error=error.message)
        except msgspec.MsgspecError as error:
            return GatewayReply(ok=False, error=f"not a request: {error}")

    async def _apply(self, tap: str) -> GatewayReply:
        """Bring the link's file in force.  Another runner's flows don't survive it, nor any that the policy forbids."""
        link = self._links.read(tap)
        before = self._links.of_tap(tap)
        closed = 0
        if before is not None and (
            before.link.identity.runner != link.identity.runner or before.link.guest_ip != link.guest_ip
        ):
            self._links.remove(tap)
            closed = await self._gateway.drop(before, "link_replaced")
        state = self._links.put(link, self._loop.time())
        closed += self._gateway.reevaluate(state)
        _log.info(
            "link_applied",
            tap=tap,
            runner=link.identity.runner,
            policy=state.policy.digest,
            generation=link.generation,
            bound=link.bound,
            flows_closed=closed,
        )
        return self._state(policy=state.policy.digest, generation=link.generation, flows_closed=closed)

    async def _drop(self, tap: str) -> GatewayReply:
        """Forget the link; answered once none of its flows is left.  A link that isn't there is dropped already."""
        state = self._links.remove(tap)
        closed = 0
        if state is not None:
            closed = await self._gateway.drop(state, "link_dropped")
            self._recorder.flush()
            self._recorder.forget(tap)
            _log.info("link_dropped", tap=tap, runner=state.link.identity.runner, flows_closed=closed)
        return self._state(flows_closed=closed)

    def _state(
        self, *, policy: str = "", generation: int = 0, flows_closed: int = 0, modules: tuple[str, ...] = ()
    ) -> GatewayReply:
        return GatewayReply(
            ok=True,
            policy=policy,
            generation=generation,
            flows_closed=flows_closed,
            links=len(self._links),
            flows=len(self._gateway.flows),
            seq=self._ledger.seq,
            modules=modules,
        )


def _unlink(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def _loaded() -> tuple[str, ...]:
    """The top-level modules of this process, as the interpreter has them."""
    return tuple(sorted({name.partition(".")[0] for name in sys.modules}))
