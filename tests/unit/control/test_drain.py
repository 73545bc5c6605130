"""Draining a host: what becomes of each kind of runner, of jobs at the deadline, and who may ask for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.control import admin_api, drain_api, metrics
from orchestrator.control.auth import AdminToken, HostTokens
from orchestrator.core.decided import Drain
from orchestrator.core.runner import NOTICE_S
from orchestrator.core.wire import Desired

from .stage import Host, Stage, runner_name


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    made = Stage(tmp_path, hosts=[Host("h1", 8), Host("h2", 8)])
    await made.hosts_move()
    yield made
    await made.close()


@pytest.fixture
async def http(stage: Stage, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    for name in ("admin", "h1", "h2"):
        (tmp_path / name).write_text(f"token-{name}")
    hosts = HostTokens({name: str(tmp_path / name) for name in ("h1", "h2")})
    admin = AdminToken(str(tmp_path / "admin"))
    api = drain_api.DrainApi(stage.store, hosts=hosts.hosts, clock=lambda: stage.now)
    app = FastAPI()
    app.include_router(drain_api.admin_router(api, admin))
    app.include_router(drain_api.host_router(api, hosts))
    app.include_router(
        admin_api.router(admin_api.AdminApi(stage.store, hosts=hosts.hosts, clock=lambda: stage.now), admin)
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


def bearer(who: str) -> dict[str, str]:
    return {"Authorization": f"Bearer token-{who}"}


async def drain(stage: Stage, host: str = "h1", *, lasts: float = 600.0) -> None:
    await stage.store.drain(host, Drain(stage.now, stage.now + lasts, "new kernel"))


async def turn(stage: Stage, *, seconds: float = 1.0, times: int = 1) -> None:
    for _ in range(times):
        await stage.hosts_move()
        await stage.look()
        stage.now += seconds


async def idle(stage: Stage, *jobs: int) -> list[str]:
    """Runners that listen on h1, for jobs that GitHub hasn't given them yet."""
    stage.hosts["h2"].capacity = msgspec.structs.replace(stage.hosts["h2"].capacity, vcpus=0)
    for number in jobs:
        await stage.deliver(stage.job(number))
    await turn(stage, times=3)
    stage.hosts["h2"].capacity = stage.hosts["h1"].capacity
    runners = {record.life.meant_for: record for record in await stage.runners()}
    assert {(r.life.host, r.life.phase) for r in runners.values()} == {("h1", "READY")}
    return [runners[number].id for number in jobs]


async def busy(stage: Stage, number: int = 1) -> str:
    (runner,) = await idle(stage, number)
    await stage.deliver(stage.github.give(number, runner_name(runner)))
    stage.started[number] = [runner]
    await turn(stage, times=2)
    return runner


async def end_by(stage: Stage, runner: str) -> float:
    _, raw = await stage.store.desired("h1")
    assert raw is not None
    return next(one.end_by for one in msgspec.json.decode(raw, type=Desired).runners if one.id == runner)


async def test_idle_runners_are_fenced_and_their_jobs_served_elsewhere(stage: Stage) -> None:
    old = await idle(stage, 1, 2)
    await drain(stage)
    await stage.run(rounds=12)
    for number in (1, 2):
        record = await stage.job_record(number)
        assert record.job.conclusion == "success"
        assert record.job.replacements == 0, "that a host is drained is nobody's failure"
        assert not set(stage.started[number]) & set(old)
    gone = await stage.store.gone_runners(old)
    assert {record.life.reason for record in gone.values()} == {"drained"}
    assert await stage.leftovers() == {}


async def test_a_runner_that_was_given_a_job_just_before_keeps_it(stage: Stage) -> None:
    (runner,) = await idle(stage, 1)
    given = stage.github.give(1, runner_name(runner))
    stage.started[1] = [runner]
    await drain(stage)
    await turn(stage, times=3)
    assert stage.github.calls.count("delete_runner") == 1, "GitHub isn't asked again and again"
    assert (await stage.store.runner(runner)).life.phase == "READY"  # type: ignore[union-attr]
    await stage.deliver(given)
    await stage.run(rounds=8)
    assert (await stage.job_record(1)).job.conclusion == "success"
    assert await stage.leftovers() == {}


async def test_nothing_new_is_placed_there_and_the_reason_says_so(stage: Stage) -> None:
    await drain(stage)
    await drain(stage, "h2")
    await stage.deliver(stage.job(1))
    await turn(stage)
    assert await stage.runners() == []
    assert "host h1 is being drained" in (await stage.job_record(1)).job.reason
    await stage.store.undrain("h2")
    await stage.run(rounds=8)
    assert (await stage.job_record(1)).job.conclusion == "success"
    assert {r.life.host for r in await stage.store.latest_gone_runners(9)} == {"h2"}


async def test_a_job_that_runs_has_until_the_deadline_and_is_then_told_to_end(stage: Stage) -> None:
    runner = await busy(stage)
    await drain(stage, lasts=100.0)
    deadline = stage.now + 100
    await turn(stage, times=2)
    assert await end_by(stage, runner) == deadline + NOTICE_S, "its host sends SIGTERM so long before"
    stage.now = deadline + NOTICE_S - 1
    await turn(stage)
    assert (await stage.store.runner(runner)).life.phase == "RUNNING"  # type: ignore[union-attr]
    stage.now += 1
    await turn(stage)
    ended = await stage.store.runner(runner)
    assert ended is not None
    assert (ended.life.phase, ended.life.reason) == ("DESTROYING", "drained")
    assert (await stage.job_record(1)).loss == "", "an admin ended it"
    await stage.deliver(stage.github.end(1, "cancelled"))
    await stage.run(rounds=8)
    assert await stage.leftovers() == {}


async def test_a_runner_that_heeds_the_signal_was_drained(stage: Stage) -> None:
    runner = await busy(stage)
    await drain(stage, lasts=100.0)
    await turn(stage, times=2)
    stage.now += 110
    stage.hosts["h1"].exits(runner, 0, stage.now)
    await stage.hosts_move()
    await stage.look()
    ended = await stage.store.runner(runner)
    assert ended is not None
    assert ended.life.reason == "drained"


async def test_a_job_that_ends_by_itself_was_not_drained(stage: Stage) -> None:
    runner = await busy(stage)
    await drain(stage)
    await stage.run(rounds=8)
    assert (await stage.job_record(1)).job.conclusion == "success"
    assert (await stage.store.runner(runner)).life.reason == "job_completed"  # type: ignore[union-attr]


async def test_taken_back_a_job_has_its_whole_time_again(stage: Stage) -> None:
    runner = await busy(stage)
    whole = await end_by(stage, runner)
    await drain(stage, lasts=100.0)
    await turn(stage, times=2)
    assert await end_by(stage, runner) < whole
    await stage.store.undrain("h1")
    await turn(stage, times=2)
    assert await end_by(stage, runner) == whole


async def test_the_worker_may_die_in_the_middle_of_it(stage: Stage) -> None:
    await idle(stage, 1)
    await drain(stage)
    for _ in range(6):
        stage.reconciler = stage.fresh()
        await turn(stage)
    await stage.run(rounds=10)
    assert (await stage.job_record(1)).job.conclusion == "success"
    assert await stage.leftovers() == {}


async def test_an_admin_drains_and_sees_the_countdown(stage: Stage, http: httpx.AsyncClient) -> None:
    await busy(stage)
    asked = {"deadline_s": 300, "why": "new kernel"}
    seen = (await http.post("/api/v1/hosts/h1/drain", params=asked, headers=bearer("admin"))).json()
    assert (seen["runners"], seen["busy"], seen["left_s"], seen["empty"]) == (1, 1, 300.0, False)
    stage.now += 60
    await stage.hosts_move()
    hosts = (await http.get("/api/v1/hosts", headers=bearer("admin"))).json()["hosts"]
    (h1, h2) = hosts
    assert (h1["state"], h1["drain"]["left_s"], h1["drain"]["why"]) == ("draining", 240.0, "new kernel")
    assert (h2["state"], h2["drain"]) == ("up", None)
    text = (await metrics.scrape(stage.store, clock=lambda: stage.now)).decode()
    samples = {(s.name, s.labels.get("host")): s.value for f in text_string_to_metric_families(text) for s in f.samples}
    assert samples["ironcd_host_drain_seconds", "h1"] == 240.0
    assert samples["ironcd_host_drain_runners", "h1"] == 1.0
    assert ("ironcd_host_drain_seconds", "h2") not in samples
    await stage.run(rounds=8)
    (h1, _) = (await http.get("/api/v1/hosts", headers=bearer("admin"))).json()["hosts"]
    assert (h1["state"], h1["drain"]["empty"]) == ("drained", True)
    await http.post("/api/v1/hosts/h1/uncordon", headers=bearer("admin"))
    assert await stage.store.draining() == {}


async def test_a_host_drains_itself_and_no_other(stage: Stage, http: httpx.AsyncClient) -> None:
    seen = (await http.post("/host/v1/drain", params={"deadline_s": 60}, headers=bearer("h1"))).json()
    assert (seen["host"], seen["by"], seen["left_s"]) == ("h1", "host", 60.0)
    assert set(await stage.store.draining()) == {"h1"}
    for path in ("/host/v1/drain", "/host/v1/undrain"):
        assert (await http.post(path, headers=bearer("admin"))).status_code == 401
    assert (await http.post("/api/v1/hosts/h2/drain", headers=bearer("h1"))).status_code == 401
    await http.post("/host/v1/undrain", headers=bearer("h2"))
    assert set(await stage.store.draining()) == {"h1"}
    assert (await http.post("/host/v1/undrain", headers=bearer("h1"))).json()["draining"] is False


async def test_a_host_that_comes_back_lifts_no_drain_of_an_admin(stage: Stage, http: httpx.AsyncClient) -> None:
    await http.post("/api/v1/hosts/h1/drain", params={"deadline_s": 600}, headers=bearer("admin"))
    seen = (await http.post("/host/v1/drain", params={"deadline_s": 60}, headers=bearer("h1"))).json()
    assert (seen["by"], seen["left_s"]) == ("admin", 60.0)
    assert (await http.post("/host/v1/undrain", headers=bearer("h1"))).json()["draining"] is True


async def test_what_cannot_be_asked(http: httpx.AsyncClient) -> None:
    for path, params, status in (
        ("/api/v1/hosts/nobody/drain", {}, 404),
        ("/api/v1/hosts/h1/drain", {"deadline_s": -1}, 422),
        ("/api/v1/hosts/h1/drain", {"deadline_s": 1e9}, 422),
    ):
        assert (await http.post(path, params=params, headers=bearer("admin"))).status_code == status


async def test_one_host_lost_frees_nothing_of_it_and_nothing_of_another(stage: Stage) -> None:
    runner = await busy(stage)
    lost = stage.hosts.pop("h1")
    await turn(stage, seconds=60.0, times=4)
    record = await stage.store.runner(runner)
    assert record is not None
    assert (record.life.phase, record.life.reason, record.life.vm) == ("DESTROYING", "host_lost", "asked")
    assert (await stage.job_record(1)).loss
    await stage.deliver(stage.job(2))
    await stage.run(rounds=8)
    assert (await stage.job_record(2)).job.conclusion == "success"
    assert [r.id for r in await stage.runners()] == [runner], "there is no proof that its machine is gone"
    stage.hosts["h1"] = lost
    await stage.deliver(stage.github.end(1, "failure"))
    await stage.run(rounds=8)
    assert await stage.leftovers() == {}
