"""What the record of egress answers to: hosts that ship (``POST /host/v1/ledger``), people who ask (``GET /api/v1/egress``).

``GET /api/v1/egress``: ``?job= &repo= &runner= &host= &verdict= &gateway= &since= &until= &limit= &cursor=`` gives
``{"events": [...], "cursor": "..."}``, the newest that match, in the order of time; with ``follow=true`` a stream of
server-sent events: those that match so far, then each as it comes in.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Literal

import msgspec
import structlog
from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi.responses import StreamingResponse

from orchestrator.audit.ledger import Ledger
from orchestrator.audit.search import LIMIT, BadCursor, find, place_of
from orchestrator.audit.search import Query as Question
from orchestrator.audit.streams import BadBatch
from orchestrator.core.wire import LedgerBatch

BATCH_LIMIT = 16 << 20
BEAT_S = 15.0
OVERLAP_S = 60.0
"""A follower looks so far back each time: hosts ship with delay, and not in step with one another."""

log = structlog.get_logger()


def router(ledger: Ledger, *, host: Callable[[Request], str], admin: Callable[[Request], None]) -> APIRouter:
    """The routes of ``ledger``.  ``host`` names the host that sends a request, ``admin`` lets admins in; both raise 401."""
    routes = APIRouter()

    async def receive(request: Request) -> Response:
        name = host(request)
        try:
            batch = msgspec.json.decode(await _body(request), type=LedgerBatch)
            if batch.host != name:
                raise HTTPException(403, "this token is another host's")
            ack = await ledger.receive(batch)
        except (msgspec.MsgspecError, BadBatch) as error:
            log.warning("ledger_refused", host=name, error=str(error))
            raise HTTPException(400, str(error)) from None
        except OSError as error:
            log.error("ledger_not_written", host=name, error=str(error))  # noqa: TRY400 - the error says it all
            raise HTTPException(503, "the record can't be written") from None
        return _json(ack)

    async def search(  # noqa: PLR0917 - the parameters of the query
        job: int = 0,
        repo: str = "",
        runner: str = "",
        name: Annotated[str, Query(alias="host")] = "",
        verdict: Literal["", "allowed", "warn", "blocked"] = "",
        gateway: str = "",
        since: float = 0.0,
        until: float = 0.0,
        limit: Annotated[int, Query(ge=1, le=LIMIT)] = 1000,
        cursor: str = "",
        *,
        follow: bool = False,
    ) -> Response:
        question = Question(job, repo, runner, name.lower(), verdict, gateway, since, until)
        if follow:
            return StreamingResponse(_follow(ledger, question, limit), media_type="text/event-stream")
        try:
            page = await asyncio.to_thread(find, ledger, question, limit=limit, cursor=cursor)
        except BadCursor as error:
            raise HTTPException(400, str(error)) from None
        return _json(page)

    async def gaps() -> Response:
        found = [gap for name in ledger.streams() for gap in ledger.gaps(name)]
        hosts = {name: {"next_seq": ledger.next_seq(name)} for name in ledger.streams()}
        return _json({"hosts": hosts, "gaps": found})

    routes.add_api_route("/host/v1/ledger", receive, methods=["POST"], response_class=Response)
    allowed = [Depends(admin)]
    routes.add_api_route("/api/v1/egress", search, methods=["GET"], dependencies=allowed, response_class=Response)
    routes.add_api_route("/api/v1/egress/gaps", gaps, methods=["GET"], dependencies=allowed, response_class=Response)
    return routes


async def _follow(ledger: Ledger, question: Question, limit: int) -> AsyncIterator[bytes]:
    """Events as ``data:`` lines.  What was sent is known by its place, so overlap sends nothing twice."""
    sent: dict[tuple[str, int], float] = {}
    page = await asyncio.to_thread(find, ledger, question, limit=limit)
    while True:
        for event in page.events:
            if (event.gateway, event.seq) not in sent:
                sent[event.gateway, event.seq] = event.ts
                yield b"data: " + msgspec.json.encode(event) + b"\n\n"
        arrived = ledger.received
        await ledger.wait(BEAT_S)
        if ledger.received == arrived:
            yield b": nothing new\n\n"
        latest = max((place_of(event)[0] for event in page.events), default=question.since)
        since = max(question.since, latest - OVERLAP_S)
        sent = {key: ts for key, ts in sent.items() if ts >= since}
        page = await asyncio.to_thread(find, ledger, msgspec.structs.replace(question, since=since), limit=LIMIT)


async def _body(request: Request) -> bytes:
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > BATCH_LIMIT:
            raise HTTPException(413, "too large")
        chunks.append(chunk)
    return b"".join(chunks)


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json", headers={"Cache-Control": "no-store"})
