"""What admins see of jobs, runners and hosts, and the metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import fakeredis
import httpx
import msgspec
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.control import admin_api, metrics, template_removals
from orchestrator.control.auth import AdminToken
from orchestrator.control.records import Sighting
from orchestrator.control.store import Store
from orchestrator.core.machine import MachineClass
from orchestrator.core.wire import Desired, ObservedTemplate, ObservedWarm

from .stage import REPO, Stage


@pytest.fixture
async def client(stage: Stage, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    (tmp_path / "admin").write_text("admin-token")
    app = FastAPI()
    api = admin_api.AdminApi(stage.store, hosts=frozenset({"h1", "h9"}), clock=lambda: stage.now)
    app.include_router(admin_api.router(api, AdminToken(str(tmp_path / "admin"))))
    app.include_router(metrics.router(stage.store))
    headers = {"Authorization": "Bearer admin-token"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", headers=headers) as http:
        yield http


async def played(stage: Stage) -> None:
    """One job done, one waiting for room, one that isn't ours."""
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    await stage.run()
    await stage.hosts_move()
    await stage.deliver(stage.job(2, labels=("ironcd-64cpu-4gb",)))
    await stage.deliver(stage.job(3, labels=("ubuntu-latest",)))
    await stage.look()


@pytest.mark.parametrize("path", ["jobs", "jobs/1", "runners", "runners/x", "hosts"])
async def test_only_admins(path: str, client: httpx.AsyncClient) -> None:
    for token in ("", "Bearer", "Bearer ", "Bearer wrong"):
        assert (await client.get(f"/api/v1/{path}", headers={"Authorization": token})).status_code == 401


async def test_jobs(client: httpx.AsyncClient, stage: Stage) -> None:
    await played(stage)
    seen = (await client.get("/api/v1/jobs")).json()["jobs"]
    assert {job["id"] for job in seen} == {1, 2}, "those of others are listed where they are asked for"
    assert all("story" not in job or job["story"] == [] for job in seen)
    waiting = (await client.get("/api/v1/jobs", params={"waiting": True})).json()["jobs"]
    assert [(job["id"], "is too small" in job["reason"]) for job in waiting] == [(2, True)]
    for params, ids in (
        ({"state": "completed"}, {1}),
        ({"served": "ignored"}, {3}),
        ({"repo": "no/body"}, set()),
        ({"repo": REPO.upper()}, {1, 2}),
        ({"limit": 2}, {2, 1}),
    ):
        found = (await client.get("/api/v1/jobs", params=params)).json()["jobs"]
        assert {job["id"] for job in found} <= {1, 2, 3} if "limit" in params else {job["id"] for job in found} == ids
        assert len(found) <= 2


async def test_a_jobs_whole_story(client: httpx.AsyncClient, stage: Stage) -> None:
    await played(stage)
    seen = (await client.get("/api/v1/jobs/1")).json()
    times = [moment["at"] for moment in seen["story"]]
    assert times == sorted(times)
    assert all(moment["lasted"] is not None for moment in seen["story"][:-1])
    whats = {moment["what"] for moment in seen["story"]}
    assert whats >= {"queued", "class_matched", "WANTED", "Placed", "Registered", "domain_started", "JobStarted"}
    assert whats >= {"PolicyBound", "JobCompleted", "VmProvedGone", "RegistrationProvedGone", "GONE"}
    (runner,) = seen["made_for_it"]
    assert runner["proof"]["whole"]
    assert runner["proof"]["registration"]
    assert "jit" not in str(seen).replace("jit_taken", "")
    assert (await client.get("/api/v1/jobs/99")).status_code == 404
    assert (await client.get("/api/v1/jobs/x")).status_code == 422


async def test_runners(client: httpx.AsyncClient, stage: Stage) -> None:
    await played(stage)
    await stage.deliver(stage.job(4))
    for _ in range(3):
        await stage.look()
        await stage.hosts_move()
    await stage.look()
    seen = (await client.get("/api/v1/runners")).json()["runners"]
    assert {runner["phase"] for runner in seen} == {"READY", "GONE"}
    live = (await client.get("/api/v1/runners", params={"gone": False})).json()["runners"]
    assert [runner["phase"] for runner in live] == ["READY"], "a job that waits for room has no runner yet"
    one = (await client.get(f"/api/v1/runners/{live[0]['id'].lower()}")).json()
    assert (one["meant_for"], one["story"][0]["what"]) == (4, "WANTED")
    assert (await client.get("/api/v1/runners/nobody")).status_code == 404


async def test_hosts(client: httpx.AsyncClient, stage: Stage) -> None:
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    await stage.look()
    seen = {host["host"]: host for host in (await client.get("/api/v1/hosts")).json()["hosts"]}
    assert (seen["h9"]["state"], seen["h1"]["state"]) == ("unseen", "up")
    assert (seen["h1"]["capacity"]["vcpus"], seen["h1"]["free"]["vcpus"], len(seen["h1"]["runners"])) == (8, 6, 1)
    stage.now += 60
    seen = {host["host"]: host for host in (await client.get("/api/v1/hosts")).json()["hosts"]}
    assert (seen["h1"]["state"], seen["h1"]["silent_s"]) == ("away", 60.0)


async def test_a_cordoned_host_gets_no_new_runner_and_keeps_those_it_has(
    client: httpx.AsyncClient, stage: Stage
) -> None:
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    await stage.look()
    assert (await client.post("/api/v1/hosts/h1/cordon", params={"why": "new kernel"})).status_code == 200
    await stage.deliver(stage.job(2))
    await stage.run(rounds=15)
    assert (await stage.job_record(1)).job.conclusion == "success"
    assert "h1 is cordoned" in (await stage.job_record(2)).job.reason
    (h1, _) = (await client.get("/api/v1/hosts")).json()["hosts"]
    assert (h1["state"], h1["cordoned"], h1["cordon"]) == ("cordoned", True, "new kernel")
    assert (await client.post("/api/v1/hosts/h1/uncordon")).json() == {"host": "h1", "cordoned": False}
    await stage.run(rounds=15)
    assert (await stage.job_record(2)).job.conclusion == "success"
    assert (await client.post("/api/v1/hosts/nobody/cordon")).status_code == 404
    assert (await client.post("/api/v1/hosts/h1/cordon", headers={"Authorization": ""})).status_code == 401


async def test_metrics(client: httpx.AsyncClient, stage: Stage) -> None:
    await played(stage)
    text = (await client.get("/metrics")).text
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["ironcd_store_up", ()] == 1
    assert samples["ironcd_waiting_jobs", (("for", "room"),)] == 1
    assert samples["ironcd_waiting_jobs", (("for", "quota"),)] == 0
    assert samples["ironcd_runners", (("phase", "WANTED"),)] == 0
    assert samples["ironcd_jobs", (("served", "yes"), ("state", "queued"))] == 1
    assert samples["ironcd_host_capacity", (("host", "h1"), ("what", "vcpus"))] == 8
    assert samples["ironcd_phase_seconds_count", (("phase", "RUNNING"),)] == 1
    assert samples["ironcd_phase_seconds_bucket", (("le", "+Inf"), ("phase", "RUNNING"))] == 1
    assert samples["ironcd_inbox_deliveries", ()] == 0


async def test_metrics_without_redis() -> None:
    server = fakeredis.FakeServer()
    server.connected = False
    text = (await metrics.scrape(Store(fakeredis.FakeAsyncRedis(server=server)))).decode()
    assert "ironcd_store_up 0.0" in text
    assert "ironcd_runners{" not in text


async def test_machines_that_wait(client: httpx.AsyncClient, stage: Stage) -> None:
    stage.settings.classes["ironcd"] = MachineClass("ironcd", warm=2)
    sighting = Sighting(stage.now, stage.hosts["h1"].report(stage.now))
    seen = msgspec.structs.replace(sighting.observed, warm=(ObservedWarm("01J" + "0" * 23, "ironcd", stage.now),))
    await stage.store.put_sighting(msgspec.structs.replace(sighting, observed=seen))
    await stage.look()
    (h1, *_) = (await client.get("/api/v1/hosts")).json()["hosts"]
    assert [machine["machine_class"] for machine in h1["warm"]] == ["ironcd"]
    assert h1["warm_wanted"] == {"ironcd": 2}
    assert 'ironcd_host_warm{class="ironcd",host="h1"} 1.0' in (await client.get("/metrics")).text


async def test_templates_are_made_anew_where_an_admin_wants_it(client: httpx.AsyncClient, stage: Stage) -> None:
    await stage.hosts_move()
    await stage.look()
    assert (await client.post("/api/v1/hosts/nobody/rebuild-templates")).status_code == 404
    assert (await client.post("/api/v1/hosts/h1/rebuild-templates", headers={"Authorization": ""})).status_code == 401
    assert (await client.post("/api/v1/hosts/h1/rebuild-templates")).json()["templates_since"] == stage.now
    await stage.look()
    _, raw = await stage.store.desired("h1")
    assert msgspec.json.decode(raw or b"", type=Desired).templates_since == stage.now


async def test_a_template_is_removed_where_an_admin_wants_it(client: httpx.AsyncClient, stage: Stage) -> None:
    async def wanted() -> dict[str, float]:
        await stage.look()
        _, raw = await stage.store.desired("h1")
        return msgspec.json.decode(raw or b"", type=Desired).templates_removed

    path, (one, other) = "/api/v1/hosts/h1/remove-template", ("a" * 64, "b" * 64)
    await stage.hosts_move()
    assert await wanted() == {}
    for bad, key, status in (("nobody", one, 404), ("h1", "../x", 422), ("h1", "a" * 63, 422)):
        answer = await client.post(path.replace("h1", bad), params={"key": key})
        assert answer.status_code == status
    assert (await client.post(path, params={"key": one}, headers={"Authorization": ""})).status_code == 401
    began = stage.now
    assert (await client.post(path, params={"key": one})).json() == {"host": "h1", "key": one, "removed_at": began}
    assert await wanted() == {one: began}
    stage.now += template_removals.KEPT_S + 1
    await client.post(path, params={"key": other})
    assert (await stage.store.snapshot()).templates_removed == {"h1": {other: stage.now}}, "old ones are forgotten"


async def test_templates_and_how_machines_were_started_are_shown(client: httpx.AsyncClient, stage: Stage) -> None:
    template = ObservedTemplate("a" * 64, ("ironcd",), "b" * 64, "ready", 5.0)
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    await stage.look()
    await stage.hosts_move()
    sighting = (await stage.store.sightings())["h1"]
    (runner, *more) = sighting.observed.runners
    runner = msgspec.structs.replace(runner, start="clone")
    observed = msgspec.structs.replace(sighting.observed, templates=(template,), runners=(runner, *more))
    await stage.store.put_sighting(Sighting(stage.now, observed))
    await stage.look()
    (h1,) = [host for host in (await client.get("/api/v1/hosts")).json()["hosts"] if host["host"] == "h1"]
    assert h1["templates"][0]["key"] == template.key
    text = (await client.get("/metrics")).text
    assert 'ironcd_host_templates{host="h1",state="ready"} 1.0' in text
    assert 'ironcd_starts_total{how="clone"} 1.0' in text
    assert 'ironcd_starts_total{how="cold"} 0.0' in text
