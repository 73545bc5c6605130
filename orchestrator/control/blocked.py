"""Says on a job's commit what the job was kept from reaching, and the line that would open it.

A few seconds after a job's machine is gone (its last records come in meanwhile) the record of egress is asked about it,
through a port: who keeps the record is no matter of ours.  Where something was blocked the commit gets a status for the job,
and a check run with the whole list where the App may write checks.  Neither fails the commit: blocking is what was asked
for.  What was said is remembered in Redis for a while, and saying it twice does no harm.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from orchestrator.control.commit_checks import add_check
from orchestrator.control.github import GitHub, GitHubFailure, RateLimited, Unavailable
from orchestrator.control.records import JobRecord
from orchestrator.control.store import Store
from orchestrator.core.blocked import Blocked, description, report
from orchestrator.core.job import Job

CONTEXT = "ironcd/egress"
POLICY_PATH = ".ironcd/policy.yml"
WAIT_S = 8.0
"""After the end; hosts ship each quarter of a second."""
GIVE_UP_S = 3600.0
LATEST = 200
"""So many of the jobs that ended last are looked at in a round."""

log = structlog.get_logger()


class BlockedOf(Protocol):
    """What the record has on a job; None where it can't be asked now."""

    async def __call__(self, job: Job) -> Sequence[Blocked] | None: ...


class BlockedReporter:
    def __init__(
        self, store: Store, github: GitHub, blocked_of: BlockedOf, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._github = github
        self._blocked_of = blocked_of
        self._clock = clock
        self._said: set[int] = set()

    async def round(self) -> None:
        """Say what is to be said of the jobs that ended lately.  Raises StoreError."""
        now = self._clock()
        latest = await self._store.latest_finished_jobs(LATEST)
        self._said &= {record.job.id for record in latest}
        for record in latest:
            if not self._is_due(record, now):
                continue
            if await self._store.was_said(record.job.id) or await self._say(record.job):
                self._said.add(record.job.id)

    def _is_due(self, record: JobRecord, now: float) -> bool:
        job = record.job
        ours = job.served == "yes" and bool(job.head_sha) and job.id not in self._said
        return ours and WAIT_S <= now - record.over_at <= GIVE_UP_S

    async def _say(self, job: Job) -> bool:
        """True once nothing is left to say of ``job``."""
        blocked = await self._blocked_of(job)
        if blocked is None:
            return False
        if blocked:
            try:
                await self._tell(job, blocked)
            except (Unavailable, RateLimited):
                return False
            except GitHubFailure as error:
                log.warning("blocked_not_said", job=job.id, error=error.message)
        await self._store.note_said(job.id, round(GIVE_UP_S * 2))
        return True

    async def _tell(self, job: Job, blocked: Sequence[Blocked]) -> None:
        context = f"{CONTEXT} ({job.name})" if job.name else CONTEXT
        text = description(blocked)
        await self._github.set_commit_status(
            job.installation, job.repo, job.head_sha, state="success", context=context, description=text
        )
        summary = report(blocked, POLICY_PATH)
        await add_check(self._github, job, name=context, conclusion="neutral", title=text, summary=summary)
