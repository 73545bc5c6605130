"""The record over HTTP: hosts in, questions out, and a stream that follows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
from fastapi import FastAPI, HTTPException, Request

from orchestrator.audit import Ledger, router
from orchestrator.audit.api import _follow
from orchestrator.audit.search import Query
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


async def test_following_sends_each_once(ledger: Ledger) -> None:
    await ledger.receive(batch(event(1)))
    stream = _follow(ledger, Query(repo="acme/app"), 100)
    got = [await anext(stream)]
    waiting = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    await ledger.receive(batch(event(1), event(2)))
    got.append(await asyncio.wait_for(waiting, 5))
    assert [msgspec.json.decode(item.removeprefix(b"data: "))["seq"] for item in got] == [1, 2]
    await stream.aclose()
