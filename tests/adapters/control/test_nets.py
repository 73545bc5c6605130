"""What catches a job whose delivery got lost, against the simulated GitHub: receiver and worker in one process, no socket."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import fakeredis
import httpx
import msgspec
import pytest
from fastapi import FastAPI

from orchestrator.control.github_kit import KitGitHub
from orchestrator.control.governor import Governor
from orchestrator.control.reconcile import Reconciler
from orchestrator.control.records import Sighting
from orchestrator.control.sealed import Seal
from orchestrator.control.settings import ControlSettings
from orchestrator.control.store import Store
from orchestrator.core.inbox import Keys
from orchestrator.core.machine import Capacity
from orchestrator.core.runner import Deadlines
from orchestrator.core.wire import Image, Observed
from orchestrator.intake import Inbox, Receiver, router
from orchestrator.simulator.github import GitHub as SimulatedGitHub
from orchestrator.simulator.github.faults import DeliveryFault, ResponseFault
from orchestrator.simulator.github.identity import pem_of
from orchestrator.simulator.github.jit import new_key
from policies import load_presets

PRESETS = load_presets()
HOUR_S = 3600.0
SECRET = "a webhook secret"
WORKFLOW = {"jobs": {"build": {"runs-on": ["ironcd"], "steps": [{"run": "true"}]}}}
HOST = Observed(
    host="h1", boot="b", at=0.0, capacity=Capacity(64, 1 << 20, 4096), accelerator="kvm", generation=0, runners=(),
    images=(Image("default", "sha256:0", "2.336.0"),),
)  # fmt: skip


class Plane:
    """GitHub, receiver, Redis and worker around one clock that the test turns."""

    def __init__(self, folder: Path, key: Any) -> None:
        self.now = time.time()
        """Within nine minutes of the real one: githubkit dates the App's JWT by that."""
        self.redis = fakeredis.FakeAsyncRedis()
        self.store = Store(self.redis, "t:")
        self.inbox = Inbox(self.redis, Keys("t:"), hint=lambda: None)
        receiver = FastAPI()
        receiver.include_router(router(Receiver(self.inbox, lambda: (SECRET.encode(),), clock=self.clock)))
        self.simulated = SimulatedGitHub(
            org="acme",
            repositories=("app",),
            private_key=key,
            webhook_url="http://receiver.test/webhook",
            webhook_secret=SECRET,
            webhook_transport=httpx.ASGITransport(receiver),
            clock=self.clock,
        )
        self.simulated.rest.spare_keys = [key]
        self.simulated.put_file("app", ".ironcd/policy.yml", b"mode: enforce\nallow: []\n")
        self.simulated.hooks.start()
        self.kit = KitGitHub(
            self.simulated.app_record.id,
            pem_of(key),
            api_url="http://github.test",
            transport=httpx.ASGITransport(self.simulated.app),
            clock=self.clock,
        )
        self.settings = ControlSettings(
            app_id=self.simulated.app_record.id,
            state_dir=str(folder),
            prefix="t:",
            deadlines=Deadlines(booting_s=HOUR_S),
        )
        self.seal = Seal.in_folder(folder)
        self.worker = self.fresh()

    def clock(self) -> float:
        return self.now

    def fresh(self) -> Reconciler:
        governor = Governor(clock=self.clock, limits=self.kit.gauge.limits)
        return Reconciler(self.store, self.kit, self.settings, PRESETS, self.seal, clock=self.clock, governor=governor)

    async def look(self) -> None:
        await self.store.put_sighting(Sighting(self.now, msgspec.structs.replace(HOST, at=self.now)))
        assert await self.worker.look()
        await self.simulated.hooks.settle()
        assert await self.worker.look()

    async def pass_time(self, seconds: float, step: float = 30.0) -> None:
        for _ in range(int(seconds / step)):
            self.now += step
            await self.look()

    def start_job(self, *faults: DeliveryFault) -> int:
        self.simulated.faults.deliveries.extend(faults)
        known = set(self.simulated.state.jobs)
        self.simulated.create_run("app", WORKFLOW)
        (job,) = set(self.simulated.state.jobs) - known
        return job

    async def states(self) -> dict[int, str]:
        return {record.job.id: record.job.served for record in await self.store.live_jobs()}

    async def close(self) -> None:
        await self.simulated.hooks.stop()
        await self.kit.close()
        await self.inbox.close()
        await self.redis.aclose()


@pytest.fixture(scope="module")
def key() -> Any:
    return new_key()


@pytest.fixture
async def plane(tmp_path: Path, key: Any) -> AsyncIterator[Plane]:
    made = Plane(tmp_path, key)
    await made.look()
    yield made
    await made.close()


async def test_a_delivery_that_failed_is_asked_for_again(plane: Plane) -> None:
    job = plane.start_job(DeliveryFault(effect="fail", event="workflow_job", times=1))
    await plane.look()
    assert await plane.states() == {}
    await plane.pass_time(180)
    assert await plane.states() == {job: "yes"}
    first, again = plane.simulated.state.deliveries.values()
    assert (first.guid, again.redelivery, again.status_code) == (again.guid, True, 202)
    await plane.pass_time(300)
    assert len(plane.simulated.state.deliveries) == 2, "nothing is asked for once it has arrived"


async def test_pages_of_deliveries_are_followed(plane: Plane) -> None:
    for _ in range(130):
        plane.simulated.hooks.emit("ping", {"zen": "x"})
    await plane.simulated.hooks.settle()
    page = await plane.kit.deliveries()
    rest = await plane.kit.deliveries(page.cursor)
    numbers = [seen.id for seen in (*page.deliveries, *rest.deliveries)]
    assert (len(page.deliveries), len(rest.deliveries), rest.cursor) == (100, 30, "")
    assert numbers == sorted(numbers, reverse=True)
    assert all(seen.ok and abs(seen.at - plane.now) < 1 for seen in page.deliveries)


async def test_a_delivery_that_was_never_made_is_made_up_for(plane: Plane) -> None:
    plane.start_job()
    await plane.look()
    job = plane.start_job(DeliveryFault(effect="drop", event="workflow_job"))
    await plane.look()
    assert job not in await plane.states()
    await plane.pass_time(90)
    assert (await plane.states())[job] == "yes"


def remaining(plane: Plane) -> int:
    return plane.simulated.rest.rates.view(f"installation-{plane.simulated.installation_id}", "core")["remaining"]


async def test_asking_again_costs_no_rate_limit_where_nothing_changed(plane: Plane) -> None:
    plane.start_job()
    await plane.look()
    installation, repo = plane.simulated.installation_id, "acme/app"
    first = await plane.kit.queued_jobs(installation, repo)
    file = await plane.kit.read_file(installation, repo, ".ironcd/policy.yml")
    before = remaining(plane)
    for _ in range(5):
        assert await plane.kit.queued_jobs(installation, repo) == first
        assert await plane.kit.read_file(installation, repo, ".ironcd/policy.yml") == file
    assert remaining(plane) == before
    plane.start_job()
    assert len(await plane.kit.queued_jobs(installation, repo)) == len(first) + 1
    assert remaining(plane) < before


def asked(plane: Plane, *routes: str) -> int:
    return sum(number for (_, route, _), number in plane.kit.gauge.calls.items() if route.endswith(routes))


async def test_the_last_of_the_rate_limit_is_kept_for_registrations(plane: Plane) -> None:
    plane.start_job()
    await plane.look()
    who = f"installation-{plane.simulated.installation_id}"
    for resource in ("core", "actions_runner_registration"):
        limit = plane.simulated.rest.rates.limits[resource]
        while plane.simulated.rest.rates.view(who, resource)["remaining"] > limit * 0.04:
            plane.simulated.rest.rates.spend(who, resource)
    plane.start_job()
    await plane.pass_time(120)
    before = asked(plane, "/actions/runs", "/actions/jobs/{id}")
    registered = len(plane.simulated.state.runners)
    plane.start_job()
    await plane.pass_time(240)
    assert asked(plane, "/actions/runs", "/actions/jobs/{id}") == before
    assert len(plane.simulated.state.runners) == registered + 1


async def test_an_outage_and_its_end(plane: Plane) -> None:
    outage = ResponseFault(path=".*", host="api.github.com", status=502)
    plane.simulated.faults.responses.append(outage)
    plane.start_job()
    await plane.pass_time(120, step=5)
    assert await plane.store.outage_since() > 0
    assert plane.simulated.state.runners == {}
    before = plane.kit.gauge.calls.total()
    await plane.pass_time(180, step=5)
    assert plane.kit.gauge.calls.total() - before <= 8, "a probe each half minute"
    outage.times = 0
    await plane.pass_time(60, step=5)
    assert await plane.store.outage_since() == 0
    assert len(plane.simulated.state.runners) == 1
