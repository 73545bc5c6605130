"""Where a job is: its repository renamed or moved under it, a runner group that forbids it, runners that are disabled."""

from __future__ import annotations

import msgspec
import pytest

from orchestrator.control.github import Refused, RunnerGroup
from orchestrator.control.github_fake import When
from orchestrator.control.groups import refusal
from orchestrator.core.job import Job

from .stage import ORG, POLICY, REPO, Stage

NEW = "acme/renamed"


async def turns(stage: Stage, number: int, seconds: float = 1.0) -> None:
    for _ in range(number):
        await stage.hosts_move()
        await stage.look()
        stage.now += seconds


async def running(stage: Stage, repo_id: int = 5) -> str:
    stage.github.jobs[1] = msgspec.structs.replace(stage.job(1), repo_id=repo_id)
    stage.github.names[5] = REPO
    await stage.deliver(stage.github.jobs[1])
    await turns(stage, 4)
    (job,) = stage.github_assigns()
    await stage.deliver(msgspec.structs.replace(job, repo_id=repo_id))
    await turns(stage, 2)
    (record,) = await stage.runners()
    assert record.life.phase == "RUNNING"
    return record.id


def rename(stage: Stage) -> None:
    """Its former name leads nowhere, as where another repository has taken it."""
    stage.github.names[5] = NEW
    stage.github.files[NEW, ".ironcd/policy.yml"] = POLICY
    del stage.github.files[REPO, ".ironcd/policy.yml"]
    stage.github.jobs = {key: msgspec.structs.replace(job, repo=NEW) for key, job in stage.github.jobs.items()}


async def test_a_repository_that_is_renamed_under_a_job_ends_nothing(stage: Stage) -> None:
    runner = await running(stage)
    rename(stage)
    await turns(stage, 30, seconds=30)
    assert stage.hosts["h1"].ended == set()
    record = await stage.job_record(1)
    assert (record.job.repo, record.job.state) == (NEW, "in_progress")
    assert "acme/app is acme/renamed now" in [m.detail for m in record.job.story if m.what == "repository_renamed"]
    stage.github.end(1)
    await turns(stage, 10, seconds=30)
    assert (await stage.job_record(1)).job.conclusion == "success"
    assert stage.hosts["h1"].ended == {runner}


async def test_the_next_delivery_tells_the_new_name(stage: Stage) -> None:
    await running(stage)
    rename(stage)
    await stage.deliver(msgspec.structs.replace(stage.github.end(1), repo_id=5))
    await turns(stage, 6)
    record = await stage.job_record(1)
    assert (record.job.repo, record.job.conclusion) == (NEW, "success")
    assert await stage.leftovers() == {}


async def test_late_news_under_the_former_name_renames_nothing_back(stage: Stage) -> None:
    await running(stage)
    rename(stage)
    await stage.deliver(msgspec.structs.replace(stage.github.jobs[1], repo_id=5))
    await turns(stage, 1)
    late = msgspec.structs.replace(stage.job(2), repo_id=5)
    stage.github.jobs[2] = msgspec.structs.replace(late, repo=NEW)
    await stage.deliver(late)
    await turns(stage, 1)
    assert [(await stage.job_record(number)).job.repo for number in (1, 2)] == [NEW, NEW]


async def test_a_job_that_is_gone_is_gone(stage: Stage) -> None:
    """Its repository is where it was, and GitHub doesn't know the job: that is an end."""
    await running(stage)
    del stage.github.jobs[1]
    stage.github.runners.clear()
    await turns(stage, 10, seconds=30)
    assert (await stage.job_record(1)).job.state == "completed"


async def test_a_runner_group_that_forbids_the_repository_is_named_and_no_machine_is_made(stage: Stage) -> None:
    stage.github.group = RunnerGroup(
        "Builders", "selected", allows_public=False, repositories=frozenset({"acme/other"})
    )
    await turns(stage, 1)
    await stage.deliver(stage.job(1))
    await turns(stage, 5)
    record = await stage.job_record(1)
    assert "the runner group 'Builders' doesn't let acme/app use its runners" in record.job.reason
    assert [moment.what for moment in record.job.story].count("group_forbids") == 1
    assert (await stage.runners(), "generate_jit" in stage.github.calls) == ([], False)
    stage.github.group = msgspec.structs.replace(stage.github.group, repositories=frozenset({"acme/other", "Acme/App"}))
    stage.now += 61
    await stage.run(seconds=2)
    assert (await stage.job_record(1)).job.conclusion == "success"


async def test_a_group_that_cant_be_read_forbids_nothing(stage: Stage) -> None:
    def trouble(call: str, _when: When) -> None:
        if call == "runner_group":
            raise Refused("403 Resource not accessible by integration")

    stage.github.trouble = trouble
    await turns(stage, 1)
    await stage.deliver(stage.job(1))
    await stage.run(seconds=2)
    assert (await stage.job_record(1)).job.conclusion == "success"


@pytest.mark.parametrize(
    ("group", "public", "said"),
    [
        (RunnerGroup("g", "all", allows_public=True), True, ""),
        (RunnerGroup("g", "all", allows_public=False), True, "doesn't allow public repositories"),
        (RunnerGroup("g", "all", allows_public=False), False, ""),
        (RunnerGroup("g", "all", allows_public=False), None, ""),
        (RunnerGroup("g", "private", allows_public=True), True, "is for private repositories"),
        (RunnerGroup("g", "private", allows_public=True), False, ""),
        (RunnerGroup("g", "selected", allows_public=True, repositories=frozenset({REPO})), True, ""),
        (RunnerGroup("g", "selected", allows_public=True, repositories=frozenset()), False, "doesn't let acme/app"),
    ],
)
def test_what_a_group_forbids(group: RunnerGroup, public: bool | None, said: str) -> None:
    why = refusal(group, Job(1, 7, ORG, REPO, "queued", public=public))
    assert (said in why) if said else (why == "")


async def test_self_hosted_runners_disabled_in_the_organisation_is_what_the_job_says(stage: Stage) -> None:
    def trouble(call: str, when: When) -> None:
        if (call, when) == ("generate_jit", "before"):
            raise Refused("403 Self-hosted runners are disabled for this organization")

    stage.github.trouble = trouble
    await turns(stage, 1)
    await stage.deliver(stage.job(1))
    await turns(stage, 5, seconds=60)
    assert "Self-hosted runners are disabled" in (await stage.job_record(1)).job.reason
    assert stage.github.calls.count("generate_jit") == 1
