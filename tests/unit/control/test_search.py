"""Jobs are found at GitHub that no delivery told of, and GitHub isn't asked more than need be."""

from __future__ import annotations

import msgspec
import pytest

from orchestrator.control.github import Missing, Unavailable
from orchestrator.control.github_fake import When

from .stage import INSTALLATION, POLICY, REPO, Stage


async def in_use(stage: Stage) -> None:
    """A stage on which one job has come and gone."""
    await stage.deliver(stage.job(1))
    await stage.run(rounds=12)
    assert (await stage.job_record(1)).job.over


def searches(stage: Stage) -> int:
    return stage.github.calls.count("queued_jobs")


async def minutes(stage: Stage, number: int) -> None:
    for _ in range(number):
        stage.now += 61
        await stage.look()


async def test_a_job_that_github_never_told_of_is_served(stage: Stage) -> None:
    await in_use(stage)
    stage.job(2)
    stage.now += 61
    await stage.run(rounds=12)
    record = await stage.job_record(2)
    assert (record.job.conclusion, stage.started.keys()) == ("success", {1, 2})
    assert "found" in {moment.what for moment in record.job.story}
    assert (await stage.store.counters())["jobs_found"] == 1
    assert await stage.leftovers() == {}


async def test_the_delivery_may_still_come(stage: Stage) -> None:
    await in_use(stage)
    job = stage.job(2)
    await minutes(stage, 1)
    await stage.deliver(job)
    await stage.run(rounds=12)
    assert stage.started[2] == list((await stage.job_record(2)).runners)
    assert len(stage.started[2]) == 1


async def test_a_stale_answer_brings_no_job_back(stage: Stage) -> None:
    await in_use(stage)
    stage.github.jobs[1] = msgspec.structs.replace(stage.github.jobs[1], state="queued", conclusion="")
    await minutes(stage, 2)
    assert await stage.store.live_jobs() == []
    assert await stage.runners() == []


async def test_jobs_that_arent_ours_leave_nothing(stage: Stage) -> None:
    await in_use(stage)
    stage.job(2, labels=("ubuntu-latest",))
    await minutes(stage, 2)
    assert await stage.store.job(2) is None


async def test_each_minute_while_there_are_jobs_and_six_hours_on(stage: Stage) -> None:
    await in_use(stage)
    await minutes(stage, 1)
    before = searches(stage)
    for _ in range(120):
        stage.now += 1
        await stage.look()
    assert searches(stage) - before == 2
    stage.now += 6 * 3600
    before = searches(stage)
    await minutes(stage, 3)
    assert searches(stage) == before


async def test_all_repositories_once_a_day(stage: Stage) -> None:
    stage.github.files["acme/quiet", ".ironcd/policy.yml"] = POLICY
    await in_use(stage)
    stage.job(2, repo="acme/quiet")
    await minutes(stage, 3)
    assert await stage.store.job(2) is None, "nothing ever came of it, so it isn't asked each minute"
    stage.now += 86400
    stage.reconciler = stage.fresh()
    await stage.run(rounds=12)
    assert (await stage.job_record(2)).job.conclusion == "success"
    await minutes(stage, 6)
    assert stage.now - await stage.store.searched_at() < 600
    before = stage.github.calls.count("repositories")
    stage.reconciler = stage.fresh()
    await minutes(stage, 6)
    assert stage.github.calls.count("repositories") == before, "a new worker knows that it was done"


async def test_the_daily_round_waits_for_github(stage: Stage) -> None:
    await in_use(stage)
    stage.now += 86400
    done = await stage.store.searched_at()

    def trouble(call: str, when: When) -> None:
        if call == "queued_jobs" and when == "before":
            raise Unavailable("502")

    stage.github.trouble = trouble
    for _ in range(30):
        stage.now += 30
        await stage.look()
    assert await stage.store.searched_at() == done
    stage.github.trouble = lambda _call, _when: None
    for _ in range(30):
        stage.now += 30
        await stage.look()
    assert await stage.store.searched_at() > done


async def test_a_repository_that_is_gone_stops_no_other(stage: Stage) -> None:
    stage.github.files["acme/gone", ".ironcd/policy.yml"] = POLICY
    await in_use(stage)
    await stage.deliver(stage.job(3, repo="acme/gone"))
    await stage.run(rounds=12)
    stage.job(4)
    real = stage.github.queued_jobs

    async def queued_jobs(installation: int, repo: str):  # type: ignore[no-untyped-def]
        if repo == "acme/gone":
            raise Missing(repo)
        return await real(installation, repo)

    stage.github.queued_jobs = queued_jobs  # type: ignore[method-assign]
    stage.now += 61
    await stage.run(rounds=12)
    assert (await stage.job_record(4)).job.conclusion == "success"
    assert sorted(await stage.store.active_repos(0)) == [(INSTALLATION, REPO), (INSTALLATION, "acme/gone")]


@pytest.mark.parametrize(("share", "times"), [(0.5, 20), (0.49, 4), (0.1, 0)])
async def test_less_often_as_the_rate_limit_runs_low(share: float, times: int, stage: Stage) -> None:
    await in_use(stage)
    stage.reconciler = stage.fresh(stage.scarce(share))
    await stage.look()
    before = searches(stage)
    for _ in range(20 * 60 // 5):
        stage.now += 5
        await stage.look()
    assert times - 1 <= searches(stage) - before <= times
