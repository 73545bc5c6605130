"""``POST /webhook``: signature, repeat, durable inbox, 202.  Nothing is worked on before the answer.

Plain ASGI, and no framework between a delivery and its answer: a burst of a 256-job matrix comes at once.

===  ==============================================================
202  ``accepted``, ``repeat``, ``ignored`` (an event we don't read), ``aside`` (signed, but unusable or foreign): a
     5xx or 4xx would only make GitHub or a person send it again
401  signature wrong or missing; no detail
413  longer than 25 MB, GitHub's own limit
503  it couldn't be made durable; GitHub lists it as failed, and it will be asked for again
===  ==============================================================
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

import structlog
from fastapi import APIRouter
from starlette.routing import Route

from orchestrator.core.errors import StoreError
from orchestrator.core.inbox import Delivery, InstallationNews
from orchestrator.core.job import Job
from orchestrator.intake.inbox import Inbox
from orchestrator.intake.payload import HANDLED, Unusable, read
from orchestrator.intake.signature import is_signed

BODY_LIMIT = 25 * 1024 * 1024
GUID_LIMIT = 128

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

log = structlog.get_logger()

_HEADERS: list[tuple[bytes, bytes]] = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]


class _TooLarge(Exception):
    pass


class _Gone(Exception):
    """The client hung up before its body was whole."""


class Receiver:
    """An ASGI application for one path.  ``secrets`` is called for each delivery and gives those now in force."""

    def __init__(
        self,
        inbox: Inbox,
        secrets: Callable[[], Sequence[bytes]],
        *,
        clock: Callable[[], float] = time.time,
        installations: frozenset[int] = frozenset(),
    ) -> None:
        self._inbox = inbox
        self._secrets = secrets
        self._clock = clock
        self._installations = installations
        """Where it isn't empty, deliveries of other installations are put aside unseen."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        try:
            status, answer = await self._judge(headers, receive)
        except _TooLarge:
            status, answer = 413, "too large"
        except _Gone:
            return
        except StoreError:
            status, answer = 503, "unavailable"
        await _reply(send, status, answer)

    async def _judge(self, headers: dict[bytes, bytes], receive: Receive) -> tuple[int, str]:
        signature = headers.get(b"x-hub-signature-256")
        if signature is None:
            return self._refuse("no signature")
        body = await _body(headers, receive)
        if not is_signed(body, signature, self._secrets()):
            return self._refuse("wrong signature")
        return 202, await self._keep(headers, body)

    def _refuse(self, why: str) -> tuple[int, str]:
        log.info("delivery_refused", why=why)
        self._inbox.count("unsigned")
        return 401, "unauthorized"

    async def _keep(self, headers: dict[bytes, bytes], body: bytes) -> str:
        at = self._clock()
        event = headers.get(b"x-github-event", b"").decode("latin-1")[:64]
        guid = headers.get(b"x-github-delivery", b"").decode("latin-1")
        if not guid or len(guid) > GUID_LIMIT or not event:
            made_up = "unnamed-" + hashlib.sha256(body).hexdigest()
            aside = Delivery(made_up, event or "unnamed", at)
            await self._inbox.put_aside(aside, body, "no delivery id or no event name in its headers")
            return "aside"
        if event not in HANDLED:
            self._inbox.count("ignored")
            return "ignored"
        form = headers.get(b"content-type", b"").startswith(b"application/x-www-form-urlencoded")
        try:
            news = read(event, body, form=form, at=at)
        except Unusable as error:
            log.warning("delivery_unusable", guid=guid, github_event=event, why=str(error))
            stored = await self._inbox.put_aside(Delivery(guid, event, at), body, str(error))
            return "repeat" if stored == "repeat" else "aside"
        return await self._store(_delivery(guid, event, at, news), body)

    async def _store(self, delivery: Delivery, body: bytes) -> str:
        installation = delivery.job.installation if delivery.job else 0
        if self._installations and installation and installation not in self._installations:
            stored = await self._inbox.put_aside(delivery, body, f"foreign installation {installation}")
        else:
            stored = await self._inbox.put(delivery, body)
        return stored if stored in ("accepted", "repeat") else "aside"


def _delivery(guid: str, event: str, at: float, news: Job | InstallationNews) -> Delivery:
    if isinstance(news, Job):
        return Delivery(guid, event, at, job=news)
    return Delivery(guid, event, at, installation=news)


def router(receiver: Receiver) -> APIRouter:
    """The route of ``receiver``, for an application to include."""
    return APIRouter(routes=[Route("/webhook", receiver, methods=["POST"])])


async def _body(headers: dict[bytes, bytes], receive: Receive) -> bytes:
    """The raw body.  Raises `_TooLarge` as soon as that is known, before the rest is read."""
    length = headers.get(b"content-length", b"")
    if length.isdigit() and int(length) > BODY_LIMIT:
        raise _TooLarge
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > BODY_LIMIT:
            raise _TooLarge
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def _reply(send: Send, status: int, answer: str) -> None:
    body = b'{"status":"' + answer.encode("ascii") + b'"}'
    start = {
        "type": "http.response.start",
        "status": status,
        "headers": [*_HEADERS, (b"content-length", b"%d" % len(body))],
    }
    await send(start)
    await send({"type": "http.response.body", "body": body})
