"""Quotas, shares and priorities, from delivery to the job's start, by the stage's clock."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from orchestrator.control.settings import ControlSettings
from orchestrator.core.machine import MachineClass
from orchestrator.core.sharing import Share, Sharing

from .stage import POLICY, Host, Stage

FLOOD, QUIET = "acme/flood", "acme/quiet"
JOB_S = 60.0
STEP_S = 5.0
EVEN = Sharing()
Make = Callable[..., Stage]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    made: list[Stage] = []

    def stage(*, vcpus: int = 8, sharing: Sharing = EVEN, registration: str = "repository") -> Stage:
        classes = {name: MachineClass(name) for name in ("ironcd", "ironcd-own")}
        settings = ControlSettings(app_id=1, state_dir=str(tmp_path), prefix="t:", sharing=sharing, classes=classes)
        settings = msgspec.structs.replace(settings, registration=registration)
        made.append(Stage(tmp_path, hosts=[Host("h1", vcpus)], settings=settings))
        for repo in (FLOOD, QUIET):
            made[-1].github.files[repo, ".ironcd/policy.yml"] = POLICY
        return made[-1]

    yield stage
    for one in made:
        await one.close()


class Play:
    """Jobs of one minute each, and when each of them started."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.started: dict[int, float] = {}
        self.most = 0
        """Jobs that ran at once."""

    async def go(self, seconds: float) -> None:
        stage, end = self.stage, self.stage.now + seconds
        while stage.now < end:
            await stage.hosts_move()
            await stage.look()
            await stage.hosts_move()
            for job in stage.github_assigns():
                self.started[job.id] = stage.now
                await stage.deliver(job)
            running = [job for job in stage.github.jobs.values() if job.state == "in_progress"]
            self.most = max(self.most, len(running))
            for job in running:
                if stage.now - self.started[job.id] >= JOB_S:
                    await stage.deliver(stage.github.end(job.id))
            stage.now += STEP_S


async def queue(stage: Stage, *numbers: int, repo: str, labels: tuple[str, ...] = ("ironcd",)) -> None:
    for number in numbers:
        await stage.deliver(stage.job(number, repo=repo, labels=labels))


async def test_a_flood_makes_no_quiet_repository_wait(make: Make) -> None:
    """200 jobs on four machines would take 50 minutes; a quiet repository waits until one of them ends."""
    stage = make()
    play = Play(stage)
    await queue(stage, *range(1, 201), repo=FLOOD)
    await play.go(100)
    await queue(stage, 901, repo=QUIET)
    asked = stage.now
    await play.go(JOB_S + 6 * STEP_S)
    assert play.started[901] - asked <= JOB_S + 4 * STEP_S
    flood = [number for number in play.started if number < 900]
    assert 8 <= len(flood) < 20, "the flood has the rest of the machines"
    assert flood == list(range(1, len(flood) + 1)), "and its jobs keep their order"


async def test_with_an_organisations_runners_a_label_of_its_own_does_the_same(make: Make) -> None:
    stage = make(registration="organisation")
    play = Play(stage)
    await queue(stage, *range(1, 101), repo=FLOOD)
    await play.go(100)
    await queue(stage, 901, repo=QUIET, labels=("ironcd-own",))
    asked = stage.now
    await play.go(JOB_S + 6 * STEP_S)
    assert play.started[901] - asked <= JOB_S + 4 * STEP_S


async def test_a_repository_never_has_more_runners_than_its_quota(make: Make) -> None:
    stage = make(vcpus=32, sharing=Sharing(repositories={FLOOD: Share(runners=3)}))
    play = Play(stage)
    await queue(stage, *range(1, 9), repo=FLOOD)
    await play.go(2 * STEP_S)
    reason = (await stage.job_record(8)).job.reason
    assert reason == "the quota of repository acme/flood is used up: 3 of 3 runners"
    story = [moment.what for moment in (await stage.job_record(8)).job.story]
    assert story.count("waits_for_quota") == 1
    await play.go(300)
    assert sorted(play.started) == list(range(1, 9))
    assert play.most == 3


async def test_vcpus_of_a_class(make: Make) -> None:
    stage = make(vcpus=32, sharing=Sharing(classes={"ironcd-own": Share(vcpus=5)}))
    await queue(stage, 1, 2, 3, repo=FLOOD, labels=("ironcd-own",))
    await queue(stage, 4, 5, repo=QUIET)
    await Play(stage).go(2 * STEP_S)
    words = "the quota of class ironcd-own has no room: 4 of 5 vCPUs are in use, and class ironcd-own needs 2"
    assert (await stage.job_record(3)).job.reason == words
    assert {r.life.meant_for for r in await stage.runners()} == {1, 2, 4, 5}


async def test_priorities(make: Make) -> None:
    sharing = Sharing(repositories={QUIET: Share(priority=1), FLOOD: Share(priority=-1)}, ageing_s=200)
    stage = make(vcpus=2, sharing=sharing)
    play = Play(stage)
    await queue(stage, 1, repo=QUIET)
    await play.go(STEP_S)
    await queue(stage, 2, repo=FLOOD)
    await queue(stage, *range(10, 30), repo=QUIET)
    await play.go(900)
    before = sorted(play.started, key=lambda number: play.started[number]).index(2)
    assert before == pytest.approx(400 / (JOB_S + 3 * STEP_S), abs=2), "two steps up, and then it goes before those"


async def test_a_runner_that_took_another_job_counts_for_that_jobs_repository(make: Make) -> None:
    """With an organisation's runners GitHub gives the machine to whom it likes: what counts is who has it."""
    stage = make(vcpus=32, registration="organisation", sharing=Sharing(repositories={FLOOD: Share(runners=1)}))
    await queue(stage, 1, repo=QUIET)
    play = Play(stage)
    await stage.hosts_move()
    await stage.look()
    await queue(stage, 2, repo=FLOOD)
    stage.github.jobs = {2: stage.github.jobs[2], 1: stage.github.jobs[1]}
    await stage.hosts_move()
    given = stage.github_assigns()
    assert [job.id for job in given] == [2]
    for job in given:
        play.started[job.id] = stage.now
        await stage.deliver(job)
    await queue(stage, 3, repo=FLOOD)
    await stage.look()
    assert (await stage.job_record(3)).job.reason.endswith("1 of 1 runners")
    await play.go(200)
    assert set(play.started) == {1, 2, 3}


async def test_a_job_that_waits_for_room_has_no_runner_and_costs_one_line(make: Make) -> None:
    stage = make(vcpus=2)
    await queue(stage, *range(1, 6), repo=FLOOD)
    for _ in range(5):
        await stage.hosts_move()
        await stage.look()
        stage.now += 300
    assert len(await stage.runners()) == 1
    record = await stage.job_record(5)
    assert record.wait == "room"
    assert [moment.what for moment in record.job.story].count("waits_for_room") == 1
