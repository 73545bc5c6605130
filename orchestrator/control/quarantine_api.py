"""What admins call about hosts and images that get no new runner because starts on them failed.

==================================  ==========================================================
``GET /api/v1/quarantine``          who is in quarantine, since when, until when and why
``POST /api/v1/quarantine/lift``    ``?subject=host:NAME`` or ``image:DIGEST`` ends one at once
==================================  ==========================================================
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
import structlog
from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response

from orchestrator.control.store import Store
from orchestrator.core.errors import StoreError
from orchestrator.core.quarantine import Ward

log = structlog.get_logger()


class QuarantineApi:
    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock

    async def show(self) -> Response:
        held = view(await self._ask(self._store.ward()))
        return Response(msgspec.json.encode({"quarantine": held}), media_type="application/json")

    async def lift(self, subject: str = Query(max_length=300)) -> Response:
        """404 where nobody of that name is in quarantine.  The worker's next look does it."""
        if subject not in (await self._ask(self._store.ward())).held:
            raise HTTPException(404, f"{subject} isn't in quarantine")
        await self._ask(self._store.lift(subject, self._clock()))
        log.info("quarantine_lifted", subject=subject)
        return Response(msgspec.json.encode({"subject": subject, "lifted": True}), media_type="application/json")

    async def _ask(self, call: Any) -> Any:
        try:
            return await call
        except StoreError as error:
            raise HTTPException(503, error.as_dict()) from None


def view(ward: Ward) -> list[dict[str, Any]]:
    """As the API shows it: ``until`` 0 where only a person ends it."""
    return [
        {"subject": subject, "since": quarantine.since, "until": quarantine.until, "reason": quarantine.reason}
        for subject, quarantine in sorted(ward.held.items())
    ]


def router(api: QuarantineApi, authenticate: Callable[[Request], None]) -> APIRouter:
    routes = APIRouter(prefix="/api/v1/quarantine", dependencies=[Depends(authenticate)])
    routes.add_api_route("", api.show, methods=["GET"], response_class=Response)
    routes.add_api_route("/lift", api.lift, methods=["POST"], response_class=Response)
    return routes
