"""Registrations that nobody has a use for: made just before Redis was emptied, before any host had heard of them.

Only what is ours for certain is removed: our kind of name, the label of this App (`owner_label`), no record here, no
machine on any host, and offline for longer than any boot takes.  GitHub itself is the fence: it refuses to delete a
runner that has a job.
"""

from __future__ import annotations

import structlog
from ulid import ULID

from orchestrator.control.github import GitHub, GitHubFailure, GitHubRunner, Installation, RunnerScope
from orchestrator.control.installations import Installations
from orchestrator.control.world import World, registers_under
from orchestrator.core.names import ulid_of

ORPHAN_S = 600.0
OWNER = "ironcd-by-"

log = structlog.get_logger()


def owner_label(app_id: int) -> str:
    """A label on each of our registrations, so that two control planes in one organisation know theirs apart."""
    return f"{OWNER}{app_id}"


async def sweep(world: World, github: GitHub, installations: Installations) -> None:
    """Remove the registrations that are orphans.  Where GitHub doesn't answer, the next sweep goes on."""
    try:
        for installation in await installations.all(world.now):
            if not installation.suspended:
                for scope in await _scopes(world, github, installation):
                    await _sweep_scope(world, github, scope)
    except GitHubFailure as error:
        log.warning("sweep_waits", error=error.message)


async def _scopes(world: World, github: GitHub, installation: Installation) -> list[RunnerScope]:
    if installation.organization and registers_under(world.settings, installation.account):
        return [RunnerScope(installation.id, org=installation.account)]
    return [RunnerScope(installation.id, repo=repo) for repo in await github.repositories(installation.id)]


async def _sweep_scope(world: World, github: GitHub, scope: RunnerScope) -> None:
    on_hosts = {runner.id for sighting in world.sightings.values() for runner in sighting.observed.runners}
    label = owner_label(world.settings.app_id)
    for runner in await github.list_runners(scope):
        ulid = ulid_of(runner.name)
        if ulid is None or label not in runner.labels or ulid in world.runners or ulid in on_hosts:
            continue
        if _is_old(ulid, world.now) and not runner.online and not runner.busy:
            await _remove(world, github, scope, runner)


async def _remove(world: World, github: GitHub, scope: RunnerScope, runner: GitHubRunner) -> None:
    answer = await github.delete_runner(scope, runner.id)
    log.warning("orphan_removed", runner=runner.name, answer=answer, account=scope.account)
    world.count(f"orphans{{answer={answer}}}")


def _is_old(ulid: str, now: float) -> bool:
    return now - ULID.from_str(ulid).timestamp >= ORPHAN_S
