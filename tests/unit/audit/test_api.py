"""The record over HTTP: hosts in, questions out, and a stream that follows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
from fastapi import FastAPI, HTTPException, Request

from orchestrator.audit import Ledger, router
from orchestrator.audit.tail import encode
from orchestrator.core.wire import LedgerBatch

from .conftest import batch, event


def _host(request: Request) -> str:
    token = request.headers.get("authorization", "").removeprefix("Bearer ")
    if not token.startswith("token-of-"):
        raise HTTPException(401)
    return token.removeprefix("token-of-")


def _admin(request: Request) -> None:
    if request.headers.get("authorization") != "Bearer admin":
        raise HTTPException(401)


@pytest.fixture
async def client(ledger: Ledger) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    app.include_router(router(ledger, host=_host, admin=_admin))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        yield http


async def ship(client: httpx.AsyncClient, sent: LedgerBatch, token: str = "token-of-h1") -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"}
    return await client.post("/host/v1/ledger", content=msgspec.json.encode(sent), headers=headers)


async def ask(client: httpx.AsyncClient, **params: Any) -> httpx.Response:
    return await client.get("/api/v1/egress", params=params, headers={"Authorization": "Bearer admin"})


async def test_in_and_out(client: httpx.AsyncClient) -> None:
    answer = await ship(client, batch(event(1), event(2, verdict="blocked", host="evil.example")))
    assert (answer.status_code, answer.json()) == (200, {"next_seq": 3, "checkpoint": 0})
    found = (await ask(client, verdict="blocked", job=11, repo="acme/app", host="EVIL.example")).json()
    assert [item["seq"] for item in found["events"]] == [2]
    assert found["events"][0]["who"]["repo"] == "acme/app"
    assert found["cursor"] == ""


async def test_who_may(client: httpx.AsyncClient) -> None:
    assert (await ship(client, batch(event(1)), token="admin")).status_code == 401
    assert (await ship(client, batch(event(1)), token="token-of-h2")).status_code == 403
    assert (await client.get("/api/v1/egress")).status_code == 401
    assert (await client.get("/api/v1/egress/gaps")).status_code == 401


@pytest.mark.parametrize("body", [b"", b"{}", b'{"host":"h1","first_seq":1,"lines":["nonsense"]}'])
async def test_nonsense(body: bytes, client: httpx.AsyncClient) -> None:
    answer = await client.post("/host/v1/ledger", content=body, headers={"Authorization": "Bearer token-of-h1"})
    assert answer.status_code == 400


@pytest.mark.parametrize(
    "params", [{"verdict": "maybe"}, {"limit": 0}, {"job": "x"}, {"cursor": "x"}, {"since": "now"}]
)
async def test_questions_that_cant_be_answered(params: dict[str, Any], client: httpx.AsyncClient) -> None:
    assert (await ask(client, **params)).status_code in (400, 422)


async def test_a_gap_shows(client: httpx.AsyncClient) -> None:
    await ship(client, batch(event(1)))
    for _ in range(2):
        await ship(client, batch(event(4)))
    shown = (await client.get("/api/v1/egress/gaps", headers={"Authorization": "Bearer admin"})).json()
    assert shown["hosts"] == {"h1": {"next_seq": 5}}
    assert [(gap["first"], gap["last"]) for gap in shown["gaps"]] == [(2, 3)]


async def test_following_begins_behind_the_place_that_is_named(ledger: Ledger) -> None:
    app = FastAPI()
    app.include_router(router(ledger, host=_host, admin=_admin))
    asked: list[dict[str, int] | None] = []

    async def events(*_: Any, after: dict[str, int] | None, limit: int) -> AsyncIterator[bytes]:
        asked.append(after)
        yield b"data: []\n\n"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orchestrator.audit.api.events", events)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
            place, head = encode({"h1": 4}), {"Authorization": "Bearer admin"}
            answers = [
                await http.get("/api/v1/egress", params={"follow": "true", "after": place}, headers=head),
                await http.get("/api/v1/egress?follow=true", headers={**head, "Last-Event-ID": place}),
                await http.get("/api/v1/egress?follow=true", headers=head),
                await http.get("/api/v1/egress?follow=true&after=nonsense", headers=head),
            ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 400]
    assert answers[0].headers["content-type"].startswith("text/event-stream")
    assert asked == [{"h1": 4}, {"h1": 4}, None]
