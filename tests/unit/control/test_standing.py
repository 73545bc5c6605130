"""The App suspended or removed: nothing new is begun, what runs goes on, and every job says why it waits."""

from __future__ import annotations

import pytest

from orchestrator.control.github import GitHubRunner, Installation, RateLimited, Refused, Unavailable
from orchestrator.control.github_fake import When
from orchestrator.control.orphans import owner_label
from orchestrator.core.inbox import InstallationNews
from orchestrator.core.wire import GuestClaim

from .stage import INSTALLATION, ORG, REPO, Stage, runner_name


async def turns(stage: Stage, number: int, seconds: float = 10.0) -> None:
    for _ in range(number):
        await stage.hosts_move()
        await stage.look()
        stage.now += seconds


async def suspend(stage: Stage) -> None:
    stage.github.apps[INSTALLATION] = Installation(INSTALLATION, ORG, organization=True, suspended=True)
    await stage.deliver_installation(InstallationNews(INSTALLATION, "suspend", ORG))


async def unsuspend(stage: Stage) -> None:
    stage.github.apps[INSTALLATION] = Installation(INSTALLATION, ORG, organization=True)
    await stage.deliver_installation(InstallationNews(INSTALLATION, "unsuspend", ORG))


async def remove(stage: Stage) -> None:
    stage.github.apps.clear()
    await stage.deliver_installation(InstallationNews(INSTALLATION, "deleted", ORG))


async def test_suspended_nothing_is_begun_and_the_jobs_say_why(stage: Stage) -> None:
    await turns(stage, 1)
    await stage.deliver(stage.job(1))
    await suspend(stage)
    await turns(stage, 5)
    assert "generate_jit" not in stage.github.calls
    assert stage.github.runners == {}
    record = await stage.job_record(1)
    assert "the App is suspended in acme" in record.job.reason
    assert [moment.what for moment in record.job.story].count("app_suspended") == 1
    await unsuspend(stage)
    await stage.run(seconds=2)
    assert (await stage.job_record(1)).job.conclusion == "success"
    assert await stage.leftovers() == {}


async def test_suspended_before_it_is_registered_a_runner_waits_and_says_for_what(stage: Stage) -> None:
    away = True

    def trouble(call: str, when: When) -> None:
        if away and (call, when) == ("generate_jit", "before"):
            raise Unavailable("503")

    stage.github.trouble = trouble
    await turns(stage, 1)
    await stage.deliver(stage.job(1))
    await turns(stage, 1)
    (wanted,) = await stage.runners()
    assert (wanted.life.phase, wanted.life.registration) == ("WANTED", "asked")
    away = False
    await suspend(stage)
    calls = stage.github.calls.count("generate_jit")
    await turns(stage, 10)
    assert stage.github.calls.count("generate_jit") == calls
    assert [record.id for record in await stage.runners()] == [wanted.id]
    assert "suspended" in (await stage.job_record(1)).job.reason
    await unsuspend(stage)
    await stage.run(seconds=2)
    record = await stage.job_record(1)
    assert (record.job.conclusion, record.runners) == ("success", (wanted.id,))


async def test_suspended_what_runs_goes_on_and_its_end_needs_no_deregistration(stage: Stage) -> None:
    await stage.deliver(stage.job(1))
    await turns(stage, 4, seconds=1)
    for job in stage.github_assigns():
        await stage.deliver(job)
    await turns(stage, 2, seconds=1)
    (running,) = await stage.runners()
    assert running.life.phase == "RUNNING"
    await suspend(stage)
    await turns(stage, 10, seconds=60)
    assert stage.hosts["h1"].ended == set()
    stage.hosts["h1"].exits(running.id, 0, stage.now)
    await turns(stage, 12)
    gone = await stage.store.runner(running.id)
    assert gone is not None
    assert (gone.life.phase, gone.life.registration) == ("GONE", "unreachable")
    assert gone.proof is not None
    assert gone.proof.whole
    assert len(stage.github.runners) == 1, "GitHub keeps it: nobody may remove it"
    stage.github.end(1)
    stage.github.runners[ORG, 99] = next(iter(stage.github.runners.values()), None) or stage_runner(stage, running.id)
    await unsuspend(stage)
    stage.now += 1200
    await turns(stage, 20, seconds=31)
    assert (await stage.job_record(1)).job.conclusion == "success"
    assert stage.github.runners == {}, "once the App is back, what was left is swept"


def stage_runner(stage: Stage, runner: str) -> GitHubRunner:
    """A registration of ours that is offline."""
    label = owner_label(stage.settings.app_id)
    return GitHubRunner(99, runner_name(runner), online=False, busy=False, labels=(label,))


async def test_suspended_an_idle_runner_ends_without_its_fence_unless_its_guest_has_a_job(stage: Stage) -> None:
    await stage.deliver(stage.job(1))
    await turns(stage, 4, seconds=1)
    (ready,) = await stage.runners()
    assert ready.life.phase == "READY"
    await suspend(stage)
    await turns(stage, 4, seconds=60)
    assert stage.hosts["h1"].ended == set(), "it has its time"
    await turns(stage, 6, seconds=60)
    assert stage.hosts["h1"].ended == {ready.id}
    gone = await stage.store.runner(ready.id)
    assert gone is not None
    assert (gone.life.phase, gone.life.reason, gone.life.registration) == ("GONE", "idle", "unreachable")


async def test_suspended_a_guest_that_has_a_job_keeps_its_machine(stage: Stage) -> None:
    await stage.deliver(stage.job(1))
    await turns(stage, 4, seconds=1)
    (ready,) = await stage.runners()
    stage.hosts["h1"].claims(ready.id, GuestClaim(repository=REPO, run_id=1001, run_attempt=1), stage.now)
    await suspend(stage)
    await turns(stage, 20, seconds=60)
    assert stage.hosts["h1"].ended == set()


async def test_removed_its_jobs_wait_a_day_and_are_put_away(stage: Stage) -> None:
    await turns(stage, 1)
    await stage.deliver(stage.job(1))
    await turns(stage, 1)
    await remove(stage)
    await turns(stage, 60, seconds=30)
    record = await stage.job_record(1)
    assert "isn't installed in acme any more" in record.job.reason
    assert record.job.state == "queued"
    assert await stage.runners() == []
    stage.now += 86_400
    await turns(stage, 3)
    record = await stage.job_record(1)
    assert (record.job.state, record.job.conclusion) == ("completed", "unknown")
    assert await stage.store.live_jobs() == []


async def test_an_outage_says_nothing_about_an_installation(stage: Stage) -> None:
    await stage.deliver(stage.job(1))
    await turns(stage, 4, seconds=1)

    def trouble(_call: str, _when: str) -> None:
        raise Unavailable("503")

    stage.github.trouble = trouble
    stage.github.apps.clear()
    await turns(stage, 20, seconds=60)
    assert stage.hosts["h1"].ended == set()
    assert "app_removed" not in [moment.what for moment in (await stage.job_record(1)).job.story]


async def test_a_job_that_begins_just_as_the_app_is_suspended_waits_for_its_policy(stage: Stage) -> None:
    """GitHub refuses to show the policy before anybody has heard of the suspension."""
    await stage.deliver(stage.job(1))
    await stage.hosts_move()
    await stage.look()
    await stage.hosts_move()
    await stage.look()
    (job,) = stage.github_assigns()
    stage.now += stage.settings.pace.policy_s  # its file is to be read again
    stage.github.apps[INSTALLATION] = Installation(INSTALLATION, ORG, organization=True, suspended=True)
    await stage.deliver(job)
    for _ in range(30):
        await stage.hosts_move()
        await stage.look()
        stage.now += 2
    (runner,) = await stage.runners()
    assert (runner.life.phase, runner.bound, runner.refused) == ("RUNNING", False, "")
    assert "suspended" in runner.waiting
    assert stage.github.calls[-20:].count("installations") <= 2, "it is asked now and then, not in each look"
    await unsuspend(stage)
    await stage.run()
    assert stage.github.jobs[1].conclusion == "success"


async def test_a_policy_that_github_never_shows_refuses_the_job(stage: Stage) -> None:
    """The App may not read files there, and is neither suspended nor removed."""

    def trouble(call: str, when: str) -> None:
        if call == "read_file" and when == "before" and stage.github.jobs[1].state == "in_progress":
            raise Refused("403 Resource not accessible by integration")

    stage.github.trouble = trouble
    await stage.deliver(stage.job(1))
    for _ in range(2):
        await stage.hosts_move()
        await stage.look()
    (job,) = stage.github_assigns()
    stage.now += stage.settings.pace.policy_s
    await stage.deliver(job)
    for _ in range(8):
        await stage.hosts_move()
        await stage.look()
        stage.now += 2
    (runner,) = await stage.runners()
    assert "Resource not accessible" in runner.refused


@pytest.mark.parametrize(
    ("suspended", "why"), [(True, "suspended in acme"), (False, "isn't installed in acme any more")]
)
async def test_unheard_of_a_registration_that_is_refused_waits_and_is_made_when_the_app_is_back(
    suspended: bool,
    why: str,
    stage: Stage,
) -> None:
    """GitHub's news that the App is away is lost, and that it is back too."""
    standing = dict(stage.github.apps)
    await turns(stage, 1)
    goes_away_with_the_first_registration(stage, suspended=suspended)
    await stage.deliver(stage.job(1))
    await turns(stage, 3)
    (waits,) = await stage.runners()
    record = await stage.job_record(1)
    assert (waits.life.phase, record.permanent) == ("WANTED", "")
    assert why in record.job.reason
    assert stage.github.calls.count("generate_jit") == 1
    stage.github.apps = standing
    stage.now += 60
    await stage.run(seconds=2)
    record = await stage.job_record(1)
    assert (record.job.conclusion, record.runners) == ("success", (waits.id,))
    assert "incidents{kind=job_given_up}" not in await stage.store.counters()
    assert await stage.leftovers() == {}


def goes_away_with_the_first_registration(stage: Stage, *, suspended: bool) -> None:
    def trouble(call: str, when: When) -> None:
        if (call, when) == ("generate_jit", "before"):
            stage.github.trouble = lambda _call, _when: None
            away = Installation(INSTALLATION, ORG, organization=True, suspended=True)
            stage.github.apps = {INSTALLATION: away} if suspended else {}

    stage.github.trouble = trouble


async def test_a_registration_is_refused_for_good_only_once_github_says_that_the_app_stands(stage: Stage) -> None:
    silent = True

    def trouble(call: str, when: When) -> None:
        if (call, when) == ("generate_jit", "before"):
            raise Refused("403 Resource not accessible by integration")
        if silent and (call, when) == ("installations", "before"):
            raise RateLimited("slow down", 5.0)

    await turns(stage, 1)
    await stage.deliver(stage.job(1))
    stage.github.trouble = trouble
    await turns(stage, 1)
    assert not (await stage.job_record(1)).permanent
    silent = False
    await turns(stage, 3)
    assert "Resource not accessible" in (await stage.job_record(1)).permanent
