"""What hosts call: a long poll of their desired state, and a post of what they see.  See `orchestrator.core.wire`.

A host authenticates with its own token and is told of itself only; what it posts in another's name is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

import msgspec
import structlog
from fastapi import APIRouter, HTTPException, Request, Response

from orchestrator.control.records import Sighting
from orchestrator.control.sealed import Seal
from orchestrator.control.store import Store
from orchestrator.core.errors import StoreError
from orchestrator.core.wire import Desired, DesiredRunner, Observed

WAIT_LIMIT_S = 55.0
LOOK_AGAIN_S = 2.0
"""A wake-up that got lost delays a host by no more."""
OBSERVED_LIMIT = 4 << 20

Call = Callable[[Request], Awaitable[Response]]
log = structlog.get_logger()


class Wakes:
    """Tells waiting polls that their host has something new."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._events: dict[str, asyncio.Event] = {}
        self._listener: asyncio.Task[None] | None = None

    def event(self, host: str) -> asyncio.Event:
        if self._listener is None or self._listener.done():
            self._listener = asyncio.create_task(self._listen())
        return self._events.setdefault(host, asyncio.Event())

    async def close(self) -> None:
        """Stop listening.  A client that is just reading may swallow a cancellation: it is told until it has ended."""
        while self._listener is not None and not self._listener.done():
            self._listener.cancel()
            await asyncio.wait([self._listener], timeout=0.5)

    async def _listen(self) -> None:
        try:
            async for host in self._store.wakes():
                if host in self._events:
                    self._events[host].set()
        except StoreError as error:
            log.warning("wakes_lost", error=error.message)
            await asyncio.sleep(LOOK_AGAIN_S)


class HostsApi:
    def __init__(
        self,
        store: Store,
        seal: Seal,
        authenticate: Callable[[Request], str],
        *,
        hint: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._seal = seal
        self._authenticate = authenticate
        self._hint = hint
        self._clock = clock
        self._wakes = Wakes(store)
        self._observed = msgspec.json.Decoder(Observed)
        self._desired = msgspec.json.Decoder(Desired)

    async def desired(self, request: Request) -> Response:
        """200 with `Desired` as soon as its generation is another than ``generation``; 204 after ``wait`` seconds."""
        host = self._authenticate(request)
        known, wait = _number(request, "generation"), min(_number(request, "wait"), WAIT_LIMIT_S)
        ends = asyncio.get_running_loop().time() + wait
        while True:
            event = self._wakes.event(host)
            event.clear()
            generation, raw = await self._store.desired(host)
            if raw is not None and generation != known:
                return _json(await self._whole(raw))
            left = ends - asyncio.get_running_loop().time()
            if left <= 0:
                return Response(status_code=204)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), min(left, LOOK_AGAIN_S))

    async def observed(self, request: Request) -> Response:
        host = self._authenticate(request)
        body = await _body(request)
        try:
            observed = self._observed.decode(body)
        except msgspec.MsgspecError as error:
            log.warning("observed_refused", host=host, error=str(error))
            raise HTTPException(400, str(error)) from None
        if observed.host != host:
            log.warning("observed_refused", host=host, claims=observed.host)
            raise HTTPException(403, "this token is another host's")
        if await self._store.put_sighting(Sighting(self._clock(), observed)):
            self._hint()
        return Response(status_code=204)

    async def close(self) -> None:
        await self._wakes.close()

    async def _whole(self, raw: bytes) -> bytes:
        """The desired state with the JIT configurations that are still to be taken, and the time by our clock."""
        desired = self._desired.decode(raw)
        sealed = await self._store.sealed_jits([runner.id for runner in desired.runners if runner.wish == "run"])
        runners = tuple(self._with_jit(runner, sealed.get(runner.id)) for runner in desired.runners)
        return msgspec.json.encode(msgspec.structs.replace(desired, runners=runners, at=self._clock()))

    def _with_jit(self, runner: DesiredRunner, sealed: bytes | None) -> DesiredRunner:
        jit = self._seal.unseal(sealed) if sealed is not None else None
        return msgspec.structs.replace(runner, jit=jit) if jit else runner


def router(api: HostsApi) -> APIRouter:
    """The routes of ``api``, for an application to include."""
    routes = APIRouter(include_in_schema=False)
    routes.add_api_route("/host/v1/desired", _answered(api.desired), methods=["GET"])
    routes.add_api_route("/host/v1/observed", _answered(api.observed), methods=["POST"])
    return routes


def _answered(call: Call) -> Call:
    """With an error of the store answered as 503: the host goes on with what it has."""

    async def endpoint(request: Request) -> Response:
        try:
            return await call(request)
        except StoreError as error:
            return Response(msgspec.json.encode(error.as_dict()), 503, media_type="application/json")

    return endpoint


def _number(request: Request, name: str) -> float:
    try:
        value = float(request.query_params.get(name, "0"))
    except ValueError:
        raise HTTPException(400, f"{name} must be a number") from None
    if not -1 <= value < 1 << 53:
        raise HTTPException(400, f"{name} is out of range")
    return value


async def _body(request: Request) -> bytes:
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > OBSERVED_LIMIT:
            raise HTTPException(413, "too large")
        chunks.append(chunk)
    return b"".join(chunks)


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json", headers={"Cache-Control": "no-store"})
