"""An App that is removed from an account and installed there again comes back as another installation, with another id.

What was begun under the former one goes on under the new one: runners keep their registrations, which are the account's and
not the installation's, and jobs are still to be served.  What GitHub refused meanwhile may be granted now.
"""

from __future__ import annotations

import msgspec
import structlog

from orchestrator.control.github import GitHubFailure
from orchestrator.control.installations import Installations
from orchestrator.control.world import World

log = structlog.get_logger()


async def follow(world: World, installations: Installations) -> None:
    """Have jobs and runners of an installation that is no more belong to the account's present one, if there is one."""
    accounts = {(job.job.installation, job.job.org or _owner(job.job.repo)) for job in world.jobs.values()}
    accounts |= {(r.life.installation, r.life.org or _owner(r.life.repo)) for r in world.runners.values()}
    moved: dict[int, int] = {}
    for former, account in sorted(accounts):
        try:
            if former and account and await installations.get(former, "", world.now) is None:
                present = await installations.get(0, f"{account}/", world.now)
                if present is not None:
                    moved[former] = present.id
        except GitHubFailure:
            return
    if moved:
        log.warning("installation_followed", moved=moved)
        _move(world, moved)


def _move(world: World, moved: dict[int, int]) -> None:
    for job_id, job in list(world.jobs.items()):
        if job.job.installation in moved:
            world.change_job(job_id, installation=moved[job.job.installation])
    for runner_id, runner in list(world.runners.items()):
        if runner.life.installation in moved:
            life = msgspec.structs.replace(runner.life, installation=moved[runner.life.installation])
            world.change_runner(runner_id, life=life, tries=0, not_before=0.0, waiting="")


def try_again(world: World, installation: int, account: str) -> None:
    """Something changed about an installation: jobs that were given up for what GitHub refused have another chance."""
    for job_id, record in list(world.jobs.items()):
        job = record.job
        ours = job.installation == installation or (
            account and (job.org or _owner(job.repo)).lower() == account.lower()
        )
        if ours and record.permanent and job.state in ("queued", "waiting"):
            world.put_job(msgspec.structs.replace(record, permanent=""))
            world.change_job(job_id, reason="")
            world.tell_job(job_id, "tried_again", "the App's installation has changed")


def _owner(repo: str) -> str:
    return repo.partition("/")[0]
