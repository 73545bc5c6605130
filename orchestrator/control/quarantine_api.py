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

import structlog
from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response

from orchestrator.control.answering import as_json, asked
from orchestrator.control.store import Store
from orchestrator.core.quarantine import Ward

log = structlog.get_logger()


class QuarantineApi:
    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock

    async def show(self) -> Response:
        held = view(await asked(self._store.ward()))
        return as_json({"quarantine": held})

    async def lift(self, subject: str = Query(max_length=300)) -> Response:
        """404 where nobody of that name is in quarantine.  The worker's next look does it."""
        if subject not in (await asked(self._store.ward())).held:
            raise HTTPException(404, f"{subject} isn't in quarantine")
        await asked(self._store.lift(subject, self._clock()))
        log.info("quarantine_lifted", subject=subject)
        return as_json({"subject": subject, "lifted": True})


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
