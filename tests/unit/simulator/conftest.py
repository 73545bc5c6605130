"""A simulated GitHub without sockets, called as the ASGI application that it is, with its answers checked as they come."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from openapi_core import Config, OpenAPI
from openapi_core.testing.requests import MockRequest
from openapi_core.testing.responses import MockResponse
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from orchestrator.simulator.github import GitHub
from orchestrator.simulator.github.auth import issue_token
from orchestrator.simulator.github.identity import pem_of
from orchestrator.simulator.github.jit import new_key

DATA = Path(__file__).parents[2] / "data"
SECRET = "a webhook secret"
BASE = "http://sim"


class Clock:
    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@dataclass
class Inbox:
    """A receiver of webhooks; ``status`` is what it answers."""

    status: int = 202
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    async def receive(self, request: Request) -> Response:
        self.got.append((dict(request.headers), await request.body()))
        return Response(b"taken", self.status)

    def events(self) -> list[tuple[str, str]]:
        return [(headers["x-github-event"], json.loads(body).get("action", "")) for headers, body in self.got]


@pytest.fixture(scope="session")
def private_key():
    return new_key()


@pytest.fixture(scope="session")
def runner_key():
    return new_key()


def _mended(schema: Any) -> Any:
    """GitHub's description with the two slips mended that its own answers break.

    ``nullable`` of properties whose ``enum`` has no null, which by the letter (OAS 3.0.3) refuses null; and an account
    that would have to be a user and an enterprise at once.
    """
    if isinstance(schema, list):
        return [_mended(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    done = {name: _mended(item) for name, item in schema.items()}
    if {item.get("title") for item in done.get("allOf", [])} == {"Simple User", "Enterprise"}:
        done["anyOf"] = done.pop("allOf")
    if done.get("nullable") is True and isinstance(done.get("enum"), list) and None not in done["enum"]:
        done["enum"] = [*done["enum"], None]
    return done


@pytest.fixture(scope="session")
def spec() -> dict[str, Any]:
    content: dict[str, Any] = _mended(json.loads((DATA / "github-openapi.json").read_text()))
    return content


@pytest.fixture(scope="session")
def description(spec: dict[str, Any]) -> OpenAPI:
    return OpenAPI.from_dict(spec, config=Config(spec_validator_cls=None))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
async def github(private_key, runner_key, clock: Clock, inbox: Inbox) -> AsyncIterator[GitHub]:
    receiver = Router([Route("/webhook", inbox.receive, methods=["POST"])])
    made = GitHub(
        webhook_url="http://receiver/webhook",
        webhook_secret=SECRET,
        webhook_transport=httpx.ASGITransport(receiver),
        clock=clock,
        private_key=private_key,
    )
    made.rest.spare_keys = [runner_key]
    made.hooks.start()
    yield made
    await made.hooks.stop()


@dataclass
class Client:
    """Asks the simulator as the App (``app=True``) or as its installation, and checks both sides of each exchange
    against GitHub's description; ``unchecked`` says why a request can't be.
    """

    http: httpx.AsyncClient
    github: GitHub
    description: OpenAPI
    visited: set[str] = field(default_factory=set)
    token: str = ""

    def app_jwt(self, **claims: Any) -> str:
        now = int(self.github.state.now())
        content = {"iss": str(self.github.app_record.id), "iat": now - 60, "exp": now + 540} | claims
        return jwt.encode(content, pem_of(self.github.app_record.private_key), "RS256")

    async def ask(
        self,
        method: str,
        path: str,
        content: Any = None,
        *,
        app: bool = False,
        params: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        unchecked: str = "",
        badly: bool = False,
    ) -> httpx.Response:
        """``badly``: the request itself breaks the description, on purpose."""
        token = self.app_jwt() if app else self.token
        sent = {"Authorization": f"Bearer {token}"} | (headers or {})
        reply = await self.http.request(method, path, json=content, params=params, headers=sent)
        if not unchecked:
            self.check(method, path, content, params or {}, reply, badly=badly)
        return reply

    def check(
        self,
        method: str,
        path: str,
        content: Any,
        params: dict[str, Any],
        reply: httpx.Response,
        *,
        badly: bool = False,
    ) -> None:
        body = b"" if content is None else json.dumps(content).encode()
        arguments = {name: str(value) for name, value in params.items()}
        request = MockRequest("https://api.github.com", method, path, args=arguments, data=body or None)
        kind = reply.headers.get("content-type", "application/json").split(";")[0]
        response = MockResponse(reply.content, reply.status_code, dict(reply.headers), kind)
        if not badly:
            self.description.validate_request(request)
        self.description.validate_response(request, response)
        self.visited.add(f"{method} {path}")


@pytest.fixture
async def client(github: GitHub, description: OpenAPI) -> AsyncIterator[Client]:
    installation = github.state.installations[github.installation_id]
    token = issue_token(github.state, installation, dict(installation.permissions), None)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(github.app), base_url=BASE) as http:
        yield Client(http, github, description, token=token.value)
