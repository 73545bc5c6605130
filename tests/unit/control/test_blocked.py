"""Commits are told once what their jobs were kept from, whatever fails on the way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import fakeredis
import pytest

from orchestrator.control.blocked import GIVE_UP_S, WAIT_S, BlockedReporter
from orchestrator.control.github import Installation, Refused, Unavailable
from orchestrator.control.github_fake import FakeGitHub
from orchestrator.control.records import JobRecord
from orchestrator.control.store import Store
from orchestrator.core.blocked import Blocked
from orchestrator.core.job import Job

EVIL = Blocked("evil.example", "not_allowed", 2, "{host: evil.example}")
OVER = 1_700_000_000.0


class Scene:
    def __init__(self) -> None:
        self.store = Store(fakeredis.FakeAsyncRedis())
        self.github = FakeGitHub()
        self.github.apps[7] = Installation(7, "acme", organization=True)
        self.now = OVER + WAIT_S
        self.record: dict[int, Sequence[Blocked] | None] = {1: [EVIL]}
        self.asked: list[int] = []
        self.reporter = self.again()

    def again(self) -> BlockedReporter:
        self.reporter = BlockedReporter(self.store, self.github, self.blocked_of, clock=lambda: self.now)
        return self.reporter

    async def blocked_of(self, job: Job) -> Sequence[Blocked] | None:
        self.asked.append(job.id)
        return self.record[job.id]

    async def finish(self, job: Job, at: float = OVER) -> None:
        lease = await self.store.acquire()
        assert lease is not None
        changes = self.store.changes()
        changes.finish_job(JobRecord(job, over_at=at))
        await self.store.commit(lease, changes)
        await self.store.release(lease)


JOB = Job(1, 7, "acme", "acme/app", "completed", name="build", head_sha="abc", served="yes")


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    made = Scene()
    yield made
    await made.store.close()


async def test_it_is_said_once_also_by_the_next_process(scene: Scene) -> None:
    await scene.finish(JOB)
    await scene.reporter.round()
    await scene.reporter.round()
    await scene.again().round()
    text = "blocked: evil.example; if meant, add to allow: - {host: evil.example}"
    assert scene.github.statuses == [("acme/app", "abc", "success", text)]
    ((repo, sha, name, conclusion, title, summary),) = scene.github.check_runs
    assert (repo, sha, name, conclusion, title) == ("acme/app", "abc", "ironcd/egress (build)", "neutral", text)
    assert "- {host: evil.example}" in summary
    assert scene.asked == [1]


async def test_nothing_blocked_is_nothing_to_say(scene: Scene) -> None:
    scene.record[1] = []
    await scene.finish(JOB)
    await scene.reporter.round()
    await scene.again().round()
    assert (scene.github.statuses, scene.asked) == ([], [1])


async def test_records_are_waited_for_and_old_jobs_left_alone(scene: Scene) -> None:
    await scene.finish(JOB)
    for now in (OVER + WAIT_S - 0.1, OVER + GIVE_UP_S + 1):
        scene.now = now
        await scene.reporter.round()
    assert scene.asked == []


@pytest.mark.parametrize("served", ["no", "ignored", "refused", "elsewhere"])
async def test_jobs_that_arent_ours(scene: Scene, served: str) -> None:
    import msgspec

    await scene.finish(msgspec.structs.replace(JOB, served=served))
    await scene.reporter.round()
    assert scene.asked == []


async def test_a_record_or_a_github_that_is_away_is_asked_again(scene: Scene) -> None:
    scene.record[1] = None
    await scene.finish(JOB)
    await scene.reporter.round()
    assert scene.github.statuses == []
    scene.record[1] = [EVIL]

    def away(*_: object) -> None:
        raise Unavailable("x")

    scene.github.trouble = away
    await scene.reporter.round()
    scene.github.trouble = lambda *_: None
    await scene.reporter.round()
    assert len(scene.github.statuses) == 1
    assert scene.asked == [1, 1, 1]


async def test_an_app_that_may_not_write_checks_leaves_the_status(scene: Scene) -> None:
    def refuse(call: str, *_: object) -> None:
        if call == "add_check_run":
            raise Refused("checks: write is needed")

    scene.github.trouble = refuse
    await scene.finish(JOB)
    await scene.reporter.round()
    await scene.reporter.round()
    assert (len(scene.github.statuses), scene.github.check_runs, scene.asked) == (1, [], [1])
