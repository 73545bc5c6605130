"""What hosts call: who may, what they get and when, and that nobody reads another's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest
from fastapi import FastAPI

from orchestrator.control.auth import HostTokens
from orchestrator.control.hosts_api import HostsApi, router
from orchestrator.core.machine import Capacity
from orchestrator.core.wire import Desired, Observed

from .stage import Host, Stage


@pytest.fixture
def hints() -> list[int]:
    return []


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(tmp_path, hosts=[Host("h1", 2), Host("h2", 2)])
    yield stage
    await stage.close()


@pytest.fixture
async def client(two: Stage, tmp_path: Path, hints: list[int]) -> AsyncIterator[httpx.AsyncClient]:
    for name in ("h1", "h2"):
        (tmp_path / name).write_text(f"token-of-{name}\n")
    (tmp_path / "empty").write_text("\n")
    files = {"h1": str(tmp_path / "h1"), "h2": str(tmp_path / "h2")}
    files |= {"h3": str(tmp_path / "empty"), "h4": str(tmp_path / "missing")}
    api = HostsApi(two.store, two.seal, HostTokens(files), hint=lambda: hints.append(1))
    app = FastAPI()
    app.include_router(router(api))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        yield http
    await api.close()


async def desired(client: httpx.AsyncClient, host: str = "h1", generation: int = 0, wait: float = 0) -> httpx.Response:
    params = {"generation": generation, "wait": wait}
    return await client.get("/host/v1/desired", params=params, headers={"Authorization": f"Bearer token-of-{host}"})


async def observe(client: httpx.AsyncClient, body: bytes, host: str = "h1") -> httpx.Response:
    return await client.post("/host/v1/observed", content=body, headers={"Authorization": f"Bearer token-of-{host}"})


def observed(host: str = "h1") -> bytes:
    return msgspec.json.encode(Observed(host, "b", 1.0, Capacity(8, 8192, 100), "kvm", 0))


@pytest.mark.parametrize(
    "header",
    [{}, {"Authorization": "Bearer "}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic token-of-h1"}],
)
async def test_no_token_no_answer(header: dict[str, str], client: httpx.AsyncClient) -> None:
    for method, path in (("GET", "/host/v1/desired"), ("POST", "/host/v1/observed")):
        answer = await client.request(method, path, headers=header)
        assert answer.status_code == 401
        assert "h1" not in answer.text


async def test_a_host_gets_its_own_with_the_jit(client: httpx.AsyncClient, two: Stage) -> None:
    await two.hosts_move()
    await two.deliver(two.job(1))
    await two.deliver(two.job(2))
    await two.look()
    for name in ("h1", "h2"):
        answer = await desired(client, name)
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        seen = msgspec.json.decode(answer.content, type=Desired)
        assert seen.host == name
        (runner,) = seen.runners
        assert (runner.wish, bool(runner.jit), runner.bound) == ("run", True, False)
        assert runner.boot_by > two.now
        assert runner.end_by > runner.boot_by
        assert (await desired(client, name, seen.generation)).status_code == 204


async def test_the_jit_isnt_handed_out_once_it_was_taken(client: httpx.AsyncClient, two: Stage) -> None:
    await two.hosts_move()
    await two.deliver(two.job(1))
    await two.look()
    await two.hosts_move()
    await two.look()
    seen = msgspec.json.decode((await desired(client)).content, type=Desired)
    assert [runner.jit for runner in seen.runners] == [""]


async def test_the_poll_ends_as_soon_as_there_is_news(client: httpx.AsyncClient, two: Stage) -> None:
    await two.hosts_move()
    await two.look()
    first = msgspec.json.decode((await desired(client)).content, type=Desired)
    poll = asyncio.create_task(desired(client, generation=first.generation, wait=20))
    await asyncio.sleep(0.3)
    assert not poll.done()
    await two.deliver(two.job(1))
    await two.look()
    answer = await asyncio.wait_for(poll, 15)
    assert answer.status_code == 200
    assert msgspec.json.decode(answer.content, type=Desired).generation > first.generation


async def test_nothing_new_within_the_wait(client: httpx.AsyncClient) -> None:
    began = time.monotonic()
    assert (await desired(client, wait=0.3)).status_code == 204
    assert time.monotonic() - began > 0.25


@pytest.mark.parametrize("params", [{"generation": "x"}, {"wait": "-2"}, {"wait": "nan"}, {"generation": "1e99"}])
async def test_numbers(params: dict[str, str], client: httpx.AsyncClient) -> None:
    headers = {"Authorization": "Bearer token-of-h1"}
    assert (await client.get("/host/v1/desired", params=params, headers=headers)).status_code == 400


async def test_a_report_is_kept_and_the_worker_told(client: httpx.AsyncClient, two: Stage, hints: list[int]) -> None:
    assert (await observe(client, observed())).status_code == 204
    assert (await two.store.sightings())["h1"].observed.capacity == Capacity(8, 8192, 100)
    assert hints == [1]


async def test_a_report_in_anothers_name(client: httpx.AsyncClient, two: Stage) -> None:
    assert (await observe(client, observed("h2"))).status_code == 403
    assert await two.store.sightings() == {}


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"\xff", b"[" * 10_000])
async def test_reports_that_arent(body: bytes, client: httpx.AsyncClient) -> None:
    assert (await observe(client, body)).status_code == 400


async def test_a_report_too_long(client: httpx.AsyncClient) -> None:
    assert (await observe(client, b" " * ((4 << 20) + 1))).status_code == 413


async def test_a_token_can_be_rotated(
    client: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.system.secret_file.LOOK_EVERY_S", 0.0)
    assert (await desired(client)).status_code == 204
    (tmp_path / "h1").write_text("another-token")
    assert (await desired(client)).status_code == 401
    headers = {"Authorization": "Bearer another-token"}
    assert (await client.get("/host/v1/desired", headers=headers)).status_code == 204
