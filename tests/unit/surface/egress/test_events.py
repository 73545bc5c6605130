"""Past events over the very routes that serve them, a page at a time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import msgspec
import pytest
from fastapi import FastAPI, Request

from orchestrator import audit
from orchestrator.audit.engine import Engine
from orchestrator.audit.seal import seal_all
from orchestrator.core.errors import UserError
from orchestrator.core.flow import Event, Identity
from orchestrator.core.wire import LedgerBatch
from orchestrator.surface.api_client import ApiClient
from orchestrator.surface.egress import events as loader
from orchestrator.surface.egress.events import Wanted, from_control, from_files


def event(seq: int, repo: str) -> Event:
    who = Identity(runner="R", repo=repo, job_id=seq)
    return Event(
        "open", 1_700_000_000.0 + seq, seq, "h1", who, "tls", "blocked", "not_allowed", host=f"n{seq}.example", port=443
    )


def anyone(_request: Request) -> None:
    pass


def over(app: FastAPI) -> httpx.MockTransport:
    async def ask(request: httpx.Request) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.get(request.url, headers=request.headers)

    def answer(request: httpx.Request) -> httpx.Response:
        answered = asyncio.run(ask(request))
        return httpx.Response(answered.status_code, content=answered.content)

    return httpx.MockTransport(answer)


def test_every_event_comes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = audit.Ledger(tmp_path, clock=lambda: 1_700_000_100.0)
    events = [event(seq, "acme/app" if seq % 3 else "acme/other") for seq in range(1, 30)]
    lines = tuple(msgspec.json.encode(one).decode() for one in events)
    asyncio.run(ledger.receive(LedgerBatch("h1", 1, lines)))
    app = FastAPI()
    app.include_router(audit.router(ledger, host=lambda _request: "h1", admin=anyone))
    monkeypatch.setattr(loader, "PAGE", 4)
    client = ApiClient("http://test", "t", transport=over(app))
    assert sorted(from_control(client, Wanted()), key=lambda one: one.seq) == events
    mine = Wanted(repo="acme/app", since=1_700_000_010.0, until=1_700_000_020.0)
    assert {one.seq for one in from_control(client, mine)} == {10, 11, 13, 14, 16, 17, 19}
    upper = msgspec.structs.replace(mine, repo="Acme/APP")
    assert list(from_control(client, upper)) == list(from_control(client, mine))
    assert [one for one in events if upper.takes(one)] == [one for one in events if mine.takes(one)]
    assert list(from_control(client, Wanted(repo="no/body"))) == []


def test_the_record_is_read_with_its_sealed_days(tmp_path: Path) -> None:
    now = [1_700_000_100.0]
    ledger = audit.Ledger(tmp_path, clock=lambda: now[0])
    events = [event(seq, "acme/app") for seq in range(1, 9)]
    lines = [msgspec.json.encode(one).decode() for one in events]
    asyncio.run(ledger.receive(LedgerBatch("h1", 1, tuple(lines[:5]))))
    now[0] += 2 * 86400.0
    engine = Engine(tmp_path)
    seal_all(tmp_path, engine, now[0])
    engine.close()
    asyncio.run(ledger.receive(LedgerBatch("h1", 6, tuple(lines[5:]))))
    assert sorted(path.suffix for path in (tmp_path / "h1").glob("*.jsonl*")) == [".jsonl", ".zst"]
    assert list(from_files(tmp_path, Wanted())) == events
    assert list(from_files(tmp_path / "h1", Wanted())) == events
    (sealed,) = (tmp_path / "h1").glob("*.zst")
    assert list(from_files(sealed, Wanted())) == events[:5]
    sealed.write_bytes(sealed.read_bytes()[:50])
    with pytest.raises(UserError):
        list(from_files(sealed, Wanted()))
