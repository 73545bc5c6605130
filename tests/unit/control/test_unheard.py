"""Redis is emptied: what hosts run that haven't spoken yet, or that GitHub doesn't say of whose it is, counts all the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from orchestrator.control.explain_wait import Waits
from orchestrator.control.github import Installation, Unavailable
from orchestrator.control.settings import ControlSettings
from orchestrator.core.machine import MachineClass
from orchestrator.core.sharing import Share, Sharing

from .stage import INSTALLATION, ORG, POLICY, Host, Stage, runner_name

OTHER_ORG, OTHERS = "beta", 9


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """Two hosts, and an organisation that may have one machine."""
    sharing = Sharing(organisations={ORG: Share(runners=1)})
    settings = ControlSettings(
        app_id=1, state_dir=str(tmp_path), prefix="t:", sharing=sharing, hosts={"h1": "h1.token", "h2": "h2.token"}
    )
    settings.classes["ironcd-another"] = MachineClass("ironcd-another")
    made = Stage(tmp_path, hosts=[Host("h1"), Host("h2")], settings=settings)
    await made.store.note_listening(made.now - 60)
    await made.store.note_listening(made.now - 45)
    yield made
    await made.close()


async def turn(stage: Stage, times: int = 3, *, listening: bool = True) -> None:
    for _ in range(times):
        if listening:
            await stage.store.note_listening(stage.now)
        await stage.hosts_move()
        await stage.look()
        stage.now += 1


async def runs_a_job(stage: Stage) -> Host:
    """The host that runs it."""
    await turn(stage, 1)
    await stage.deliver(stage.job(1))
    await turn(stage)
    (record,) = await stage.runners()
    await stage.deliver(stage.github.give(1, runner_name(record.id)))
    await turn(stage)
    return stage.hosts[record.life.host]


async def forget(stage: Stage) -> None:
    await stage.redis.flushall()
    stage.reconciler = stage.fresh()


async def test_a_quota_holds_until_every_host_has_said_what_it_runs(stage: Stage) -> None:
    host = await runs_a_job(stage)
    stage.job(2)
    host.silent = True
    await forget(stage)
    await turn(stage)
    assert await stage.runners() == []
    assert (await stage.job_record(2)).job.reason == (
        f"the control plane has begun anew, and host {host.name} hasn't said yet what it runs"
    )
    host.silent = False
    await turn(stage, 5)
    assert [(record.life.job_id, record.life.phase) for record in await stage.runners()] == [(1, "RUNNING")]
    assert (await stage.job_record(2)).job.reason == f"the quota of organisation {ORG} is used up: 1 of 1 runners"


async def test_a_host_that_stays_silent_holds_nobody_up_for_long(stage: Stage) -> None:
    host = await runs_a_job(stage)
    stage.job(2)
    host.silent = True
    await forget(stage)
    await turn(stage, int(stage.settings.pace.host_away_s) + 3)
    (record,) = await stage.runners()
    assert record.life.meant_for in (1, 2)
    assert record.life.host != host.name


async def test_the_wait_is_told_and_shown(stage: Stage) -> None:
    host = await runs_a_job(stage)
    stage.job(2)
    host.silent = True
    await forget(stage)
    await turn(stage)
    record = await stage.job_record(2)
    assert [moment.what for moment in record.job.story].count("waits_for_hosts") == 1
    shown = Waits(await stage.store.snapshot(), stage.settings, stage.now).of(record)
    assert shown is not None
    assert (shown.kind, shown.reason) == ("hosts", record.job.reason)


async def test_the_wait_ends_by_the_workers_own_time_where_nobody_notes_that_he_listens(stage: Stage) -> None:
    host = await runs_a_job(stage)
    stage.job(2)
    host.silent = True
    await forget(stage)
    await turn(stage, int(stage.settings.pace.host_away_s) - 1, listening=False)
    assert await stage.runners() == []
    await turn(stage, 4, listening=False)
    assert len(await stage.runners()) == 1


async def test_a_host_that_is_down_is_waited_for_once_however_often_redis_is_emptied(stage: Stage) -> None:
    stage.hosts["h2"].silent = True
    for number in (1, 2, 3):
        await stage.redis.flushall()
        stage.github.jobs.clear()
        stage.job(number)
        await turn(stage, 2, listening=False)
        if number == 1:
            assert await stage.runners() == []
            await turn(stage, int(stage.settings.pace.host_away_s), listening=False)
        made = [record.life.meant_for for record in await stage.runners() if record.life.phase != "DESTROYING"]
        assert made == [number]
        stage.hosts["h1"].seen.clear()


async def test_a_new_worker_waits_for_nobody_where_hosts_had_their_time(stage: Stage) -> None:
    stage.hosts["h2"].silent = True
    await turn(stage, int(stage.settings.pace.host_away_s) + 2)
    stage.reconciler = stage.fresh()
    await stage.deliver(stage.job(1))
    await turn(stage, 1)
    assert [record.life.host for record in await stage.runners()] == ["h1"]


async def test_a_clock_that_is_set_back_makes_nobody_wait_longer(stage: Stage) -> None:
    stage.hosts["h2"].silent = True
    await stage.redis.flushall()
    await turn(stage, 2, listening=False)
    await stage.deliver(stage.job(1))
    stage.now -= 3600
    await turn(stage, int(stage.settings.pace.host_away_s) + 2, listening=False)
    assert [record.life.host for record in await stage.runners()] == ["h1"]


async def test_a_runner_that_was_taken_back_counts_for_its_organisation_before_its_job_is_known(stage: Stage) -> None:
    await turn(stage, 1)
    await stage.deliver(stage.job(1))
    await turn(stage)
    (record,) = await stage.runners()
    stage.github.give(1, runner_name(record.id))
    stage.github.jobs.clear()
    await forget(stage)
    await turn(stage)
    (taken,) = await stage.runners()
    assert (taken.life.meant_for, taken.life.job_id) == (0, 0)
    await stage.deliver(stage.job(2, labels=("ironcd-another",)))
    await turn(stage)
    assert (await stage.job_record(2)).job.reason == f"the quota of organisation {ORG} is used up: 1 of 1 runners"


async def test_a_host_that_was_heard_once_is_waited_for_by_nobody(stage: Stage) -> None:
    """The control plane was away, and listens anew: what the silent host runs is on record."""
    await turn(stage, 1)
    stage.hosts["h2"].silent = True
    stage.now += 600
    await stage.deliver(stage.job(1))
    await turn(stage, 1)
    assert [record.life.host for record in await stage.runners()] == ["h1"]


async def test_machines_that_github_says_nothing_of_count(stage: Stage) -> None:
    await runs_a_job(stage)
    stage.job(2)

    def broken(call: str, when: str) -> None:
        if when == "before" and call == "find_runner":
            raise Unavailable("502")

    stage.github.trouble = broken
    await forget(stage)
    await turn(stage, 5)
    assert await stage.runners() == [], "the one machine of the quota runs, whoever's it is"


async def test_a_host_that_is_told_nothing_new_gets_nothing_new(stage: Stage) -> None:
    """Of a machine of an organisation that suspended the App GitHub says nothing, for as long as that lasts."""
    host = await runs_a_job(stage)
    stage.github.apps[INSTALLATION] = Installation(INSTALLATION, ORG, organization=True, suspended=True)
    stage.github.apps[OTHERS] = Installation(OTHERS, OTHER_ORG, organization=True)
    stage.github.files[f"{OTHER_ORG}/app", ".ironcd/policy.yml"] = POLICY
    await forget(stage)
    await turn(stage)
    for number in (11, 12, 13):
        job = stage.job(number, repo=f"{OTHER_ORG}/app")
        await stage.deliver(msgspec.structs.replace(job, installation=OTHERS, org=OTHER_ORG))
    await turn(stage)
    made = await stage.runners()
    assert len(made) == 3
    assert host.name not in {record.life.host for record in made}
