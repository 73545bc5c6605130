"""What admins see of a quarantine, and how they end it."""

from __future__ import annotations

import httpx
import msgspec
from fastapi import FastAPI

from orchestrator.control import admin_api, metrics, quarantine_api
from orchestrator.core.quarantine import Quarantine, Ward

from .stage import Stage


def client_of(stage: Stage) -> httpx.AsyncClient:
    app = FastAPI()
    app.include_router(quarantine_api.router(quarantine_api.QuarantineApi(stage.store, clock=stage.clock), _nobody))
    app.include_router(admin_api.router(admin_api.AdminApi(stage.store, clock=stage.clock), _nobody))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test/api/v1")


def _nobody() -> None:
    """Whoever asks is let in."""


async def held(stage: Stage) -> None:
    await stage.hosts_move()
    until = stage.now + 600
    ward = Ward(
        held={
            "host:h1": Quarantine(stage.now, "3 starts failed", until),
            "image:sha256:0": Quarantine(stage.now, "old"),
        }
    )
    await stage.redis.set(stage.store.names.ward, msgspec.json.encode(ward))


async def test_row_12_a_quarantine_is_shown_wherever_an_admin_looks(stage: Stage) -> None:
    await held(stage)
    async with client_of(stage) as client:
        shown = (await client.get("/quarantine")).json()["quarantine"]
        (host,) = (await client.get("/hosts")).json()["hosts"]
    assert [(one["subject"], one["reason"]) for one in shown] == [
        ("host:h1", "3 starts failed"),
        ("image:sha256:0", "old"),
    ]
    assert (host["state"], host["quarantine"]["reason"]) == ("quarantine", "3 starts failed")
    assert host["unfit"] == {"default": "old"}
    stage.now += 7
    text = (await metrics.scrape(stage.store, clock=stage.clock)).decode()
    assert 'ironcd_quarantine_seconds{subject="host:h1"} 7.0' in text


async def test_row_12_an_admin_lifts_it(stage: Stage) -> None:
    await held(stage)
    async with client_of(stage) as client:
        assert (await client.post("/quarantine/lift", params={"subject": "host:other"})).status_code == 404
        assert (await client.post("/quarantine/lift", params={"subject": "image:sha256:0"})).status_code == 200
        await stage.look()
        assert set((await stage.store.ward()).held) == {"host:h1"}
        assert (await client.post("/hosts/h1/uncordon")).status_code == 200
        stage.now += 1
        await stage.look()
        assert (await stage.store.ward()).held == {}
