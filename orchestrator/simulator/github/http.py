"""How GitHub's REST API answers, whatever the endpoint: JSON, errors, pages with Link, ETags and rate limits."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Awaitable, Callable
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.simulator.github.auth import Caller, Refused, caller_of
from orchestrator.simulator.github.engine import Engine
from orchestrator.simulator.github.hooks import Hooks
from orchestrator.simulator.github.state import State

DOCS = "https://docs.github.com/rest"
WINDOW_S = 3600
LIMITS = {
    "core": 5000,
    "search": 30,
    "graphql": 5000,
    "integration_manifest": 5000,
    "code_search": 10,
    "actions_runner_registration": 10_000,
}


class Rates:
    """Primary rate limits: a count per caller and resource that starts again each hour."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.limits = dict(LIMITS)
        self._used: dict[tuple[str, str], int] = {}
        self._resets: dict[str, int] = {}

    def view(self, who: str, resource: str) -> dict[str, int]:
        now = int(self._state.now())
        if self._resets.get(who, 0) <= now:
            self._resets[who] = now + WINDOW_S
            self._used = {key: count for key, count in self._used.items() if key[0] != who}
        limit, used = self.limits[resource], self._used.get((who, resource), 0)
        return {"limit": limit, "used": used, "remaining": max(0, limit - used), "reset": self._resets[who]}

    def spend(self, who: str, resource: str) -> bool:
        """Count one request; False where nothing was left."""
        left = self.view(who, resource)["remaining"]
        if left > 0:
            self._used[who, resource] = self._used.get((who, resource), 0) + 1
        return left > 0

    def headers(self, who: str, resource: str) -> dict[str, str]:
        view = self.view(who, resource)
        return {
            "X-RateLimit-Limit": str(view["limit"]),
            "X-RateLimit-Remaining": str(view["remaining"]),
            "X-RateLimit-Used": str(view["used"]),
            "X-RateLimit-Reset": str(view["reset"]),
            "X-RateLimit-Resource": resource,
        }


class Call:
    """One request to the REST API with all that an endpoint needs to answer it."""

    def __init__(self, request: Request, rest: Rest, caller: Caller, body: Any) -> None:
        self.request = request
        self.rest = rest
        self.state = rest.state
        self.engine = rest.engine
        self.hooks = rest.hooks
        self.caller = caller
        self.body = body

    def path(self, name: str) -> str:
        return str(self.request.path_params[name])

    def number(self, name: str) -> int:
        """A path parameter that must be a number; anything else isn't found."""
        try:
            return int(self.path(name))
        except ValueError:
            raise Refused(404, "Not Found") from None

    def json_object(self) -> dict[str, Any]:
        if self.body is None:
            return {}
        if not isinstance(self.body, dict):
            raise Refused(422, "Invalid request.\n\nFor 'links/0/schema', the body is not an object.", errors=[])
        return self.body

    def query_number(self, name: str, default: int, *, most: int) -> int:
        try:
            return max(1, min(most, int(self.request.query_params.get(name, default))))
        except ValueError:
            return default

    def page(self, items: list[Any]) -> tuple[list[Any], dict[str, str]]:
        """The page of ``items`` that was asked for, and the Link header to the others."""
        size = self.query_number("per_page", 30, most=100)
        number = self.query_number("page", 1, most=1_000_000)
        last = max(1, math.ceil(len(items) / size))
        links: dict[str, int] = {}
        if number < last:
            links.update(next=number + 1, last=last)
        if number > 1:
            links.update(prev=min(number - 1, last), first=1)
        text = ", ".join(
            f'<{self.request.url.include_query_params(page=page)}>; rel="{rel}"' for rel, page in links.items()
        )
        return items[(number - 1) * size : number * size], {"Link": text} if text else {}


def reply(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    body = b"" if content is None else json.dumps(content).encode()
    return Response(
        body, status, headers=headers, media_type=None if content is None else "application/json; charset=utf-8"
    )


def refusal(error: Refused) -> Response:
    content: dict[str, Any] = {
        "message": error.message,
        "documentation_url": DOCS,
        "status": str(error.status),
    }
    if error.errors is not None:
        content["errors"] = error.errors
    return reply(content, error.status)


Endpoint = Callable[[Call], Awaitable[Response]]


class Rest:
    """Turns endpoints into Starlette routes with GitHub's manners around them."""

    def __init__(self, state: State, engine: Engine, hooks: Hooks, url_of: Callable[[str], str]) -> None:
        self.state = state
        self.engine = engine
        self.hooks = hooks
        self.url_of = url_of
        self.rates = Rates(state)
        self.download: dict[str, Any] | None = None
        """What `runners/downloads` offers."""
        self.spare_keys: list[rsa.RSAPrivateKey] = []
        """Where set, registrations share these keys in turn: a burst then isn't held up by making keys."""
        self._turn = 0

    def spare_key(self) -> rsa.RSAPrivateKey:
        self._turn += 1
        return self.spare_keys[self._turn % len(self.spare_keys)]

    def route(self, method: str, path: str, endpoint: Endpoint, *, app: bool = False, open_: bool = False) -> Route:
        """``app``: the App's JWT is wanted; ``open_``: anybody may ask; otherwise an installation's token."""

        async def handle(request: Request) -> Response:
            return await self._handle(request, endpoint, app=app, open_=open_)

        return Route(path, handle, methods=[method], name=f"{method} {path}")

    async def _handle(self, request: Request, endpoint: Endpoint, *, app: bool, open_: bool) -> Response:
        resource = "actions_runner_registration" if _registers(request.url.path) else "core"
        who = "anonymous"
        try:
            caller = caller_of(self.state, request.headers.get("authorization", ""))
            who = "app" if caller.app else f"installation-{caller.installation.id}" if caller.installation else who
            _admit(caller, app=app, open_=open_)
            if self.rates.view(who, resource)["remaining"] == 0 and request.url.path != "/rate_limit":
                raise Refused(403, f"API rate limit exceeded for {who}.")
            response = await endpoint(Call(request, self, caller, await _body(request)))
        except Refused as error:
            response = refusal(error)
        response = _revalidate(request, response)
        if response.status_code != 304 and request.url.path != "/rate_limit":
            self.rates.spend(who, resource)
        for name, value in self.rates.headers(who, resource).items():
            response.headers.setdefault(name, value)
        response.headers.setdefault("X-GitHub-Media-Type", "github.v3; format=json")
        response.headers.setdefault("X-GitHub-Request-Id", f"{self.state.next_id():04X}:SIM")
        return response


def _registers(path: str) -> bool:
    return path.endswith(("/generate-jitconfig", "/registration-token", "/remove-token"))


def _admit(caller: Caller, *, app: bool, open_: bool) -> None:
    if open_:
        return
    if app and not caller.app:
        raise Refused(401, "A JSON web token could not be decoded")
    if not app and caller.token is None:
        message = "Requires authentication" if not caller.app else "Bad credentials"
        raise Refused(401, message)


async def _body(request: Request) -> Any:
    raw = await request.body()
    if not raw.strip():
        return None
    try:
        return json.loads(raw)
    except ValueError:
        raise Refused(400, "Problems parsing JSON") from None


def _revalidate(request: Request, response: Response) -> Response:
    """Give a 200 an ETag, and answer 304 where the caller has it already: that costs no rate limit."""
    if request.method != "GET" or response.status_code != 200:
        return response
    tag = f'W/"{hashlib.sha256(bytes(response.body)).hexdigest()}"'
    if request.headers.get("if-none-match", "") == tag:
        return Response(status_code=304, headers={"ETag": tag})
    response.headers["ETag"] = tag
    response.headers["Cache-Control"] = "private, max-age=60, s-maxage=60"
    return response


def refused_route() -> Route:
    """What the API answers where it has no such endpoint."""

    async def refuse(_request: Request) -> Response:
        return refusal(Refused(404, "Not Found"))

    return Route("/{path:path}", refuse, methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
