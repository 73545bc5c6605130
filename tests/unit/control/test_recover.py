"""Redis is emptied while runners have jobs that their guests haven't spoken of: no machine is ended without GitHub's leave."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from orchestrator.control.github import RunnerScope
from orchestrator.control.records import RunnerRecord
from orchestrator.control.settings import ControlSettings
from orchestrator.core.wire import Scope

from .stage import INSTALLATION, POLICY, REPO, Host, Stage, runner_name

OTHER = "acme/lib"


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """Runners are registered with repositories."""
    settings = ControlSettings(app_id=1, state_dir=str(tmp_path), prefix="t:", registration="repository")
    made = Stage(tmp_path, hosts=[Host("h1")], settings=settings)
    made.github.files[OTHER, ".ironcd/policy.yml"] = POLICY
    yield made
    await made.close()


async def turn(stage: Stage, times: int = 3) -> None:
    for _ in range(times):
        await stage.hosts_move()
        await stage.look()
        stage.now += 1


async def ready(stage: Stage, job: int = 1, repo: str = REPO) -> str:
    await stage.deliver(stage.job(job, repo=repo))
    await turn(stage)
    (record,) = await stage.runners()
    assert record.life.phase == "READY"
    return record.id


async def forget(stage: Stage) -> None:
    """Redis is emptied, and the worker with it."""
    await stage.redis.flushall()
    stage.reconciler = stage.fresh()


async def the(stage: Stage, runner: str) -> RunnerRecord | None:
    return await stage.store.runner(runner)


async def test_a_job_that_was_assigned_and_not_claimed_goes_on(stage: Stage) -> None:
    """GitHub can't be asked by the job: nothing tells of it but that it calls the runner busy."""
    runner = await ready(stage)
    given = stage.github.give(1, runner_name(runner))
    stage.started[1] = [runner]
    del stage.github.jobs[1]
    await forget(stage)
    await turn(stage, times=5)
    assert stage.hosts["h1"].ended == set()
    record = await the(stage, runner)
    assert record is not None
    assert record.life.phase == "READY"
    stage.now += 300
    await turn(stage, times=2)
    assert stage.github.calls.count("delete_runner") >= 1, "it was fenced, and GitHub said that a job got in"
    assert stage.hosts["h1"].ended == set()
    stage.github.jobs[1] = given
    await stage.deliver(given)
    await stage.run(rounds=8)
    assert (await stage.job_record(1)).job.conclusion == "success"
    assert stage.started == {1: [runner]}
    assert await stage.leftovers() == {}


async def test_one_without_a_job_is_removed_where_it_is_registered(stage: Stage) -> None:
    """Another one of the same name, elsewhere, isn't touched."""
    runner = await ready(stage, repo=OTHER)
    assert stage.hosts["h1"].seen[runner].scope == Scope(repo=OTHER)
    await stage.github.generate_jit(RunnerScope(INSTALLATION, repo=REPO), runner_name(runner), ("ironcd",))
    stage.github.end(1, "cancelled")
    await forget(stage)
    await turn(stage, times=8)
    (gone,) = (await stage.store.gone_runners([runner])).values()
    assert (gone.life.org, gone.life.repo, gone.life.registration) == ("", OTHER, "gone")
    assert (gone.life.phase, gone.life.reason) == ("GONE", "surplus")
    assert [scope for scope, _ in stage.github.runners] == [REPO]


async def test_an_agent_of_the_version_before_says_none_and_the_jobs_repositories_are_asked(stage: Stage) -> None:
    stage.hosts["h1"].remembers = False
    runner = await ready(stage, repo=OTHER)
    await stage.deliver(stage.github.give(1, runner_name(runner)))
    stage.started[1] = [runner]
    await forget(stage)
    await turn(stage)
    record = await the(stage, runner)
    assert record is not None
    assert (record.life.repo, record.life.job_id) == (OTHER, 1)
    await stage.run(rounds=8)
    assert (await stage.job_record(1)).job.conclusion == "success"
    assert await stage.leftovers() == {}


@pytest.mark.parametrize("scope", [Scope(org="evil"), Scope(repo="evil/app"), Scope(repo="../../user"), Scope()])
async def test_a_host_cant_have_us_ask_elsewhere(scope: Scope, stage: Stage) -> None:
    runner = await ready(stage)
    host = stage.hosts["h1"]
    host.seen[runner] = msgspec.structs.replace(host.seen[runner], scope=scope)
    await forget(stage)
    calls = len(stage.github.calls)
    await stage.put_reports()
    await stage.look()
    assert "find_runner" not in stage.github.calls[calls:]
    assert await the(stage, runner) is None


async def test_the_mode_may_have_changed_meanwhile(stage: Stage) -> None:
    runner = await ready(stage)
    stage.settings = msgspec.structs.replace(stage.settings, registration="organisation")
    await forget(stage)
    await turn(stage)
    record = await the(stage, runner)
    assert record is not None
    assert (record.life.org, record.life.repo) == ("", REPO)


async def test_a_class_that_is_gone_from_the_settings_ends_no_machine(stage: Stage) -> None:
    runner = await ready(stage)
    given = stage.github.give(1, runner_name(runner))
    stage.started[1] = [runner]
    stage.settings = msgspec.structs.replace(stage.settings, classes={})
    await forget(stage)
    await stage.deliver(given)
    await turn(stage)
    assert stage.hosts["h1"].ended == set()
    record = await the(stage, runner)
    assert record is not None
    assert record.life.phase == "RUNNING"
