"""Known ways a job goes wrong in systems of this kind, by their number, each told as one story with its right end.

A number that is missing here is a failure whose right behaviour isn't all there yet, or is shown on the host.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from fastapi import FastAPI

from orchestrator.control.github import HookDelivery, Missing, RateLimited, Refused, Unavailable
from orchestrator.control.github_fake import When
from orchestrator.core.inbox import Keys
from orchestrator.core.machine import MachineClass
from orchestrator.core.wire import GuestClaim
from orchestrator.intake import Inbox, Receiver, router
from orchestrator.intake.signature import sign

from .stage import INSTALLATION, REPO, Stage, runner_name

SECRET = b"a webhook secret"
EXAMPLES = json.loads((Path(__file__).parents[2] / "data/webhook-examples.json").read_text())["workflow_job"]


async def ready(stage: Stage, *jobs: int) -> list[str]:
    """Jobs delivered, and their runners listening: the ULIDs of these, in the order of their jobs."""
    for number in jobs:
        await stage.deliver(stage.job(number))
    for _ in range(4):
        await stage.hosts_move()
        await stage.look()
    runners = {record.life.meant_for: record for record in await stage.runners()}
    assert {record.life.phase for record in runners.values()} == {"READY"}
    return [runners[number].id for number in jobs]


async def looked_once(stage: Stage) -> None:
    """A worker that has looked once: what it is not told of from now on, it doesn't know."""
    await stage.hosts_move()
    await stage.look()


async def ends_well(stage: Stage, *jobs: int, conclusion: str = "success", deliver: bool = True) -> None:
    """Each of ``jobs`` comes to its end, none was served twice, and nothing is left of anything."""
    await stage.run(seconds=2.0, deliver=deliver)
    for number in jobs:
        assert (await stage.job_record(number)).job.conclusion == conclusion
    assert all(len(set(had)) == 1 for had in stage.started.values())
    assert await stage.leftovers() == {}


class Hook:
    """The receiver, over the stage's Redis."""

    def __init__(self, stage: Stage) -> None:
        self.inbox = Inbox(stage.redis, Keys("t:"), hint=lambda: None)
        app = FastAPI()
        app.include_router(router(Receiver(self.inbox, lambda: (SECRET, b"the next one"))))
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")

    async def post(self, payload: dict[str, Any], *, guid: str = "g", secret: bytes = SECRET) -> httpx.Response:
        body = json.dumps(payload).encode()
        headers = {"X-GitHub-Event": "workflow_job", "X-GitHub-Delivery": guid, "Content-Type": "application/json"}
        return await self.client.post(
            "/webhook", content=body, headers={**headers, "X-Hub-Signature-256": sign(body, secret)}
        )


def payload_of(job_id: int, *, installation: int = INSTALLATION, action: str = "queued") -> dict[str, Any]:
    """GitHub's own example of a queued job, as one of the stage's."""
    payload = json.loads(json.dumps(EXAMPLES[5]))
    payload |= {"action": action, "installation": {"id": installation}}
    payload["repository"]["full_name"] = REPO
    payload["workflow_job"] |= {"id": job_id, "run_id": job_id + 1000, "labels": ["ironcd"], "runner_id": None}
    payload["workflow_job"] |= {"name": f"job {job_id}", "runner_name": None}
    return payload


async def test_row_01_a_webhook_that_never_arrived(stage: Stage) -> None:
    await looked_once(stage)
    job = stage.job(1)
    stage.github.attempts = [HookDelivery(5, "guid", stage.now, ok=False)]
    brought = []

    def redelivered(attempt: HookDelivery) -> HookDelivery:
        brought.append(attempt.guid)
        return msgspec.structs.replace(attempt, at=stage.now, ok=True)

    stage.github.redelivered = redelivered
    await stage.look()
    assert brought == [], "it may still be on its way"
    stage.now += 91
    await stage.look()
    assert brought == ["guid"]
    assert await stage.store.job(1) is None
    await stage.deliver(job, guid="guid")
    await ends_well(stage, 1)
    stage.now += 3600
    await stage.look()
    assert brought == ["guid"]


async def test_row_02_a_delivery_that_github_never_made(stage: Stage) -> None:
    await stage.deliver(stage.job(1))
    await ends_well(stage, 1)
    stage.job(2)
    stage.now += 61
    await stage.hosts_move()
    await stage.look()
    assert len(await stage.runners()) == 1, "as many runners as jobs that wait"
    stage.now += 61
    await stage.look()
    assert len(await stage.runners()) == 1
    await ends_well(stage, 2)


async def test_row_03_a_delivery_made_thrice_and_a_lost_hint(lua_stage: Stage) -> None:
    await looked_once(lua_stage)
    hook, payload = Hook(lua_stage), payload_of(1)
    lua_stage.job(1)
    answers = [await hook.post(payload, guid=guid) for guid in ("a", "a", "a", "b")]
    assert [answer.status_code for answer in answers] == [202] * 4
    assert (await lua_stage.store.lengths())["inbox"] == 2
    await lua_stage.redis.delete(lua_stage.store.names.hint)
    await lua_stage.look()
    assert len(await lua_stage.runners()) == 1
    assert (await lua_stage.job_record(1)).job.served == "yes"


@pytest.mark.parametrize("order", list(itertools.permutations(["queued", "in_progress", "completed"])))
async def test_row_04_events_in_any_order(order: tuple[str, ...], stage: Stage) -> None:
    """Of a job that another's runner served: told in whatever order, it gets no runner of ours and ends the same."""
    await looked_once(stage)
    queued = stage.job(1)
    begun = msgspec.structs.replace(queued, state="in_progress", runner_name="other", runner_id=9)
    over = msgspec.structs.replace(begun, state="completed", conclusion="success")
    stage.github.jobs[1] = over
    for state in order:
        await stage.deliver({"queued": queued, "in_progress": begun, "completed": over}[state])
        await stage.look()
        await stage.hosts_move()
    await stage.run(rounds=8)
    assert (await stage.job_record(1)).job.conclusion == "success"
    assert await stage.leftovers() == {}
    first = order.index("queued")
    if first > 0:
        assert (await stage.job_record(1)).runners == ()


async def test_row_05_poison(lua_stage: Stage) -> None:
    await looked_once(lua_stage)
    hook, good = Hook(lua_stage), payload_of(1)
    lua_stage.job(1)
    refused = await hook.post(good, secret=b"wrong")
    assert (refused.status_code, b"job" in refused.content) == (401, False)
    assert await lua_stage.store.lengths() == {"inbox": 0, "dead": 0}
    foreign = payload_of(2, installation=666)
    odd = payload_of(3) | {"action": "invented"}
    broken = payload_of(4)
    broken["workflow_job"] = "not a job"
    for number, payload in enumerate((foreign, odd, broken)):
        assert (await hook.post(payload, guid=f"odd-{number}")).status_code == 202, "an error would bring it again"
    await lua_stage.look()
    assert await lua_stage.runners() == []
    lengths = await lua_stage.store.lengths()
    assert (lengths["inbox"], lengths["dead"] >= 2) == (0, True)
    assert (await hook.post(good, guid="again", secret=b"the next one")).status_code == 202, "two secrets hold"
    await lua_stage.look()
    assert (await lua_stage.job_record(1)).job.served == "yes"


async def test_row_06_our_runner_takes_another_job(stage: Stage) -> None:
    first, second = await ready(stage, 1, 2)
    sealed = stage.hosts["h1"].seen[first].policy
    taken = stage.github.give(2, runner_name(first))
    stage.hosts["h1"].claims(first, GuestClaim(repository="acme/other", run_id=1001, run_attempt=1), stage.now)
    await stage.hosts_move()
    await stage.look()
    await stage.hosts_move()
    assert stage.hosts["h1"].seen[first].policy == sealed, "a guest's word opens nothing"
    stage.started[2] = [first]
    await stage.deliver(taken)
    await stage.look()
    await stage.hosts_move()
    records = {record.id: record for record in await stage.runners()}
    assert (records[first].life.job_id, records[first].identity.job_id) == (2, 2)
    assert stage.hosts["h1"].seen[first].policy != sealed
    assert len(records) == 2, "the job that it was meant for has the other runner"
    await ends_well(stage, 1, 2)
    assert stage.started == {2: [first], 1: [second]}


async def test_row_07_cancelled_before_its_start(stage: Stage) -> None:
    (runner,) = await ready(stage, 1)

    def trouble(call: str, when: When) -> None:
        if (call, when) == ("delete_runner", "before"):
            assert stage.hosts["h1"].ended == set(), "the registration goes first, then the machine"

    stage.github.trouble = trouble
    await stage.deliver(stage.github.end(1, "cancelled"))
    await stage.look()
    assert "delete_runner" in stage.github.calls
    await ends_well(stage, 1, conclusion="cancelled")
    assert stage.hosts["h1"].ended == {runner}


async def test_row_07_cancelled_and_the_runner_was_just_given_another_job(stage: Stage) -> None:
    (runner,) = await ready(stage, 1)
    stage.job(2)
    other = stage.github.give(2, runner_name(runner))
    stage.started[2] = [runner]
    await stage.deliver(stage.github.end(1, "cancelled"))
    await stage.look()
    await stage.hosts_move()
    assert stage.hosts["h1"].ended == set()
    await stage.deliver(other)
    await ends_well(stage, 2)


async def test_row_08_approval_queues_it_twice(stage: Stage) -> None:
    await stage.hosts_move()
    job = stage.job(1)
    stage.github.jobs[1] = waiting = msgspec.structs.replace(job, state="waiting")
    for action in ("queued", "waiting", "queued"):
        await stage.deliver(waiting, action)
        await stage.look()
        assert await stage.runners() == []
    stage.now += 86400
    await stage.look()
    assert await stage.runners() == []
    stage.github.jobs[1] = job
    await stage.deliver(job)
    await stage.hosts_move()
    await stage.look()
    assert len(await stage.runners()) == 1
    await ends_well(stage, 1)


@pytest.mark.parametrize("answers", [True, False])
async def test_row_08_queued_is_told_and_the_run_waits_for_approval(answers: bool, stage: Stage) -> None:
    """Whoever may not ask GitHub for what a run waits for has its word that the job is queued."""
    await stage.hosts_move()
    queued = msgspec.structs.replace(stage.job(1), deploys=True, environment="production")
    stage.github.jobs[1] = msgspec.structs.replace(queued, state="waiting")

    def trouble(call: str, _when: When) -> None:
        if call == "pending_environments" and not answers:
            raise Refused("403 Resource not accessible by integration")

    stage.github.trouble = trouble
    await stage.deliver(queued)
    await stage.look()
    assert len(await stage.runners()) == (0 if answers else 1)
    if not answers:
        return
    assert (await stage.job_record(1)).job.reason == "environment 'production' waits for an approval"
    asked = stage.github.calls.count("pending_environments")
    await stage.look()
    assert stage.github.calls.count("pending_environments") == asked, "not before there is news"
    stage.github.jobs[1] = queued
    await stage.deliver(queued)
    await stage.look()
    assert len(await stage.runners()) == 1
    await ends_well(stage, 1)


async def test_row_09_a_registration_whose_answer_was_lost(stage: Stage) -> None:
    lost = iter([True])

    def trouble(call: str, when: When) -> None:
        if (call, when) == ("generate_jit", "after") and next(lost, False):
            raise Unavailable("timeout")

    stage.github.trouble = trouble
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    await stage.look()
    assert len(stage.github.runners) == 1, "GitHub has it, and we don't know"
    stage.now += 2
    await stage.look()
    assert len(stage.github.runners) == 1, "the lost one is gone, under the same name there is a new one"
    await ends_well(stage, 1)


@pytest.mark.parametrize(
    "answer", [Refused("422 group"), Refused("403 Resource not accessible by integration"), Missing("404 Not Found")]
)
async def test_row_09_a_registration_that_can_never_be(answer: Exception, stage: Stage) -> None:
    def trouble(call: str, when: When) -> None:
        if (call, when) == ("generate_jit", "before"):
            raise answer

    stage.github.trouble = trouble
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    for _ in range(10):
        await stage.look()
        await stage.hosts_move()
        stage.now += 60
    assert stage.github.calls.count("generate_jit") == 1
    assert str(answer) in (await stage.job_record(1)).job.reason
    assert await stage.runners() == []


async def test_row_10_rate_limited(stage: Stage) -> None:
    def trouble(call: str, when: When) -> None:
        if (call, when) == ("generate_jit", "before"):
            raise RateLimited("secondary", 100.0)

    stage.github.trouble = trouble
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    await stage.look()
    stage.github.trouble = lambda _call, _when: None
    await stage.deliver(stage.job(2))
    calls = len(stage.github.calls)
    for _ in range(9):
        await stage.hosts_move()
        await stage.look()
        stage.now += 11
    made = set(stage.github.calls[calls:])
    assert made <= {"installations", "deliveries"}, "the installation is asked nothing; the App has a limit of its own"
    assert "rate limit" in (await stage.job_record(1)).job.reason
    assert (await stage.job_record(2)).job.state == "queued"
    stage.now += 60
    await ends_well(stage, 1, 2)


async def test_row_11_an_outage_of_github(stage: Stage) -> None:
    stage.hosts["h1"].steps_per_move = 0
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    await stage.look()
    await stage.hosts_move()
    await stage.deliver(stage.job(2))

    def trouble(_call: str, when: When) -> None:
        if when == "before":
            raise Unavailable("503")

    stage.github.trouble = trouble
    for _ in range(200):
        await stage.hosts_move()
        await stage.look()
        stage.now += 20
    assert await stage.store.outage_since() > 0
    assert stage.hosts["h1"].ended == set()
    assert "GitHub" in (await stage.job_record(2)).job.reason
    stage.github.trouble = lambda _call, _when: None
    stage.hosts["h1"].steps_per_move = 99
    stage.now += 31
    await ends_well(stage, 1, 2)
    assert {(await stage.job_record(n)).job.replacements for n in (1, 2)} == {0}


async def test_row_14_no_job_comes(stage: Stage) -> None:
    (runner,) = await ready(stage, 1)
    stage.github_assigns = list  # type: ignore[method-assign]
    await stage.run(seconds=60, rounds=4)
    assert "delete_runner" not in stage.github.calls, "it has its time"
    await stage.run(seconds=60, rounds=6)
    gone = await stage.store.runner(runner)
    assert gone is not None
    assert (gone.life.phase, gone.life.reason) == ("GONE", "idle")


async def test_row_14_busy_lies_and_the_fence_tells(stage: Stage) -> None:
    (runner,) = await ready(stage, 1)
    stage.github_assigns = list  # type: ignore[method-assign]
    real = stage.github.get_runner

    async def idle(scope: Any, github_id: int) -> Any:
        seen = await real(scope, github_id)
        return None if seen is None else msgspec.structs.replace(seen, busy=False)

    stage.github.get_runner = idle  # type: ignore[method-assign]
    stage.github.give(1, runner_name(runner))
    for _ in range(30):
        await stage.hosts_move()
        await stage.look()
        stage.now += 60
    assert stage.hosts["h1"].ended == set()


@pytest.mark.parametrize("says", [True, False])
async def test_row_14_github_removed_the_runner(says: bool, stage: Stage) -> None:
    """A guest that has a job is left alone, for as long as a job may last."""
    (runner,) = await ready(stage, 1)
    stage.github_assigns = list  # type: ignore[method-assign]
    stage.github.runners.clear()
    if says:
        stage.hosts["h1"].claims(runner, GuestClaim(repository=REPO, run_id=1001, run_attempt=1), stage.now)
    for _ in range(20):
        await stage.hosts_move()
        await stage.look()
        stage.now += 60
    assert (runner in stage.hosts["h1"].ended) is not says
    if says:
        record = next(r for r in await stage.runners() if r.id == runner)
        assert "its guest says that it has a job" in record.waiting


@pytest.mark.parametrize("evidence", ["webhook", "exit", "machine", "poll"])
async def test_row_17_completed_is_lost(evidence: str, stage: Stage) -> None:
    (runner,) = await ready(stage, 1)
    await stage.deliver(stage.github.give(1, runner_name(runner)))
    stage.started[1] = [runner]
    for _ in range(2):
        await stage.look()
        await stage.hosts_move()
    ended, host = stage.github.end(1), stage.hosts["h1"]
    match evidence:
        case "webhook":
            await stage.deliver(ended)
        case "exit":
            host.exits(runner, 0, stage.now)
        case "machine":
            host.seen[runner] = msgspec.structs.replace(host.seen[runner], vm="stopped")
        case _:
            pass
    rounds = 200 if evidence == "poll" else 20
    await stage.run(seconds=1, rounds=rounds, deliver=False)
    assert (await stage.job_record(1)).job.conclusion == "success", "as GitHub says, whatever the evidence was"
    assert await stage.leftovers() == {}


async def test_row_18_killed_between_the_deed_and_its_record(stage: Stage) -> None:
    """GitHub has registered the runner, and the worker dies before it has the answer; what is not ours is left alone."""

    class Killed(BaseException):
        pass

    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    lost = iter([True])

    def trouble(call: str, when: When) -> None:
        if (call, when) == ("generate_jit", "after") and next(lost, False):
            raise Killed

    stage.github.trouble = trouble
    with pytest.raises(Killed):
        await stage.look()
    (intent,) = await stage.runners()
    assert intent.life.registration == "asked", "the intent was on record before the deed"
    await stage.redis.delete(stage.store.names.lease)
    stage.reconciler = stage.fresh()
    await ends_well(stage, 1)
    assert (await stage.job_record(1)).runners == (intent.id,)


async def test_row_19_a_job_that_runs_away(stage: Stage) -> None:
    stage.settings.classes["ironcd"] = MachineClass("ironcd", lifetime_s=100)
    (runner,) = await ready(stage, 1)
    await stage.deliver(stage.github.give(1, runner_name(runner)))
    await stage.look()
    (record,) = await stage.runners()
    _, raw = await stage.store.desired("h1")
    assert f'"end_by":{record.life.deadline}'.encode() in (raw or b""), "its host ends it without being told"
    stage.now += 101
    await stage.hosts_move()
    await stage.look()
    (record,) = await stage.runners()
    assert (record.life.phase, record.life.reason) == ("DESTROYING", "lifetime")
    stage.github.end(1, "failure")
    stage.started[1] = [runner]
    await stage.run(seconds=15, rounds=20, deliver=False)
    assert (await stage.job_record(1)).job.conclusion == "failure"
    assert await stage.leftovers() == {}
