"""Which runner gets which job, and what time brings about."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.simulator.github.engine import RunnerBusy

LABELS = ["self-hosted", "Linux", "ironcd"]


def workflow(*labels: str, count: int = 1) -> dict:
    return {"jobs": {f"job{n}": {"runs-on": list(labels), "steps": [{"run": "true"}]} for n in range(count)}}


@pytest.fixture
def online(github):
    def make(name: str, labels: list[str] = LABELS, repository=None):
        runner = github.engine.add_runner(
            name=name,
            owner=github.owner,
            repository=repository,
            group_id=1,
            labels=labels,
            work_folder="_work",
            key=github.rest.spare_keys[0].public_key(),
        )
        github.engine.open_session(runner, name).polled_at = github.state.now()
        github.engine.assign()
        return runner

    return make


async def test_a_runner_needs_all_of_the_jobs_labels_whatever_their_case(github, online):
    job = github.create_run("app", workflow("IRONCD", "linux")).jobs[0]
    other = github.create_run("app", workflow("ironcd", "gpu")).jobs[0]
    runner = online("r")
    assert job.runner is runner
    assert other.runner is None
    assert online("g", ["ironcd", "gpu"]).job is other


async def test_the_oldest_job_goes_first_and_runners_arent_pinned(github, online):
    run = github.create_run("app", workflow("ironcd", count=2))
    first, second = online("for-second"), online("for-first")
    assert [job.runner for job in run.jobs] == [first, second]


async def test_a_repositorys_runner_serves_no_other(github, online):
    other = github.create_repository("other")
    job = github.create_run("app", workflow("ironcd")).jobs[0]
    online("r", repository=other)
    assert job.runner is None


async def test_a_group_that_refuses_public_repositories_serves_none(github, online):
    github.create_repository("open", private=False)
    github.state.groups[1].allows_public_repositories = False
    job = github.create_run("open", workflow("ironcd")).jobs[0]
    online("r")
    assert job.runner is None


async def test_offline_means_no_job(github):
    job = github.create_run("app", workflow("ironcd")).jobs[0]
    key = github.rest.spare_keys[0].public_key()
    github.engine.add_runner(
        name="r", owner=github.owner, repository=None, group_id=1, labels=LABELS, work_folder="_work", key=key
    )
    github.engine.assign()
    assert job.runner is None


async def test_the_fence_holds_from_the_offer_on(github, online):
    github.create_run("app", workflow("ironcd"))
    with pytest.raises(RunnerBusy):
        github.engine.remove_runner(online("r"))


async def test_a_runner_is_gone_with_its_one_job(github, online):
    job = github.create_run("app", workflow("ironcd")).jobs[0]
    runner = online("r")
    github.engine.acquire(job)
    github.engine.complete(job, "success")
    assert runner.gone
    assert github.state.runners == {}


async def test_an_offer_that_isnt_taken_goes_to_the_next(github, online, clock):
    job = github.create_run("app", workflow("ironcd")).jobs[0]
    first = online("first")
    second = online("second")
    clock.ahead = 60
    second.session.polled_at = github.state.now()
    first.session = None
    clock.ahead = 121
    github.engine.expire()
    assert job.runner is second
    assert first.job is None


async def test_a_lock_that_runs_out_ends_the_job_as_failed(github, online, clock):
    job = github.create_run("app", workflow("ironcd")).jobs[0]
    online("r")
    github.engine.acquire(job)
    clock.ahead = 599
    github.engine.renew(job)
    clock.ahead = 1198
    github.engine.expire()
    assert job.status == "in_progress"
    clock.ahead = 1201
    github.engine.expire()
    assert (job.status, job.conclusion) == ("completed", "failure")


async def test_a_registration_never_used_is_removed_after_a_day(github, clock):
    key = github.rest.spare_keys[0].public_key()
    github.engine.add_runner(
        name="r", owner=github.owner, repository=None, group_id=1, labels=LABELS, work_folder="_work", key=key
    )
    clock.ahead = 86_000
    github.engine.expire()
    assert len(github.state.runners) == 1
    clock.ahead = 86_500
    github.engine.expire()
    assert github.state.runners == {}


async def test_a_waiting_poll_wakes_at_once(github, online):
    runner = online("r")
    poll = asyncio.create_task(github.engine.next_message(runner, runner.session, 50))
    await asyncio.sleep(0)
    github.create_run("app", workflow("ironcd"))
    message = await asyncio.wait_for(poll, 30)
    assert message.type == "RunnerJobRequest"


async def test_a_waiting_poll_ends_when_the_runner_is_deleted(github, online):
    runner = online("r")
    poll = asyncio.create_task(github.engine.next_message(runner, runner.session, 50))
    await asyncio.sleep(0)
    github.engine.remove_runner(runner)
    assert await asyncio.wait_for(poll, 30) is None


async def test_a_session_gone_silent_can_be_replaced(github, online, clock):
    runner = online("r")
    assert github.engine.is_live(runner.session)
    clock.ahead = 121
    assert not github.engine.is_live(runner.session)


async def test_a_rejected_deployment_fails_its_job(github):
    gated = {"jobs": {"d": {"runs-on": "ironcd", "environment": "prod", "steps": [{"run": "true"}]}}}
    run = github.create_run("app", gated)
    github.engine.approve(run, approved=False)
    assert run.conclusion() == "failure"
