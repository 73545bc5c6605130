"""One ASGI application for all of GitHub's names: the Host header says which of them was meant.

On loopback, where a client can't be made to use GitHub's names, ``/_host/NAME/...`` means the same.  An unknown name is
the API's.  Faults are applied here, before and after the endpoint.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping

from starlette.responses import PlainTextResponse, Response
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrator.simulator.github.faults import Faults, ResponseFault
from orchestrator.simulator.github.jit import API

_PREFIX = "/_host/"
ADMIN = "/_sim"


class Hosts:
    """Sends each request to the application of its host; ``admin`` answers only on loopback, by a loopback name."""

    def __init__(self, apps: Mapping[str, ASGIApp], admin: ASGIApp, faults: Faults) -> None:
        self._apps = dict(apps)
        self._admin = admin
        self._faults = faults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"].startswith(ADMIN + "/"):
            app = self._admin if _is_local(scope) else PlainTextResponse("Not Found", 404)
            await app(scope, receive, send)
            return
        host, scope = _host_of(scope)
        host = host if host in self._apps else API
        fault = self._faults.response(host, scope["method"], scope["path"])
        if fault is None:
            await self._apps[host](scope, receive, send)
        else:
            await _misbehave(fault, self._apps[host], scope, receive, send)


async def _misbehave(fault: ResponseFault, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    if fault.delay_s and not fault.after:
        await asyncio.sleep(fault.delay_s)
    if not fault.status and not (fault.after and fault.delay_s):
        await app(scope, receive, send)
        return
    if fault.after:
        kept: list[dict[str, object]] = []

        async def keep(message: object) -> None:
            kept.append(dict(message))  # type: ignore[call-overload]

        await app(scope, receive, keep)
        await asyncio.sleep(fault.delay_s)
        if not fault.status:
            for message in kept:
                await send(message)
            return
    await _own_answer(fault)(scope, receive, send)


def _own_answer(fault: ResponseFault) -> Response:
    body = fault.body if fault.body is not None else {"message": "Simulated fault", "status": str(fault.status)}
    until = str(int(fault.ends)) if fault.for_s is not None else ""
    told = {name: value.replace("{until}", until) for name, value in fault.headers.items()}
    headers = {"Content-Type": "application/json; charset=utf-8", **told}
    content = b"" if fault.status in (204, 304) else json.dumps(body).encode()
    return Response(content, fault.status, headers=headers)


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def _host_of(scope: Scope) -> tuple[str, Scope]:
    path: str = scope["path"]
    if not path.startswith(_PREFIX):
        return _header(scope, b"host").rsplit(":", 1)[0].lower(), scope
    host, _, rest = path.removeprefix(_PREFIX).partition("/")
    return host.lower(), {**scope, "path": "/" + rest, "raw_path": ("/" + rest).encode()}


def _is_local(scope: Scope) -> bool:
    client = (scope.get("client") or ("",))[0]
    name = _header(scope, b"host").rsplit(":", 1)[0].lower()
    return client == "127.0.0.1" and name in ("127.0.0.1", "localhost", "sim")


def router(routes: list[object]) -> Router:
    return Router(routes=routes)  # type: ignore[arg-type]
