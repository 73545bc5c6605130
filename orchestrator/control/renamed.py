"""Repositories that are renamed or moved while a job of theirs waits or runs: known by their id, called by their new name.

GitHub redirects the former name as long as nobody else takes it.  A job that GitHub doesn't find under the name that we know
is looked for under the one that its repository has now, before anything is concluded from that.  Where news of a job has another
name than is known, GitHub is asked which one holds: late news has the former one.
"""

from __future__ import annotations

from functools import cached_property

import msgspec

from orchestrator.control.github import GitHub, GitHubFailure
from orchestrator.control.world import World
from orchestrator.core.job import Job


async def present_name(github: GitHub, job: Job) -> str:
    """What the job's repository is called now; empty where that isn't known.  Raises `GitHubFailure`."""
    if not job.repo_id:
        return ""
    return await github.repository_name(job.installation, job.repo_id) or ""


def follow_name(world: World, job: Job, name: str) -> None:
    """The repository of ``job`` is called ``name`` now: so it is for all its jobs, and for runners registered with it."""
    former = job.repo
    for job_id, record in list(world.jobs.items()):
        mine = record.job.repo_id == job.repo_id if job.repo_id else job_id == job.id
        if mine and record.job.repo == former and not record.job.over:
            world.change_job(job_id, repo=name)
            world.tell_job(job_id, "repository_renamed", f"{former} is {name} now")
    for runner_id, runner in list(world.runners.items()):
        if not runner.life.org and runner.life.repo == former:
            world.change_runner(runner_id, life=msgspec.structs.replace(runner.life, repo=name))


class Names:
    """What repositories are called, by the jobs in ``world``; an index, since hundreds of deliveries are read against thousands of jobs."""

    def __init__(self, world: World, github: GitHub) -> None:
        self._world = world
        self._github = github

    @cached_property
    def _known(self) -> dict[int, str]:
        """Made when the first delivery is read: most passes read none."""
        live = (record.job for record in self._world.jobs.values() if record.job.repo_id and not record.job.over)
        return {job.repo_id: job.repo for job in live}

    async def agree(self, job: Job) -> Job:
        """``job`` under its repository's present name, and with it all others of that repository.

        Where GitHub doesn't say, that is the name heard last.
        """
        if not job.repo_id or self._known.setdefault(job.repo_id, job.repo) == job.repo:
            return job
        try:
            name = await present_name(self._github, job) or job.repo
        except GitHubFailure:
            name = job.repo
        mine = [record.job for record in self._world.jobs.values() if record.job.repo_id == job.repo_id]
        for other in {other.repo: other for other in mine if other.repo != name and not other.over}.values():
            follow_name(self._world, other, name)
        self._known[job.repo_id] = name
        return msgspec.structs.replace(job, repo=name)
