"""Jobs that no delivery told of: GitHub lost the event before there was a delivery, or is minutes late with it.

Repositories that had a job of ours in the last 6 hours are asked for their queued jobs each minute (each five where less than
half of the rate limit is left), all that the App may see once a day.  What is found goes the way of any other news of a job, so being told twice does no harm.  A few
repositories are asked at a time, those first that were asked longest ago.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

import structlog

from orchestrator.control.github import GitHub, GitHubFailure, RateLimited, Unavailable
from orchestrator.control.ingest import class_of, learn
from orchestrator.control.installations import Installations
from orchestrator.control.store import Lease, Store
from orchestrator.control.world import World

ACTIVE_S = 6 * 3600.0
ALL_S = 86400.0
AGAIN_S = 300.0
"""Where the list of all repositories couldn't be had."""
AT_ONCE = 3
ROUND_S = 1.0
HALF = 0.5
SLOWER = 5.0
"""Where less than `HALF` of the rate limit is left."""
LATE_S = 60.0
"""A job of that age that no delivery told of counts as one that was found."""

Repo = tuple[int, str]
"""Installation and ``owner/name``."""
log = structlog.get_logger()


class JobSearch:
    """One for each worker; when which repository was asked is forgotten with it."""

    def __init__(
        self,
        store: Store,
        github: GitHub,
        installations: Installations,
        *,
        every_s: float,
        share: Callable[[int], float] = lambda _installation: 1.0,
    ) -> None:
        """``share``: how much of an installation's rate limit is left, from 0 to 1."""
        self._share = share
        self._store = store
        self._github = github
        self._installations = installations
        self._every_s = every_s
        self._asked: dict[Repo, float] = {}
        self._missed_some = True
        """Deliveries, perhaps.  Where none were, a repository that comes into use has just told of its job: its turn is later."""
        self._backlog: deque[Repo] = deque()
        """Of the daily round, still to be asked."""
        self._round_at = float("-inf")
        self._all_at = float("-inf")
        self._all_due = False
        self._in_all = False

    async def due(self, lease: Lease, now: float) -> list[Repo]:
        """The repositories to be asked now.  Raises StoreError, and `GitHubFailure` where all can't be listed."""
        if 0 <= now - self._round_at < ROUND_S:
            return []
        self._round_at = now
        active = await self._store.active_repos(now - ACTIVE_S)
        first = float("-inf") if self._missed_some else now
        self._missed_some = False
        self._asked = {repo: self._asked.get(repo, first) for repo in active}
        waiting = [(at, repo) for repo, at in self._asked.items()]
        random.shuffle(waiting)
        waiting.sort(key=lambda item: item[0])
        found = [repo for at, repo in waiting if now - at >= self._pause(repo)][:AT_ONCE]
        await self._list_all(lease, now)
        while self._backlog and len(found) < AT_ONCE:
            repo = self._backlog.popleft()
            found += [repo] if repo not in found else []
        return found

    def again(self) -> None:
        """Ask all that are in use as if none had been asked."""
        self._asked.clear()
        self._missed_some = True

    def ask_all(self) -> None:
        """Where the App is installed has changed: ask every repository, and not only once a day."""
        self._all_at = float("-inf")
        self._all_due = True

    def asked_all(self) -> None:
        """Every repository was just asked by someone else."""
        self._missed_some = False

    def _pause(self, repo: Repo) -> float:
        return self._every_s if self._share(repo[0]) >= HALF else self._every_s * SLOWER

    async def ask(self, world: World, installation: int, repo: str) -> None:
        """Learn the jobs of ours that are queued or running there."""
        self._asked[installation, repo] = world.now
        try:
            known = await self._installations.get(installation, repo, world.now)
            if known is None or known.suspended:
                return
            jobs = await self._github.queued_jobs(installation, repo)
        except GitHubFailure as error:
            log.warning("jobs_unreadable", repo=repo, error=error.message)
            if self._in_all and isinstance(error, (Unavailable, RateLimited)):
                self._backlog.append((installation, repo))
            return
        finished = await self._store.finished_jobs(job.id for job in jobs if job.id not in world.jobs)
        for job in jobs:
            is_new = job.id not in world.jobs
            if is_new and class_of(world, job).machine is None:
                continue
            learn(world, job, known, finished.get(job.id))
            if is_new and job.id in world.jobs:
                world.progress = True
                world.tell_job(job.id, "found", "GitHub has it; no delivery told of it")
                if job.id not in finished and world.now - job.created_at >= LATE_S:
                    world.count("jobs_found")
                    log.warning("job_found", job=job.id, repo=repo)

    async def _list_all(self, lease: Lease, now: float) -> None:
        """Once a day, put all repositories on the backlog; note it as done when that is worked off."""
        if self._backlog or now - self._all_at < AGAIN_S:
            return
        if self._in_all:
            self._in_all = False
            changes = self._store.changes()
            changes.note_searched(now, now - ACTIVE_S)
            await self._store.commit(lease, changes)
        self._all_at = now
        if not self._all_due and now - await self._store.searched_at() < ALL_S:
            return
        for installation in await self._installations.all(now):
            if not installation.suspended:
                repos = await self._github.repositories(installation.id)
                self._backlog.extend((installation.id, repo) for repo in repos)
        self._in_all, self._all_due = True, False
