"""Installations that are out of reach: the App is suspended there, or was removed.  GitHub sends nothing and answers nothing.

- Nothing new is begun for their jobs, which say why they wait.  What runs goes on: its end shows on its host.
- Nobody may have heard of it, since GitHub's news of it was lost.  So what is refused there is refused for good only once GitHub
  says, when it is asked then, that the App stands there.
- A registration there can't be removed.  After a minute, in which the App may be back, a runner that ends is let go without:
  GitHub removes what never connects after a day, and the sweep of orphans what is left once the App is back.
- A job of an App that was removed is kept for a day, as long as GitHub keeps it queued, and then put away: its end is unknown.
"""

from __future__ import annotations

import msgspec

from orchestrator.control.github import GitHubFailure, Installation
from orchestrator.control.installations import Installations
from orchestrator.control.records import RunnerRecord
from orchestrator.control.reinstalled import try_again
from orchestrator.control.world import World

PATIENCE_S = 60.0
QUEUED_S = 86_400.0
REMOVED, SUSPENDED = "app_removed", "app_suspended"


async def away(world: World, installations: Installations) -> dict[int, str]:
    """The installations out of reach that anything here belongs to, and why; empty where GitHub can't be asked."""
    accounts = {job.job.installation: job.job.org or _owner(job.job.repo) for job in world.jobs.values()}
    accounts |= {one.life.installation: one.life.org or _owner(one.life.repo) for one in world.runners.values()}
    found: dict[int, str] = {}
    for number, account in sorted(accounts.items()):
        try:
            known = await installations.get(number, "", world.now)
        except GitHubFailure:
            return {}
        if why := _why(known, account):
            found[number] = why
    return found


async def ask(world: World, installations: Installations, record: RunnerRecord) -> str:
    """Why a runner's installation is out of reach, as GitHub says now; empty where it isn't.  Raises `GitHubFailure`."""
    life = record.life
    why = _why(await installations.ask(life.installation, world.now), life.org or _owner(life.repo))
    if why and life.installation not in world.away:
        world.away[life.installation] = why
        world.progress = True
    return why


def note_back(world: World, installations: Installations) -> bool:
    """What was refused may be granted where the App is back, though nobody told of it; True where it is back anywhere."""
    back = installations.came_back()
    for one in back:
        try_again(world, one.id, one.account)
    return bool(back)


def _why(known: Installation | None, account: str) -> str:
    if known is None:
        return f"the App isn't installed in {account} any more"
    if known.suspended:
        return f"the App is suspended in {account}: an owner can lift that in its settings"
    return ""


def note_away(world: World) -> None:
    """Say on each job why nothing is begun for it, once, and put away what GitHub will never end for us."""
    for job_id, record in list(world.jobs.items()):
        job, why = record.job, world.away.get(record.job.installation)
        if why is None or job.over or job.served in ("ignored", "elsewhere"):
            continue
        what = SUSPENDED if "suspended" in why else REMOVED
        told = next((moment.at for moment in reversed(job.story) if moment.what == what), None)
        if told is None:
            world.tell_job(job_id, what, why)
        elif what == REMOVED and world.now - told >= QUEUED_S and not _has_machine(world, job.runner):
            world.change_job(job_id, state="completed", conclusion="unknown", completed_at=world.now)
            world.put_job(msgspec.structs.replace(world.jobs[job_id], over_at=world.now))
            world.tell_job(job_id, "over", "unknown: " + why)


def may_let_go(world: World, record: RunnerRecord) -> bool:
    """True where a runner's registration has been out of reach for so long that its end needn't wait for it."""
    since = max(record.life.since, record.unreachable_since)
    return bool(record.unreachable_since) and world.now - since >= PATIENCE_S


def _has_machine(world: World, runner_id: str) -> bool:
    runner = world.runners.get(runner_id)
    return runner is not None and runner.life.phase != "GONE"


def _owner(repo: str) -> str:
    return repo.partition("/")[0]
