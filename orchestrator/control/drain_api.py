"""Draining a host: by an admin, or by the host itself when it goes down.

=================================  ==========================================================================
``POST /api/v1/hosts/{h}/drain``   ``?deadline_s= &why=``: empty it; jobs may run for so long.  Again: a new deadline
``POST /api/v1/hosts/{h}/undrain`` it takes runners again; one that was cordoned stays so
``GET /api/v1/hosts/{h}/drain``    how far it is
``POST /host/v1/drain``            the same of the host that calls, with its own token: it needs no admin's
``POST /host/v1/undrain``          takes back what the host itself asked for, and nothing else
``GET /host/v1/drain``
=================================  ==========================================================================
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import structlog
from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response

from orchestrator.control.answering import as_json, asked
from orchestrator.control.records import RunnerRecord
from orchestrator.control.store import Store
from orchestrator.core.decided import Drain

DEADLINE_S = 1800.0
LONGEST_S = 7 * 86400.0
GOING_DOWN = "the host goes down"

log = structlog.get_logger()


def drain_view(drain: Drain | None, runners: Iterable[RunnerRecord], now: float) -> dict[str, Any]:
    """How far a host is with being emptied; ``left_s`` counts down to the deadline."""
    mine = [record for record in runners if record.life.phase != "GONE"]
    busy = sum(1 for record in mine if record.life.phase == "RUNNING")
    view: dict[str, Any] = {"draining": drain is not None, "runners": len(mine), "busy": busy, "empty": not mine}
    if drain is not None:
        view |= msgspec.to_builtins(drain) | {
            "by": drain.by,
            "why": drain.why,
            "left_s": round(max(0.0, drain.until - now), 1),
        }
    return view


class DrainApi:
    def __init__(
        self, store: Store, *, hosts: frozenset[str] = frozenset(), clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._hosts = hosts
        self._clock = clock

    async def drain(
        self,
        host: str,
        deadline_s: float = Query(default=DEADLINE_S, ge=0, le=LONGEST_S),
        why: str = Query(default="", max_length=200),
    ) -> Response:
        await self._must_know(host)
        now = self._clock()
        return await self._begin(host, Drain(now, now + deadline_s, why))

    async def undrain(self, host: str) -> Response:
        await self._must_know(host)
        await asked(self._store.undrain(host))
        log.info("host_undrained", host=host)
        return await self.show(host)

    async def show(self, host: str) -> Response:
        await self._must_know(host)
        drain = (await asked(self._store.draining())).get(host)
        runners = [r for r in await asked(self._store.live_runners()) if r.life.host == host]
        return as_json({"host": host, **drain_view(drain, runners, self._clock())})

    async def drain_itself(self, host: str, deadline_s: float) -> Response:
        """What an admin asked for stands, but that the host has no longer than it says."""
        now = self._clock()
        known = (await asked(self._store.draining())).get(host)
        wished = Drain(now, now + deadline_s, GOING_DOWN, "host")
        if known is not None and known.by == "admin":
            wished = msgspec.structs.replace(known, until=min(known.until, wished.until))
        return await self._begin(host, wished)

    async def undrain_itself(self, host: str) -> Response:
        known = (await asked(self._store.draining())).get(host)
        if known is None:
            await asked(self._store.undrain_its_own(host))
        elif known.by == "host":
            await asked(self._store.undrain(host))
            log.info("host_undrained", host=host)
        return await self.show(host)

    async def _begin(self, host: str, drain: Drain) -> Response:
        await asked(self._store.drain(host, drain))
        log.info("host_drained", host=host, until=drain.until, why=drain.why, by=drain.by)
        return await self.show(host)

    async def _must_know(self, host: str) -> None:
        if host not in self._hosts and host not in await asked(self._store.sightings()):
            raise HTTPException(404, f"no host {host} is known")


def admin_router(api: DrainApi, authenticate: Callable[[Request], None]) -> APIRouter:
    routes = APIRouter(prefix="/api/v1/hosts/{host}", dependencies=[Depends(authenticate)])
    routes.add_api_route("/drain", api.drain, methods=["POST"], response_class=Response)
    routes.add_api_route("/undrain", api.undrain, methods=["POST"], response_class=Response)
    routes.add_api_route("/drain", api.show, methods=["GET"], response_class=Response)
    return routes


def host_router(api: DrainApi, authenticate: Callable[[Request], str]) -> APIRouter:
    """A host is told of itself, and drains itself, whatever it says of its name."""
    routes = APIRouter(prefix="/host/v1", include_in_schema=False)

    async def drain(request: Request, deadline_s: float = Query(default=DEADLINE_S, ge=0, le=LONGEST_S)) -> Response:
        return await api.drain_itself(authenticate(request), deadline_s)

    async def undrain(request: Request) -> Response:
        return await api.undrain_itself(authenticate(request))

    async def show(request: Request) -> Response:
        return await api.show(authenticate(request))

    routes.add_api_route("/drain", drain, methods=["POST"], response_class=Response)
    routes.add_api_route("/undrain", undrain, methods=["POST"], response_class=Response)
    routes.add_api_route("/drain", show, methods=["GET"], response_class=Response)
    return routes
