"""After an empty Redis: jobs are found again at GitHub, runners on the hosts and at GitHub.

A machine that GitHub knows a runner for is taken back as it is: its job may be running.  One that GitHub knows nothing
of should be gone.  While GitHub doesn't answer, neither is decided, and its host is told nothing new.
"""

from __future__ import annotations

import msgspec
import structlog

from orchestrator.control.github import GitHub, GitHubRunner, Installation, Missing, Refused, RunnerScope, Unavailable
from orchestrator.control.ingest import learn
from orchestrator.control.installations import Installations
from orchestrator.control.orphans import OWNER
from orchestrator.control.records import RunnerRecord
from orchestrator.control.world import World, registers_under, runner_labels
from orchestrator.core.flow import Identity
from orchestrator.core.lifecycle import wanted
from orchestrator.core.machine import MachineClass, match_labels
from orchestrator.core.names import names_of
from orchestrator.core.runner import Placed, Registered, RegistrationAsked
from orchestrator.core.wire import ObservedRunner

log = structlog.get_logger()


async def find_jobs(world: World, github: GitHub, installations: Installations) -> None:
    """Learn every job that is queued or running wherever the App is installed.  Raises `GitHubFailure`."""
    for installation in await installations.all(world.now):
        if installation.suspended:
            continue
        for repo in await github.repositories(installation.id):
            try:
                jobs = await github.queued_jobs(installation.id, repo)
            except (Missing, Refused) as error:
                log.warning("jobs_unreadable", repo=repo, error=error.message)
                continue
            for job in jobs:
                learn(world, job, installation, None)


async def take_back(
    world: World, github: GitHub, installations: Installations, host: str, seen: ObservedRunner
) -> RunnerRecord | None:
    """A record for a machine that has none; None where GitHub knows no runner of its name.  Raises `GitHubFailure`.

    Where the App is suspended or not installed, GitHub can't be asked, and that it names no runner means nothing.
    """
    name = names_of(seen.id).runner
    known = await installations.all(world.now)
    if not known:
        raise Unavailable("the App isn't installed anywhere, so nobody can say whose machine it is")
    account = seen.scope.org or seen.scope.repo if seen.scope is not None else ""
    if account and not any(_is_of(installation, account) for installation in known):
        raise Unavailable(f"the App isn't installed for {account.partition('/')[0]}")
    for installation in known:
        if account and not _is_of(installation, account):
            continue
        if installation.suspended:
            raise Unavailable(f"the App is suspended for {installation.account}")
        for scope in _scopes(world, installation, seen):
            runner = await _look(github, scope, name)
            if runner is not None:
                return _taken_back(world, host, seen, scope, runner)
    return None


def _scopes(world: World, installation: Installation, seen: ObservedRunner) -> list[RunnerScope]:
    """Where a runner of this installation can be registered.

    Its host was told, and says it again.  Where it doesn't (an agent of an older version), it is the organisation or, where
    runners are registered with repositories, the one that its guest names, or one whose jobs are known.
    """
    if seen.scope is not None:
        known = RunnerScope(installation.id, org=seen.scope.org, repo="" if seen.scope.org else seen.scope.repo)
        return [known] if _is_of(installation, known.account) else []
    if installation.organization and registers_under(world.settings, installation.account):
        return [RunnerScope(installation.id, org=installation.account)]
    claimed = [seen.claim.repository] if seen.claim is not None else []
    working = sorted({record.job.repo for record in world.jobs.values() if record.job.installation == installation.id})
    repos = (repo for repo in dict.fromkeys(claimed + working) if repo.count("/") == 1 and _is_of(installation, repo))
    return [RunnerScope(installation.id, repo=repo) for repo in repos]


def _is_of(installation: Installation, account: str) -> bool:
    """``account``: of an organisation, or ``owner/name``."""
    return account.partition("/")[0].lower() == installation.account.lower()


async def _look(github: GitHub, scope: RunnerScope, name: str) -> GitHubRunner | None:
    """The runner of that name.  Raises `GitHubFailure` where GitHub doesn't say: of an organisation it must, but a
    repository that a guest claims may be none of ours.
    """
    try:
        return await github.find_runner(scope, name)
    except Refused:
        if scope.org:
            raise
        return None


def _taken_back(
    world: World, host: str, seen: ObservedRunner, scope: RunnerScope, runner: GitHubRunner
) -> RunnerRecord:
    """A class that is no longer in the settings is no reason to end a machine that may have a job."""
    labels = [label for label in runner.labels if not label.startswith(OWNER)]
    machine = match_labels(labels, world.settings.classes).machine or MachineClass("unknown")
    life = wanted(
        seen.id,
        machine,
        installation=scope.installation,
        org=scope.org,
        repo=scope.repo,
        labels=runner_labels(labels),
        meant_for=0,
        now=world.now,
        deadlines=world.settings.deadlines,
    )
    sealed = Identity(runner=seen.id, org=scope.account.partition("/")[0], repo=scope.repo)
    record = RunnerRecord(life=life, identity=sealed, policy=world.baseline.digest, generation=max(1, seen.generation))
    world.use_policy(world.baseline)
    world.put_runner(record.tell(world.now, "taken_back", f"found on host {host} and at GitHub"))
    for event in (Placed(host), RegistrationAsked(), Registered(runner.id)):
        world.happen(seen.id, event)
    taken = world.runners[seen.id]
    end_by = taken.life.deadline + world.settings.deadlines.ready_s + machine.lifetime_s
    world.put_runner(msgspec.structs.replace(taken, boot_by=taken.life.deadline, end_by=end_by))
    return world.runners[seen.id]
