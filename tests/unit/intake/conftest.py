"""A receiver over an in-memory Redis, called as the ASGI application that it is."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import fakeredis
import httpx
import pytest
from fastapi import FastAPI

from orchestrator.core.inbox import Keys
from orchestrator.intake import Inbox, Receiver, router
from orchestrator.intake.signature import sign

SECRET = b"a webhook secret"
EXAMPLES: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parents[2] / "data/webhook-examples.json").read_text()
)


@pytest.fixture
def keys() -> Keys:
    return Keys("t:")


@pytest.fixture
async def redis() -> AsyncIterator[fakeredis.FakeAsyncRedis]:
    client = fakeredis.FakeAsyncRedis()
    yield client
    await client.aclose()


@pytest.fixture
def hints() -> list[str]:
    return []


@pytest.fixture
def inbox(redis: fakeredis.FakeAsyncRedis, keys: Keys, hints: list[str]) -> Inbox:
    return Inbox(redis, keys, hint=lambda: hints.append("look"))


@pytest.fixture
async def client(inbox: Inbox) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    app.include_router(router(Receiver(inbox, lambda: (SECRET, b"another"))))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        yield http
    await inbox.close()


Deliver = Callable[..., Any]


@pytest.fixture
def deliver(client: httpx.AsyncClient) -> Deliver:
    """Post a signed delivery; ``body`` is bytes or JSON."""

    async def post(
        body: Any, *, event: str = "workflow_job", guid: str = "g-1", secret: bytes = SECRET, **headers: str
    ) -> httpx.Response:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        all_headers = {
            "X-GitHub-Event": event,
            "X-GitHub-Delivery": guid,
            "X-Hub-Signature-256": sign(raw, secret),
            "Content-Type": "application/json",
        } | {name.replace("_", "-"): value for name, value in headers.items()}
        return await client.post("/webhook", content=raw, headers=all_headers)

    return post
