"""Random histories: jobs queued, cancelled and stolen, hosts drained, deliveries lost, doubled and late, VMs failing, GitHub away,
Redis emptied, the worker killed.  Afterwards every job was served once or ended by somebody else, and nothing is left.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.control.github import Unavailable
from orchestrator.control.settings import ControlSettings
from orchestrator.core.decided import Drain
from orchestrator.core.job import Job
from orchestrator.core.names import ulid_of
from orchestrator.core.sharing import Share, Sharing
from orchestrator.core.wire import Failure

from .stage import POLICY, REPO, Host, Stage

REPOS = (REPO, "acme/quiet", "acme/first")
SHARING = Sharing(repository=Share(runners=2), repositories={"acme/first": Share(priority=3)})

DEEDS = (
    "queue", "queue", "queue", "cancel", "assign", "assign", "end", "end", "look", "look", "look", "hosts", "hosts", "hosts",
    "wait", "long_wait", "outage", "die", "vm_fails", "steal", "repeat", "late", "empty", "drain", "drain",
)  # fmt: skip


class History:
    """Plays deeds.  What happens at GitHub is delivered at once, late, twice, or never.

    The first word of a job isn't lost here: to find such jobs again is the redelivery sweep's work.
    """

    def __init__(self, stage: Stage, rng: random.Random) -> None:
        self.stage = stage
        self.rng = rng
        self.numbers = itertools.count(1)
        self.late: list[Job] = []
        self.told: list[Job] = []
        self.failing = 0
        self.cancelled: set[int] = set()
        for host in stage.hosts.values():
            host.fails = self._fails

    def _fails(self, _runner: str) -> Failure | None:
        if self.failing <= 0:
            return None
        self.failing -= 1
        return Failure("guest-silent", "the guest never spoke")

    async def tell(self, job: Job) -> None:
        self.told.append(job)
        fate = self.rng.random()
        if fate < 0.15:
            self.late.append(job)
        elif fate > 0.25 or job.state == "queued":
            await self.stage.deliver(job, guid=f"{job.id}-{job.state}")

    async def play(self, deed: str) -> None:
        stage, rng = self.stage, self.rng
        jobs = stage.github.jobs
        match deed:
            case "queue":
                await self.tell(stage.job(next(self.numbers), repo=rng.choice(REPOS)))
            case "cancel":
                queued = [job.id for job in jobs.values() if job.state == "queued"]
                if queued:
                    number = rng.choice(queued)
                    self.cancelled.add(number)
                    await self.tell(stage.github.end(number, "cancelled"))
            case "assign":
                for job in stage.github_assigns():
                    await self.tell(job)
            case "end":
                for job in [job for job in jobs.values() if job.state == "in_progress"]:
                    await self.tell(stage.github.end(job.id))
            case "steal":
                queued = [job for job in jobs.values() if job.state == "queued"]
                if queued:
                    taken = msgspec.structs.replace(rng.choice(queued), state="completed", runner_name="stranger")
                    jobs[taken.id] = taken
                    self.cancelled.add(taken.id)
                    await self.tell(taken)
            case "late":
                rng.shuffle(self.late)
                while self.late:
                    await stage.deliver(self.late.pop())
            case "repeat":
                for job in rng.sample(self.told, min(2, len(self.told))):
                    await stage.deliver(job)
            case "vm_fails":
                self.failing = 1
            case "outage":
                stage.github.trouble = _away if stage.github.trouble is not _away else _fine
            case "die":
                stage.reconciler = stage.fresh()
                await stage.redis.delete(stage.store.names.lease)
            case "empty":
                await stage.redis.flushall()
                stage.reconciler = stage.fresh()
                await stage.hosts_move()
            case "drain":
                await self.drain()
            case "look":
                await stage.look()
            case "hosts":
                await stage.hosts_move()
            case "wait":
                stage.now += 5
            case "long_wait":
                stage.now += rng.choice((60, 200, 400))

    async def drain(self) -> None:
        """A host is to be empty, or is taken back into use."""
        draining = await self.stage.store.draining()
        for host in draining:
            await self.stage.store.undrain(host)
        if not draining:
            now = self.stage.now
            await self.stage.store.drain(
                self.rng.choice(sorted(self.stage.hosts)), Drain(now, now + self.rng.choice((0, 30, 300)))
            )

    async def settle(self) -> None:
        """The trouble ends, and everybody does what they do."""
        stage = self.stage
        stage.github.trouble, self.failing = _fine, 0
        for host in await stage.store.draining():
            await stage.store.undrain(host)
        await self.play("late")
        for number in range(150):
            await stage.hosts_move()
            if number == 75:
                self.give_up()
            await stage.look()
            await stage.hosts_move()
            stage.github_assigns()
            stage.now += 4
            await stage.look()
            for record in await stage.store.live_runners():
                job = stage.github.jobs.get(record.life.job_id)
                if job is not None and job.state == "in_progress" and record.life.bound:
                    await stage.deliver(stage.github.end(job.id))
            stage.now += 4
            over = all(job.over for job in stage.github.jobs.values())
            quiet = not await stage.store.live_runners() and not await stage.store.live_jobs()
            heard = not await stage.store.outage_since() and not (await stage.store.lengths())["inbox"]
            if over and quiet and heard and not stage.github.runners:
                break
        await stage.hosts_move()

    def give_up(self) -> None:
        """Ten minutes after its machine was lost, GitHub gives up on a job."""
        running = {key for host in self.stage.hosts.values() for key, seen in host.seen.items() if seen.vm == "running"}
        for job in [job for job in self.stage.github.jobs.values() if job.state == "in_progress"]:
            if ulid_of(job.runner_name) not in running:
                self.stage.github.end(job.id, "failure")


def _away(_call: str, when: str) -> None:
    if when == "before":
        raise Unavailable("503")


def _fine(_call: str, _when: str) -> None:
    pass


async def run(folder: Path, deeds: list[str], seed: int) -> None:
    settings = ControlSettings(
        app_id=1, state_dir=str(folder), prefix="t:", sharing=SHARING,
        registration="repository" if seed % 2 else "organisation",
    )  # fmt: skip
    stage = Stage(folder, hosts=[Host("h1", 4), Host("h2", 4)], settings=settings)
    stage.github.files |= dict.fromkeys(((repo, ".ironcd/policy.yml") for repo in REPOS), POLICY)
    await stage.hosts_move()
    history = History(stage, random.Random(seed))
    for deed in deeds:
        await history.play(deed)
    await history.settle()
    for number, job in stage.github.jobs.items():
        assert job.over, f"job {number} is {job.state}: {(await stage.store.job(number))}"
        had = stage.started.get(number, [])
        assert len(had) == (0 if number in history.cancelled else 1), f"job {number} was served by {had}"
    left = await stage.leftovers()
    assert left == {}, left
    await stage.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("histories")


@settings(
    max_examples=int(os.environ.get("HISTORIES", "20")),
    derandomize="HISTORIES" not in os.environ,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(deeds=st.lists(st.sampled_from(DEEDS), max_size=40), seed=st.integers(0, 2**16))
def test_no_job_lost_nothing_left(folder: Path, deeds: list[str], seed: int) -> None:
    asyncio.run(run(folder, deeds, seed))
