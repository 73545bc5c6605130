"""GitHub is away for an hour: nothing is ended for what can't be heard, nothing is begun, and then all goes on."""

from __future__ import annotations

import msgspec
import pytest

from orchestrator.control.github import RateLimited, Unavailable
from orchestrator.control.github_fake import When
from orchestrator.control.settings import ControlSettings, Pace

from .stage import Stage

HOUR = 3600.0


def away(stage: Stage) -> None:
    def trouble(_call: str, when: When) -> None:
        if when == "before":
            raise Unavailable("502")

    stage.github.trouble = trouble


def back(stage: Stage) -> None:
    stage.github.trouble = lambda _call, _when: None


async def rounds(stage: Stage, seconds: float, *, step: float = 10.0) -> None:
    for _ in range(int(seconds / step)):
        await stage.hosts_move()
        await stage.look()
        stage.now += step


@pytest.fixture
async def caught(stage: Stage) -> Stage:
    """An outage that found job 1's runner booting, and job 2 without one."""
    stage.hosts["h1"].steps_per_move = 0
    await stage.deliver(stage.job(1))
    await stage.look()
    await stage.hosts_move()
    await stage.look()
    (runner,) = await stage.runners()
    assert runner.life.phase == "BOOTING"
    away(stage)
    await stage.deliver(stage.job(2))
    await rounds(stage, 90)
    assert await stage.store.outage_since() > 0
    return stage


async def test_time_stands_still_for_runners_that_wait_for_github(caught: Stage) -> None:
    (waiting,) = [r for r in await caught.runners() if r.life.phase == "WANTED"]
    calls = list(caught.github.calls)
    for _ in range(6):
        await rounds(caught, HOUR / 6)
        assert {(r.life.phase, r.life.fencing) for r in await caught.runners()} == {("BOOTING", ""), ("WANTED", "")}
        (booting,) = [r for r in await caught.runners() if r.life.phase == "BOOTING"]
        assert booting.boot_by > caught.now, "its host doesn't end it either"
    made = caught.github.calls[len(calls) :]
    assert set(made) == {"installations"}
    assert HOUR / 30 - 2 <= len(made) <= HOUR / 30 + 2
    assert "GitHub doesn't answer" in (await caught.job_record(2)).job.reason
    back(caught)
    await rounds(caught, 60)
    assert await caught.store.outage_since() == 0
    (same,) = [r for r in await caught.runners() if r.id == waiting.id]
    assert same.life.registration == "held"
    caught.hosts["h1"].steps_per_move = 99
    await caught.run(rounds=20)
    assert {job: len(runners) for job, runners in caught.started.items()} == {1: 1, 2: 1}
    assert (await caught.job_record(1)).job.replacements == 0
    assert await caught.leftovers() == {}


async def test_deadlines_are_later_by_as_long_as_it_lasted(caught: Stage) -> None:
    (before,) = [r for r in await caught.runners() if r.life.phase == "BOOTING"]
    since = await caught.store.outage_since()
    await rounds(caught, HOUR)
    back(caught)
    await rounds(caught, 40)
    after = next(r for r in await caught.runners() if r.id == before.id)
    longer = after.life.deadline - before.life.deadline
    assert HOUR <= longer <= caught.now - since
    assert after.boot_by == after.life.deadline
    assert after.end_by - before.end_by == longer


async def test_a_worker_that_starts_in_the_middle_knows_of_it(caught: Stage) -> None:
    since = await caught.store.outage_since()
    await rounds(caught, HOUR / 2)
    caught.reconciler = caught.fresh()
    before = len(caught.github.calls)
    await rounds(caught, HOUR / 2)
    assert set(caught.github.calls[before:]) == {"installations"}
    assert await caught.store.outage_since() == since
    assert all(not r.life.fencing for r in await caught.runners())
    back(caught)
    caught.reconciler = caught.fresh()
    await rounds(caught, 10)
    assert await caught.store.outage_since() == 0


async def test_what_was_missed_is_looked_for_at_once(caught: Stage) -> None:
    await rounds(caught, 300)
    caught.job(3)
    back(caught)
    before = len(caught.github.calls)
    await rounds(caught, 40)
    assert {"deliveries", "queued_jobs"} <= set(caught.github.calls[before:])
    assert (await caught.job_record(3)).job.served == "yes"


async def test_a_github_that_limits_is_there(caught: Stage) -> None:
    def trouble(call: str, when: When) -> None:
        if when == "before" and call == "installations":
            raise RateLimited("secondary", 5.0)

    caught.github.trouble = trouble
    await rounds(caught, 40)
    assert await caught.store.outage_since() == 0


async def test_a_job_that_runs_ends_as_ever(stage: Stage) -> None:
    stage.settings = ControlSettings(app_id=1, state_dir=stage.settings.state_dir, prefix="t:")
    await stage.deliver(stage.job(1))
    for _ in range(3):
        await stage.hosts_move()
        await stage.look()
        for job in stage.github_assigns():
            await stage.deliver(job)
    away(stage)
    await stage.deliver(stage.job(2))
    await rounds(stage, 120)
    assert await stage.store.outage_since() > 0
    (runner,) = stage.started[1]
    stage.hosts["h1"].exits(runner, 0, stage.now)
    await rounds(stage, 20)
    known = await stage.store.runner(runner)
    assert known is not None
    assert (known.life.phase, known.life.vm) == ("DESTROYING", "gone"), "only GitHub's word is still missing"


async def test_what_was_missed_is_looked_for_at_once_where_little_of_the_rate_limit_is_left(stage: Stage) -> None:
    stage.reconciler = stage.fresh(stage.scarce(0.4))
    await stage.deliver(stage.job(1))
    await stage.run(rounds=12)
    stage.now += 301
    await stage.look()
    assert "queued_jobs" in stage.github.calls
    away(stage)
    await stage.deliver(stage.job(2))
    await rounds(stage, 90)
    assert await stage.store.outage_since() > 0
    back(stage)
    before = len(stage.github.calls)
    await rounds(stage, 40)
    assert "queued_jobs" in stage.github.calls[before:], "its turn would be in some minutes"


async def test_nothing_is_asked_for_that_cant_be_had(stage: Stage) -> None:
    """A runner that is wanted in an outage leaves no trace of a registration that was tried."""
    stage.settings = msgspec.structs.replace(stage.settings, pace=Pace(policy_s=2 * HOUR))
    stage.reconciler = stage.fresh()
    await stage.deliver(stage.job(1))
    await stage.run(rounds=12)
    away(stage)
    await stage.deliver(stage.job(2))
    await rounds(stage, 90)
    await stage.deliver(stage.job(3))
    await rounds(stage, 60)
    found = {r.life.meant_for: r.life.registration for r in await stage.runners()}
    assert found == {2: "asked", 3: "none"}
    back(stage)
    await stage.run(rounds=40)
    assert {number: len(had) for number, had in stage.started.items()} == {1: 1, 2: 1, 3: 1}
    assert await stage.leftovers() == {}
