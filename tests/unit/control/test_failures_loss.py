"""Known ways a job goes wrong while it runs, by their number: its machine dies under it, or hangs, or GitHub forgets it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from orchestrator.control.github import Refused, Unavailable
from orchestrator.control.github_fake import When
from orchestrator.control.settings import ControlSettings
from orchestrator.core.job import Job
from orchestrator.core.runner import Deadlines
from orchestrator.core.wire import Failure, GuestClaim

from .stage import ORG, REPO, Host, Stage, runner_name

PANIC = Failure(
    "vm-crashed", "the VM ended in the middle of its work (crashed)", console="```Out of memory", domain="crashed"
)


@pytest.fixture
async def again(tmp_path: Path) -> AsyncIterator[Stage]:
    """Where everything that was lost is run again."""
    settings = ControlSettings(app_id=1, state_dir=str(tmp_path), prefix="t:", rerun_on_infra_loss=("*",))
    made = Stage(tmp_path, settings=settings)
    yield made
    await made.close()


async def running(stage: Stage, *jobs: int) -> list[str]:
    """Jobs that run: the ULIDs of their runners."""
    for number in jobs:
        await stage.deliver(stage.github.jobs.get(number) or stage.job(number))
    for _ in range(4):
        await stage.hosts_move()
        await stage.look()
    for job in stage.github_assigns():
        await stage.deliver(job)
    for _ in range(2):
        await stage.look()
        await stage.hosts_move()
    records = {record.life.job_id: record for record in await stage.runners()}
    assert {record.life.phase for record in records.values()} == {"RUNNING"}
    return [records[number].id for number in jobs]


def crashes(stage: Stage, runner: str) -> None:
    host = stage.host_of(runner)
    host.seen[runner] = msgspec.structs.replace(host.seen[runner], vm="crashed", failure=PANIC)


def freezes(stage: Stage, runner: str) -> None:
    """From now on its guest says nothing."""
    host = stage.host_of(runner)
    host.seen[runner] = msgspec.structs.replace(host.seen[runner], heard_at=stage.now)


async def turns(stage: Stage, number: int = 2, seconds: float = 1.0) -> None:
    for _ in range(number):
        await stage.put_reports()
        await stage.look()
        stage.now += seconds


async def loss(stage: Stage, job: int) -> str:
    return (await stage.job_record(job)).loss


def github_gives_up(stage: Stage, job: int) -> Job:
    """Ten minutes after its runner last renewed its hold, GitHub ends a job."""
    stage.now += 600
    return stage.github.end(job, "failure")


async def test_row_15_a_machine_that_crashes_is_an_infrastructure_loss_at_once(stage: Stage) -> None:
    (runner,) = await running(stage, 1)
    crashes(stage, runner)
    await turns(stage)
    record = await stage.job_record(1)
    assert record.job.state == "in_progress", "GitHub ends it, not we"
    assert "vm-crashed" in record.loss
    assert record.job.reason.startswith("infrastructure loss: vm-crashed")
    assert "infrastructure_loss" in [moment.what for moment in record.job.story]
    assert (await stage.store.counters())["incidents{kind=infrastructure_loss}"] == 1
    ((_, sha, state, text),) = stage.github.statuses
    assert (sha, state) == (f"{1:040x}", "error")
    assert text.startswith("Infrastructure loss: vm-crashed")
    ((*_, conclusion, title, summary),) = stage.github.check_runs
    assert (conclusion, title) == ("neutral", text)
    assert "'''Out of memory" in summary, "the guest's words can't end their block"
    await stage.deliver(github_gives_up(stage, 1))
    await stage.run(seconds=2, deliver=False)
    record = await stage.job_record(1)
    assert (record.job.conclusion, "vm-crashed" in record.loss, record.rerun) == ("failure", True, None)
    assert "rerun_job" not in stage.github.calls, "off unless a setting says so"
    assert await stage.leftovers() == {}


async def test_row_15_a_host_lost_in_the_middle_marks_all_its_jobs(tmp_path: Path) -> None:
    stage = Stage(tmp_path, hosts=[Host("a", vcpus=8)])
    await running(stage, 1, 2)
    stage.hosts["b"] = Host("b", vcpus=2)
    lost = stage.hosts.pop("a")
    stage.now += 181
    await turns(stage)
    assert {(await loss(stage, n)).partition(":")[0] for n in (1, 2)} == {"host_lost"}
    for number in (1, 2):
        stage.github.end(number, "failure")
    stage.hosts["a"] = lost
    await stage.run(seconds=20, deliver=False)
    assert await stage.leftovers() == {}
    await stage.close()


async def test_row_15_a_silent_guest_is_a_loss_until_it_speaks(stage: Stage) -> None:
    (runner,) = await running(stage, 1)
    freezes(stage, runner)
    stage.now += 59
    await turns(stage, 1, seconds=0)
    assert await loss(stage, 1) == ""
    stage.now += 1
    await turns(stage)
    assert "silent for a minute" in await loss(stage, 1)
    assert runner not in stage.hosts["h1"].ended, "it may be slow: only GitHub's word or its time ends it"
    freezes(stage, runner)  # it has just spoken
    await turns(stage)
    record = await stage.job_record(1)
    assert (record.loss, record.job.reason) == ("", "")
    assert [state for *_, state, _ in stage.github.statuses] == ["error", "success"]
    await stage.run()
    assert (await stage.job_record(1)).job.conclusion == "success"
    assert await stage.leftovers() == {}


async def test_row_15_what_github_calls_a_success_was_no_loss(stage: Stage) -> None:
    (runner,) = await running(stage, 1)
    crashes(stage, runner)
    await turns(stage)
    await stage.deliver(stage.github.end(1, "success"))
    await stage.run(seconds=2, deliver=False)
    record = await stage.job_record(1)
    assert (record.job.conclusion, record.loss) == ("success", "")


async def test_row_15_a_lost_job_is_run_again_where_the_setting_says_so(again: Stage) -> None:
    stage = again
    (runner,) = await running(stage, 1)
    crashes(stage, runner)
    await turns(stage, 30, seconds=30)
    assert "rerun_job" not in stage.github.calls, "not before GitHub has ended it"
    await stage.deliver(github_gives_up(stage, 1))
    await turns(stage)
    (fresh,) = [job for job in stage.github.jobs.values() if job.attempt == 2]
    record = await stage.job_record(1)
    assert record.rerun is not None
    assert record.rerun.state == "done"
    await stage.deliver(msgspec.structs.replace(fresh, deploys=False))
    (second,) = await running(stage, fresh.id)
    crashes(stage, second)
    await turns(stage)
    await stage.deliver(github_gives_up(stage, fresh.id))
    await turns(stage)
    record = await stage.job_record(fresh.id)
    assert record.rerun is not None
    assert (record.rerun.state, "1 times" in record.rerun.why) == ("refused", True), "its budget is spent"
    assert stage.github.calls.count("rerun_job") == 1


async def test_row_15_a_run_that_goes_on_is_asked_for_fifteen_minutes(again: Stage) -> None:
    stage = again
    runner, _ = await running(stage, 1, 2)
    stage.github.jobs[2] = msgspec.structs.replace(stage.github.jobs[2], run_id=stage.github.jobs[1].run_id)
    crashes(stage, runner)
    await turns(stage)
    await stage.deliver(github_gives_up(stage, 1))
    await turns(stage, 60, seconds=10)
    assert 19 <= stage.github.calls.count("rerun_job") <= 21, "each 30 seconds"
    assert (await stage.job_record(1)).rerun is not None
    stage.github.end(2, "success")
    await turns(stage, 4, seconds=10)
    assert [job.attempt for job in stage.github.jobs.values()] == [1, 1, 2]
    calls = stage.github.calls.count("rerun_job")
    await turns(stage, 4, seconds=100)
    assert stage.github.calls.count("rerun_job") == calls


async def test_row_15_a_run_that_never_ends_is_given_up(again: Stage) -> None:
    stage = again
    runner, _ = await running(stage, 1, 2)
    stage.github.jobs[2] = msgspec.structs.replace(stage.github.jobs[2], run_id=stage.github.jobs[1].run_id)
    crashes(stage, runner)
    await turns(stage)
    await stage.deliver(github_gives_up(stage, 1))
    await turns(stage, 70, seconds=15)
    record = await stage.job_record(1)
    assert record.rerun is not None
    assert (record.rerun.state, "given up after 15 minutes" in record.rerun.why) == ("refused", True)


@pytest.mark.parametrize(
    ("change", "conclusion", "why"),
    [
        ({}, "cancelled", "cancelled"),
        ({"deploys": True}, "failure", "deploys to an environment"),
        ({"deploys": None}, "failure", "no delivery told"),
    ],
)
async def test_row_15_deployments_and_what_a_person_cancelled_are_never_run_again(
    change: dict[str, object], conclusion: str, why: str, again: Stage
) -> None:
    stage = again
    stage.github.jobs[1] = msgspec.structs.replace(stage.job(1), **change)
    (runner,) = await running(stage, 1)
    crashes(stage, runner)
    await turns(stage)
    stage.now += 600
    await stage.deliver(stage.github.end(1, conclusion))
    await turns(stage)
    record = await stage.job_record(1)
    assert record.rerun is not None
    assert (record.rerun.state, why in record.rerun.why) == ("refused", True)
    assert "rerun_job" not in stage.github.calls
    await stage.run(seconds=2, deliver=False)
    assert await stage.leftovers() == {}


async def test_row_15_a_job_that_just_fails_is_not_run_again(again: Stage) -> None:
    await running(again, 1)
    await again.deliver(again.github.end(1, "failure"))
    await again.run(seconds=2, deliver=False)
    record = await again.job_record(1)
    assert (record.loss, record.rerun) == ("", None)
    assert "rerun_job" not in again.github.calls


@pytest.mark.parametrize("where", [(ORG,), (REPO,), ("class:ironcd",), ("other", "acme/other", "class:ironcd-gpu")])
async def test_row_15_the_setting_names_whom_it_is_for(where: tuple[str, ...], tmp_path: Path) -> None:
    settings = ControlSettings(app_id=1, state_dir=str(tmp_path), prefix="t:", rerun_on_infra_loss=where)
    stage = Stage(tmp_path, settings=settings)
    (runner,) = await running(stage, 1)
    crashes(stage, runner)
    await turns(stage)
    await stage.deliver(github_gives_up(stage, 1))
    await turns(stage)
    assert ("rerun_job" in stage.github.calls) is (where[0] != "other")
    await stage.close()


@pytest.mark.parametrize("when", ["before", "after"])
async def test_row_15_a_lost_answer_runs_nothing_twice(when: When, again: Stage) -> None:
    stage, lost = again, iter([True])

    def trouble(call: str, at: When) -> None:
        if (call, at) == ("rerun_job", when) and next(lost, False):
            raise Unavailable("timeout")

    stage.github.trouble = trouble
    (runner,) = await running(stage, 1)
    crashes(stage, runner)
    await turns(stage)
    await stage.deliver(github_gives_up(stage, 1))
    await turns(stage, 10, seconds=31)
    assert sorted(job.attempt for job in stage.github.jobs.values()) == [1, 2]
    record = await stage.job_record(1)
    assert record.rerun is not None
    assert (record.rerun.state, record.rerun.why) == ("done", "")


async def test_row_15_without_the_permission_it_says_so(again: Stage) -> None:
    def trouble(call: str, _at: When) -> None:
        if call == "rerun_job":
            raise Refused("403 Resource not accessible by integration")

    again.github.trouble = trouble
    (runner,) = await running(again, 1)
    crashes(again, runner)
    await turns(again)
    await again.deliver(github_gives_up(again, 1))
    await turns(again)
    record = await again.job_record(1)
    assert record.rerun is not None
    assert (record.rerun.state, "not accessible" in record.rerun.why) == ("refused", True)


@pytest.fixture
async def patient(tmp_path: Path) -> AsyncIterator[Stage]:
    """Where runners may be idle for an hour."""
    settings = ControlSettings(app_id=1, state_dir=str(tmp_path), prefix="t:", deadlines=Deadlines(ready_s=3600))
    made = Stage(tmp_path, settings=settings)
    made.github_assigns = list  # type: ignore[method-assign]
    yield made
    await made.close()


async def listening(stage: Stage) -> str:
    await stage.deliver(stage.job(1))
    for _ in range(4):
        await stage.hosts_move()
        await stage.look()
    (record,) = await stage.runners()
    assert record.life.phase == "READY"
    return record.id


async def test_row_16_a_runner_that_github_has_forgotten_is_destroyed(patient: Stage) -> None:
    stage = patient
    runner = await listening(stage)
    stage.github.runners.clear()
    await turns(stage, 11, seconds=20)
    (record,) = [r for r in await stage.runners() if r.id == runner]
    assert record.life.phase == "READY", "a record may lag"
    assert record.missing_since > 0
    await turns(stage, 4, seconds=20)
    gone = await stage.store.runner(runner)
    assert gone is not None
    assert (gone.life.phase, gone.life.reason) == ("DESTROYING", "ghost")


async def test_row_16_a_forgotten_runner_whose_guest_has_a_job_is_left_alone(patient: Stage) -> None:
    stage = patient
    runner = await listening(stage)
    stage.github.runners.clear()
    stage.hosts["h1"].claims(runner, GuestClaim(repository=REPO, run_id=1001, run_attempt=1), stage.now)
    await turns(stage, 60, seconds=30)
    assert runner not in stage.hosts["h1"].ended


async def test_row_16_a_record_that_lags_costs_nothing(patient: Stage) -> None:
    stage = patient
    runner = await listening(stage)
    kept = dict(stage.github.runners)
    stage.github.runners.clear()
    await turns(stage, 8, seconds=20)
    stage.github.runners.update(kept)
    await turns(stage, 20, seconds=20)
    (record,) = await stage.runners()
    assert (record.id, record.life.phase, record.missing_since) == (runner, "READY", 0.0)


async def test_row_16_a_guest_that_is_busy_after_its_job_ended_is_destroyed(stage: Stage) -> None:
    """At once: GitHub's word is the end, and nothing that the machine does after it is wanted."""
    (runner,) = await running(stage, 1)
    await stage.deliver(stage.github.end(1))
    await stage.look()
    await stage.hosts_move()
    assert runner in stage.hosts["h1"].ended


async def clears_away(stage: Stage, rounds: int) -> None:
    for _ in range(rounds):
        await stage.hosts_move()
        await stage.look()
        stage.now += 15


async def test_row_16_in_progress_after_the_runner_has_ended_is_lost_when_its_hold_runs_out(stage: Stage) -> None:
    (runner,) = await running(stage, 1)
    stage.hosts["h1"].exits(runner, 0, stage.now)
    await clears_away(stage, 39)
    assert await loss(stage, 1) == "", "the end of a job may be late"
    await clears_away(stage, 3)
    assert "GitHub still waits" in await loss(stage, 1)
    stage.github.end(1, "failure")
    await clears_away(stage, 4)
    record = await stage.job_record(1)
    assert (record.job.conclusion, bool(record.loss)) == ("failure", True)
    assert runner_name(runner) not in {seen.name for seen in stage.github.runners.values()}
    assert await stage.leftovers() == {}


async def test_row_15_a_job_that_failed_by_itself_is_no_loss_whatever_was_seen_first(again: Stage) -> None:
    """Its machine is seen to end before GitHub's word comes, and what its runner said last was lost."""
    (runner,) = await running(again, 1)
    host = again.hosts["h1"]
    host.seen[runner] = msgspec.structs.replace(host.seen[runner], vm="stopped")
    await turns(again)
    assert "vm_stopped" in await loss(again, 1)
    again.now += 20
    await again.deliver(again.github.end(1, "failure"))
    await again.run(seconds=2, deliver=False)
    record = await again.job_record(1)
    assert (record.job.conclusion, record.loss, record.rerun) == ("failure", "", None)
    assert "rerun_job" not in again.github.calls


async def test_row_15_a_machine_that_dies_after_its_job_ended_is_no_loss(stage: Stage) -> None:
    (runner,) = await running(stage, 1)
    host = stage.hosts["h1"]
    host.seen[runner] = msgspec.structs.replace(
        host.seen[runner], marks={**host.seen[runner].marks, "job_completed": stage.now}
    )
    crashes(stage, runner)
    await turns(stage)
    assert await loss(stage, 1) == ""


async def test_row_15_a_control_plane_that_was_away_for_an_hour_takes_nobody_for_lost(stage: Stage) -> None:
    (runner,) = await running(stage, 1)
    await stage.store.note_listening(stage.now)
    stage.now += 3600
    stage.reconciler = stage.fresh()
    await stage.look()
    assert await loss(stage, 1) == "", "nobody listens yet"
    await stage.store.note_listening(stage.now)
    await stage.look()
    assert await loss(stage, 1) == "", "nobody had the time to be heard"
    for _ in range(12):
        stage.now += 15
        await stage.store.note_listening(stage.now)
        await stage.look()
    assert await loss(stage, 1) == ""
    stage.now += 15
    await stage.store.note_listening(stage.now)
    await stage.look()
    assert "host_lost" in await loss(stage, 1), "silent for three minutes, and somebody listened"
    assert runner in {record.id for record in await stage.runners()}


async def test_row_15_of_several_jobs_that_one_attempt_lost_the_first_is_run_again(again: Stage) -> None:
    """GitHub makes a later attempt of the whole run for it; the others say so."""
    stage = again
    first, second = await running(stage, 1, 2)
    stage.github.jobs[2] = msgspec.structs.replace(stage.github.jobs[2], run_id=stage.github.jobs[1].run_id)
    await stage.deliver(stage.github.jobs[2])
    for runner in (first, second):
        crashes(stage, runner)
    await turns(stage)
    await stage.deliver(github_gives_up(stage, 1))
    await stage.deliver(stage.github.end(2, "failure"))
    await turns(stage, 4, seconds=31)
    assert [job.attempt for job in stage.github.jobs.values()] == [1, 1, 2]
    reruns = [(await stage.job_record(number)).rerun for number in (1, 2)]
    assert {rerun.state for rerun in reruns if rerun is not None} == {"done"}
    assert sorted(rerun.why for rerun in reruns if rerun is not None) == ["", "its run was run again already"]


async def test_row_15_a_job_goes_on_over_an_hour_without_control_plane_and_is_served_once(stage: Stage) -> None:
    (runner,) = await running(stage, 1)
    await stage.store.note_listening(stage.now)
    stage.now += 3600
    stage.reconciler = stage.fresh()
    for _ in range(20):  # the host needs its time to be heard again
        await stage.store.note_listening(stage.now)
        await stage.look()
        stage.now += 5
    assert runner not in stage.hosts["h1"].ended
    await stage.hosts_move()
    await stage.look()
    record = await stage.job_record(1)
    assert (record.job.state, record.loss) == ("in_progress", "")
    await stage.run(seconds=2.0)
    record = await stage.job_record(1)
    assert (record.job.conclusion, record.loss, record.runners) == ("success", "", (runner,))
    assert await stage.leftovers() == {}
