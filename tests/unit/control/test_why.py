"""Why a job waits, and where it is on its way: by the API, for every kind of job."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from fastapi import FastAPI

from orchestrator.control import admin_api
from orchestrator.control.auth import AdminToken
from orchestrator.control.settings import ControlSettings
from orchestrator.core.machine import MachineClass
from orchestrator.core.sharing import Share, Sharing

from .stage import POLICY, REPO, Host, Stage, runner_name

OTHER = "acme/other"
Ask = Callable[..., Any]


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    settings = ControlSettings(
        app_id=1,
        state_dir=str(tmp_path),
        prefix="t:",
        classes={name: MachineClass(name) for name in ("ironcd", "ironcd-gpu")},
        sharing=Sharing(repositories={OTHER: Share(runners=1)}),
        registration="repository",
    )
    made = Stage(tmp_path, hosts=[Host("h1", 4)], settings=settings)
    made.github.files[OTHER, ".ironcd/policy.yml"] = POLICY
    await made.hosts_move()
    await made.look()
    yield made
    await made.close()


@pytest.fixture
async def ask(stage: Stage, tmp_path: Path) -> AsyncIterator[Ask]:
    (tmp_path / "admin").write_text("admin-token")
    api = admin_api.AdminApi(stage.store, settings=stage.settings, clock=lambda: stage.now)
    app = FastAPI()
    app.include_router(admin_api.router(api, AdminToken(str(tmp_path / "admin"))))
    headers = {"Authorization": "Bearer admin-token"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", headers=headers) as http:

        async def get(path: str, **params: Any) -> Any:
            answer = await http.get(f"/api/v1/{path}", params=params)
            assert answer.status_code == 200, answer.text
            return answer.json()

        yield get


async def queue(stage: Stage, *numbers: int, repo: str = REPO, labels: tuple[str, ...] = ("ironcd",)) -> None:
    for number in numbers:
        await stage.deliver(stage.job(number, repo=repo, labels=labels))


async def turn(stage: Stage, *, seconds: float = 1.0, times: int = 1) -> None:
    for _ in range(times):
        await stage.hosts_move()
        await stage.look()
        stage.now += seconds


def way(job: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {stage["name"]: (stage["state"], stage["why"]) for stage in job["stages"]}


async def test_those_that_wait_stand_in_the_order_in_which_they_are_served(stage: Stage, ask: Ask) -> None:
    await queue(stage, 1, 2, 3, 4)
    await turn(stage)
    await queue(stage, 5, 6, repo=OTHER)
    await turn(stage, seconds=10)
    waiting = (await ask("jobs", waiting=True))["jobs"]
    assert [(job["id"], job["wait"]["place"]) for job in waiting] == [(5, 1), (6, 2), (3, 3), (4, 4), (1, 0), (2, 0)]
    assert {job["wait"]["of"] for job in waiting} == {4}
    assert [job["wait"]["kind"] for job in waiting] == ["room", "room", "room", "room", "runner", "runner"]
    assert "host h1 is full: needs 2 vCPUs, has 0" in waiting[0]["reason"]
    assert waiting[2]["wait"]["for_s"] == 11.0
    await stage.run(seconds=2.0, rounds=60)
    assert (await ask("jobs", waiting=True))["jobs"] == []
    order = sorted((1, 2, 3, 4, 5, 6), key=lambda number: list(stage.started).index(number))
    assert (set(order[:2]), set(order[2:4])) == ({1, 2}, {5, 3}), "as the line was shown; 6 has to wait for its quota"


async def test_the_figures_of_a_wait_are_those_of_now(stage: Stage, ask: Ask) -> None:
    await queue(stage, 1, repo=OTHER)
    await turn(stage, times=2)
    await queue(stage, 2, repo=OTHER)
    await turn(stage)
    job = await ask("jobs/2")
    assert job["wait"] == {"place": 1, "of": 1, "kind": "quota", "reason": job["reason"], "for_s": 1.0}
    assert job["reason"] == "the quota of repository acme/other is used up: 1 of 1 runners"
    assert way(job)["quota"] == ("now", job["reason"])
    assert way(job)["turn"] == ("to come", "")
    await stage.run(rounds=12)
    done = await ask("jobs/2")
    assert way(done)["quota"][0] == "done"
    took = next(one["took_s"] for one in done["stages"] if one["name"] == "quota")
    assert 0 < took < 20


async def test_a_job_that_is_over_passed_every_stage_in_order(stage: Stage, ask: Ask) -> None:
    await queue(stage, 1)
    await stage.run(seconds=2.0, rounds=12)
    job = await ask("jobs/1")
    names = [one["name"] for one in job["stages"]]
    assert names == [
        "delivered", "class", "turn", "host", "registration", "boot", "online", "assigned", "bound", "steps", "ended",
        "destroyed",
    ]  # fmt: skip
    states = {one["name"]: one["state"] for one in job["stages"]}
    assert states.pop("steps") == "skipped", "the stage's hosts don't tell of that"
    assert set(states.values()) == {"done"}
    times = [one["at"] for one in job["stages"] if one["at"] is not None]
    assert times == sorted(times)
    assert sum(one["took_s"] for one in job["stages"] if one["took_s"] is not None) == pytest.approx(
        times[-1] - stage.github.jobs[1].created_at
    )
    assert way(job)["host"] == ("done", "h1")
    assert way(job)["ended"] == ("done", "success")


async def test_a_job_under_way_waits_for_its_next_stage(stage: Stage, ask: Ask) -> None:
    stage.hosts["h1"].steps_per_move = 5
    await queue(stage, 1)
    await turn(stage, times=2, seconds=3.0)
    job = await ask("jobs/1")
    assert way(job)["registration"][0] == "done"
    assert way(job)["boot"] == ("now", "its runner boots on host h1")
    assert way(job)["online"][0] == "to come"
    assert (job["wait"]["kind"], job["wait"]["place"]) == ("runner", 0)


async def test_a_runner_that_failed_is_named_where_the_next_one_is_waited_for(stage: Stage, ask: Ask) -> None:
    from orchestrator.core.wire import Failure

    stage.hosts["h1"].fails = lambda _runner: Failure("guest-silent", "the guest never spoke")
    await queue(stage, 1)
    await turn(stage, times=8)
    job = await ask("jobs/1")
    state, why = way(job)["turn"]
    assert state == "now"
    assert "pause" in why
    assert job["wait"]["kind"] == "pause"
    stage.hosts["h1"].fails = lambda _runner: None
    await stage.run(seconds=5.0, rounds=30)
    job = await ask("jobs/1")
    assert "failed before: h1: guest-silent" in way(job)["turn"][1]
    assert way(job)["destroyed"][0] == "done"


async def test_a_job_that_waits_for_a_person(stage: Stage, ask: Ask) -> None:
    held = msgspec.structs.replace(stage.job(1), state="waiting")
    stage.github.jobs[1] = held
    await stage.deliver(held, "waiting")
    await turn(stage)
    (job,) = (await ask("jobs", waiting=True))["jobs"]
    assert job["wait"]["kind"] == "approval"
    assert "approval" in job["reason"]


async def test_a_job_whose_policy_is_refused(stage: Stage, ask: Ask) -> None:
    stage.github.files[REPO, ".ironcd/policy.yml"] = b"mode: nonsense\n"
    await queue(stage, 1)
    await turn(stage)
    (job,) = (await ask("jobs", waiting=True))["jobs"]
    assert (job["wait"]["kind"], job["served"]) == ("policy", "refused")
    assert job["reason"]


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (("ubuntu-latest",), "no label of ours"),
        (("irond",), "no label of ours; the nearest is 'ironcd'"),
        (("ironcd-gpuu",), "no class is called 'ironcd-gpuu'; the nearest is 'ironcd-gpu'"),
        (("ironcd-4cpus-16gb",), "no class is called 'ironcd-4cpus-16gb'; the nearest is 'ironcd-4cpu-16gb'"),
        (("ironcd", "windows"), "label 'windows' isn't one that IronCD's runners have"),
    ],
)
async def test_a_job_that_is_not_ours_says_why(stage: Stage, ask: Ask, labels: tuple[str, ...], reason: str) -> None:
    await queue(stage, 1, labels=labels)
    await turn(stage, times=2)
    assert (await ask("jobs"))["jobs"] == []
    assert (await ask("jobs", waiting=True))["jobs"] == []
    (listed,) = (await ask("jobs", unserved=True))["jobs"]
    assert (listed["id"], listed["reason"]) == (1, reason)
    job = await ask("jobs/1")
    assert way(job)["delivered"][0] == "done"
    assert way(job)["class"] == ("refused", reason)
    assert {state for name, (state, _) in way(job).items() if name not in ("delivered", "class")} == {"skipped"}
    assert await stage.runners() == []
    assert await stage.leftovers() == {}


async def test_a_job_where_the_app_is_not_installed_says_so(stage: Stage, ask: Ask) -> None:
    foreign = msgspec.structs.replace(stage.job(1, repo="strangers/app"), installation=99)
    await stage.deliver(foreign)
    await turn(stage)
    job = await ask("jobs/1")
    assert job["reason"] == "the App isn't installed at strangers, GitHub says (installation 99)"
    assert way(job)["class"][0] == "refused"


async def test_a_payload_of_another_installation_puts_no_job_of_ours_away(stage: Stage, ask: Ask) -> None:
    room = stage.hosts["h1"].capacity
    stage.hosts["h1"].capacity = msgspec.structs.replace(room, vcpus=0)
    await queue(stage, 1)
    await turn(stage)
    await stage.deliver(msgspec.structs.replace(stage.github.jobs[1], installation=99))
    await turn(stage)
    assert [job["id"] for job in (await ask("jobs", waiting=True))["jobs"]] == [1]
    stage.hosts["h1"].capacity = room
    await stage.run(rounds=12)
    job = await ask("jobs/1")
    assert (job["served"], job["conclusion"]) == ("yes", "success")


async def test_what_becomes_of_a_job_that_is_not_ours_is_remembered_with_the_rest(stage: Stage, ask: Ask) -> None:
    await queue(stage, 1, labels=("ubuntu-latest",))
    await turn(stage)
    ended = msgspec.structs.replace(stage.github.jobs[1], state="completed", conclusion="success", runner_name="x")
    await stage.deliver(ended)
    await turn(stage)
    job = await ask("jobs/1")
    assert (job["state"], job["served"], job["reason"]) == ("completed", "ignored", "no label of ours")
    assert [m["what"] for m in job["story"]][:2] == ["queued", "ignored"]
    await queue(stage, 1, labels=("ubuntu-latest",))
    await turn(stage)
    assert (await ask("jobs/1"))["state"] == "completed"


async def test_a_class_that_is_added_serves_the_jobs_that_wait_for_it(stage: Stage, ask: Ask) -> None:
    await queue(stage, 1, labels=("ironcd-new",))
    await turn(stage)
    assert (await ask("jobs/1"))["served"] == "ignored"
    stage.settings.classes["ironcd-new"] = MachineClass("ironcd-new")
    stage.reconciler = stage.fresh()
    await stage.deliver(stage.github.jobs[1])
    await stage.run(rounds=12)
    job = await ask("jobs/1")
    assert (job["served"], job["conclusion"]) == ("yes", "success")
    assert (await ask("jobs", unserved=True))["jobs"] == []
    assert await stage.leftovers() == {}


async def test_the_unserved_are_forgotten_beyond_their_number_and_their_time(stage: Stage, ask: Ask) -> None:
    stage.settings = msgspec.structs.replace(stage.settings, unserved_kept=3, unserved_days=1.0)
    stage.reconciler = stage.fresh()
    for number in range(1, 6):
        await queue(stage, number, labels=("ubuntu-latest",))
        await turn(stage, seconds=70)
    await turn(stage, seconds=70)
    assert [job["id"] for job in (await ask("jobs", unserved=True))["jobs"]] == [5, 4, 3]
    stage.now += 86400
    await turn(stage)
    assert (await ask("jobs", unserved=True))["jobs"] == []


async def test_a_job_that_another_runner_has(stage: Stage, ask: Ask) -> None:
    await queue(stage, 1)
    taken = msgspec.structs.replace(stage.github.jobs[1], state="in_progress", runner_name="somebody's", runner_id=5)
    stage.github.jobs[1] = taken
    await stage.deliver(taken)
    await turn(stage)
    job = await ask("jobs/1")
    assert (job["served"], job["wait"]) == ("elsewhere", None)
    assert "now" not in {state for state, _ in way(job).values()}


async def test_looking_takes_no_hint_from_the_worker(stage: Stage, ask: Ask) -> None:
    await queue(stage, 1)
    await turn(stage)
    await stage.redis.set(stage.store.names.hint, "1")
    await ask("jobs", waiting=True)
    assert await stage.redis.exists(stage.store.names.hint)


async def test_a_cancelled_job_skipped_the_rest(stage: Stage, ask: Ask) -> None:
    await queue(stage, 1, 2, 3)
    await turn(stage)
    await stage.deliver(stage.github.end(3, "cancelled"))
    await turn(stage)
    job = await ask("jobs/3")
    assert way(job)["ended"] == ("done", "cancelled")
    assert way(job)["host"][0] == "skipped"
    assert "now" not in {state for state, _ in way(job).values()}


async def test_a_runner_that_another_job_took_is_not_its_own(stage: Stage, ask: Ask) -> None:
    await queue(stage, 1, 2)
    await turn(stage, times=3)
    runners = {r.life.meant_for: r.id for r in await stage.runners()}
    given = stage.github.give(2, runner_name(runners[1]))
    stage.started[2] = [runners[1]]
    await stage.deliver(given)
    await turn(stage)
    first, second = await ask("jobs/1"), await ask("jobs/2")
    assert way(second)["assigned"][0] == "done"
    assert second["runner"] == runners[1]
    assert way(first)["assigned"][0] in ("now", "to come")
