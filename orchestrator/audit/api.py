"""What the record of egress answers to: hosts that ship (``POST /host/v1/ledger``), people who ask (``GET /api/v1/egress``: ``?job= &repo= &runner= &host= &verdict= &gateway= &since= &until= &limit= &cursor=`` gives
``{"events": [...], "cursor": "..."}``, the newest that match, in the order of time; with ``follow=true`` a stream of
server-sent events: see `orchestrator.audit.follow`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Literal

import msgspec
import structlog
from fastapi import APIRouter, Depends, Header, HTTPException, Query, Request, Response
from fastapi.responses import StreamingResponse

from orchestrator.audit.follow import events
from orchestrator.audit.ledger import Ledger
from orchestrator.audit.search import LIMIT, BadCursor, find
from orchestrator.audit.search import Query as Question
from orchestrator.audit.streams import BadBatch
from orchestrator.audit.tail import BadPlace, decode
from orchestrator.core.wire import LedgerBatch

BATCH_LIMIT = 16 << 20

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
        after: str = "",
        last_event_id: Annotated[str, Header()] = "",
        *,
        follow: bool = False,
    ) -> Response:
        question = Question(job, repo, runner, name.lower(), verdict, gateway, since, until)
        try:
            if follow:
                place = decode(after or last_event_id) if after or last_event_id else None
                stream = events(ledger, question, limit=limit, after=place)
                return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
            page = await asyncio.to_thread(find, ledger, question, limit=limit, cursor=cursor)
        except (BadCursor, BadPlace) as error:
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
