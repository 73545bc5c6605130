"""Has GitHub run a lost job again, where the setting allows it.

GitHub takes that only once the whole run has ended, so it is asked again and again for a while.  It is written down that the
run's budget is spent *before* GitHub is asked: a worker that dies in between spends it for nothing, and never runs a job
twice.  Whether the run has a later attempt already (ours, whose answer was lost, or a person's) is looked at each time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
import structlog

from orchestrator.control.github import GitHub, GitHubFailure, RateLimited, Unavailable
from orchestrator.control.ingest import class_of
from orchestrator.control.records import JobRecord
from orchestrator.control.store import Store
from orchestrator.control.world import World
from orchestrator.core.loss import AGAIN_S, GIVE_UP_S, Rerun, may_rerun, why_not_again

Write = Callable[[], Awaitable[None]]
log = structlog.get_logger()


class Reruns:
    """``write`` records the world."""

    def __init__(self, world: World, github: GitHub, store: Store, write: Write) -> None:
        self._world = world
        self._github = github
        self._store = store
        self._write = write

    def wish(self) -> None:
        """Note which of the jobs that are over should be run again."""
        for record in list(self._world.jobs.values()):
            if record.loss and record.job.over and record.rerun is None and self._allowed(record):
                why = why_not_again(record.job)
                self._set(record.job.id, Rerun("refused" if why else "wanted", self._world.now, why=why))

    def due(self) -> list[JobRecord]:
        now = self._world.now
        return [
            record
            for record in self._world.jobs.values()
            if record.rerun is not None and not record.rerun.settled and now >= record.rerun.next_at
        ]

    async def ask_all(self) -> None:
        """One after the other: what becomes of one job decides about the others of its run."""
        for record in self.due():
            await self.ask(record)

    async def ask(self, record: JobRecord) -> None:
        """Ask GitHub once."""
        job_id = record.job.id
        try:
            await self._ask(record)
        except (Unavailable, RateLimited) as error:
            self._again(job_id, error.message)
        except GitHubFailure as error:
            self._end(job_id, "refused", error.message)
        await self._write()

    async def _ask(self, record: JobRecord) -> None:
        job, world = record.job, self._world
        if await self._github.run_jobs(job.installation, job.repo, job.run_id, job.attempt + 1):
            ours = record.rerun is not None and record.rerun.state == "asked"
            self._end(job.id, "done", "" if ours else "its run was run again already")
            return
        if record.rerun is not None and record.rerun.state == "wanted":
            if await self._store.reruns(job.run_id) >= world.settings.rerun_budget:
                self._end(job.id, "refused", f"its run was run again {world.settings.rerun_budget} times already")
                return
            world.spend_rerun(job.run_id)
            self._set(job.id, msgspec.structs.replace(record.rerun, state="asked"))
            await self._write()
        if await self._github.rerun_job(job.installation, job.repo, job.id):
            self._end(job.id, "done", "")
        else:
            self._again(job.id, "its run isn't over yet")

    def _allowed(self, record: JobRecord) -> bool:
        machine = class_of(self._world, record.job).machine
        where = self._world.settings.rerun_on_infra_loss
        return bool(where) and machine is not None and may_rerun(record.job, where, machine.name)

    def _again(self, job_id: int, why: str) -> None:
        rerun = self._world.jobs[job_id].rerun
        if rerun is None:
            return
        if self._world.now - rerun.since >= GIVE_UP_S:
            self._end(job_id, "refused", f"given up after {GIVE_UP_S / 60:.0f} minutes: {why}")
            return
        self._set(job_id, msgspec.structs.replace(rerun, next_at=self._world.now + AGAIN_S, why=why))

    def _end(self, job_id: int, state: str, why: str) -> None:
        rerun = self._world.jobs[job_id].rerun
        if rerun is not None:
            self._set(job_id, msgspec.structs.replace(rerun, state=state, why=why))

    def _set(self, job_id: int, rerun: Rerun) -> None:
        world = self._world
        world.put_job(msgspec.structs.replace(world.jobs[job_id], rerun=rerun))
        if rerun.settled:
            world.tell_job(job_id, "rerun" if rerun.state == "done" else "not_rerun", rerun.why)
            world.count(f"reruns{{result={rerun.state}}}")
            log.info("rerun", job=job_id, state=rerun.state, why=rerun.why)
