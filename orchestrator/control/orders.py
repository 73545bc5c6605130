"""Carrying out what a runner is owed at GitHub.  Every order can be given twice, and after a crash it is given again.

Placing and booting need nobody's answer and aren't here: the first is `orchestrator.control.demand`, the second is what
the host reads in its desired state.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
import structlog

from orchestrator.control.github import (
    GitHub,
    GitHubFailure,
    GroupFull,
    Missing,
    NameTaken,
    RateLimited,
    Refused,
    Registration,
    Unavailable,
)
from orchestrator.control.installations import Installations
from orchestrator.control.orphans import owner_label
from orchestrator.control.policies import PolicyBook, RefusedPolicy
from orchestrator.control.records import RunnerRecord
from orchestrator.control.sealed import Seal
from orchestrator.control.standing import ask, may_let_go
from orchestrator.control.world import World, scope_of
from orchestrator.core.flow import Identity
from orchestrator.core.lifecycle import owed
from orchestrator.core.policy import Policy
from orchestrator.core.runner import (
    Bind,
    Deregister,
    Effect,
    Fence,
    Fenced,
    Register,
    Registered,
    RegistrationAsked,
    RegistrationOutOfReach,
    RegistrationProvedGone,
    RegistrationRefused,
)

BUSY_AGAIN_S = 5.0
ABSENT_AGAIN_S = 30.0
LOST_ANSWER_S = 30.0
"""A request whose answer was lost may still be at work; nothing is concluded from not finding its result so soon."""

Write = Callable[[], Awaitable[None]]
Keep = Callable[[Policy], str]
"""Has a policy in the archive before any host is told of it; answers why it can't be, or nothing."""
log = structlog.get_logger()


class Orders:
    """``write`` records the world; it is awaited before each step that leaves something behind, and after it."""

    def __init__(
        self,
        world: World,
        github: GitHub,
        book: PolicyBook,
        seal: Seal,
        write: Write,
        *,
        keep: Keep,
        installations: Installations,
    ) -> None:
        self._world = world
        self._github = github
        self._book = book
        self._seal = seal
        self._write = write
        self._keep = keep
        self._installations = installations
        self.sealed: dict[str, bytes] = {}
        """JIT configurations to be recorded with the next write."""
        self.group_full = False
        """GitHub had no room for a runner."""

    def due(self) -> list[str]:
        """The runners that are owed something at GitHub, now."""
        return [runner_id for runner_id, record in self._world.runners.items() if self._next(record) is not None]

    def announce(self) -> None:
        """Note every registration that is about to be asked for, so that one write records all of them before the first."""
        for runner_id in self.due():
            if isinstance(self._next(self._world.runners[runner_id]), Register):
                self._world.happen(runner_id, RegistrationAsked())

    async def carry_out(self, runner_id: str) -> None:
        """The next order of one runner.  What GitHub doesn't grant now is tried again later."""
        world = self._world
        if world.runners[runner_id].unreachable_since and world.runners[runner_id].life.installation not in world.away:
            world.change_runner(runner_id, unreachable_since=0.0)
        effect = self._next(world.runners[runner_id])
        if isinstance(effect, (Fence, Deregister)) and world.runners[runner_id].life.installation in world.away:
            self._out_of_reach(runner_id, effect)
            await self._write()
            return
        try:
            match effect:
                case Register():
                    await self._register(runner_id)
                case Fence(github_id=github_id):
                    await self._fence(runner_id, github_id)
                case Bind(job_id=job_id):
                    await self._bind(runner_id, job_id)
                case Deregister(github_id=github_id):
                    await self._deregister(runner_id, github_id)
                case _:
                    return
        except (Unavailable, RateLimited) as error:
            self._later(runner_id, error)
        except GitHubFailure as error:
            self._later(runner_id, error)
            log.warning("order_refused", runner=runner_id, order=type(effect).__name__, error=error.message)
        await self._write()

    def _next(self, record: RunnerRecord) -> Effect | None:
        if self._world.now < record.not_before:
            return None
        for effect in owed(record.life):
            if isinstance(effect, Register) and self._must_wait(record):
                continue
            if isinstance(effect, (Register, Fence, Deregister)):
                return effect
            if isinstance(effect, Bind) and not record.bound and not record.refused:
                return effect
        return None

    def _must_wait(self, record: RunnerRecord) -> bool:
        return bool(self._world.outage_since) or record.life.installation in self._world.away

    def _out_of_reach(self, runner_id: str, effect: Fence | Deregister) -> None:
        """GitHub can't be asked for the registration, by our own fault or not: after a while its end goes on without."""
        world, record = self._world, self._world.runners[runner_id]
        why = world.away[record.life.installation]
        if not record.unreachable_since:
            world.change_runner(runner_id, unreachable_since=world.now)
        may_end = isinstance(effect, Deregister) or not self._guest_has_a_job(runner_id)
        if may_end and may_let_go(world, world.runners[runner_id]):
            world.happen(runner_id, RegistrationOutOfReach(why))
            return
        world.change_runner(runner_id, not_before=world.now + BUSY_AGAIN_S, waiting=why)

    def _later(self, runner_id: str, error: GitHubFailure) -> None:
        record = self._world.runners[runner_id]
        self.group_full = self.group_full or isinstance(error, GroupFull)
        if isinstance(error, RateLimited) and error.ours:
            later = self._world.now + error.retry_after
            self._world.change_runner(runner_id, not_before=later, waiting=error.message)
            return
        waits = self._world.settings.pace.retry_s
        wait = waits[min(record.tries, len(waits) - 1)]
        if isinstance(error, RateLimited):
            wait = max(wait, error.retry_after)
        changes = {"tries": record.tries + 1, "not_before": self._world.now + wait, "waiting": error.message}
        self._world.change_runner(runner_id, **changes)
        self._world.count(f"github_failures{{code={error.code}}}")

    async def _register(self, runner_id: str) -> None:
        world = self._world
        if world.happen(runner_id, RegistrationAsked()):
            await self._write()
        record = world.runners[runner_id]
        try:
            held = await self._generate(record)
        except (Refused, Missing) as error:
            await self._refuse(record, error)
            return
        if held is None:
            return
        self.sealed[runner_id] = self._seal.seal(held.jit)
        if not world.happen(runner_id, Registered(held.github_id)):
            return
        deadlines, life = world.settings.deadlines, world.runners[runner_id].life
        end_by = life.deadline + deadlines.ready_s + life.machine.lifetime_s
        image = world.digest_of(world.runners[runner_id])
        world.change_runner(runner_id, boot_by=life.deadline, end_by=end_by, image=image)

    async def _generate(self, record: RunnerRecord) -> Registration | None:
        """A registration with its configuration; None where it must be tried again later.

        A name that is taken is ours, from a try whose answer (or configuration) was lost: that one is removed first.
        """
        scope, labels = scope_of(record.life), (*record.life.labels, owner_label(self._world.settings.app_id))
        try:
            return await self._github.generate_jit(scope, record.name, labels)
        except NameTaken as error:
            stale = await self._github.find_runner(scope, record.name)
            if stale is not None and await self._github.delete_runner(scope, stale.id) == "busy":
                self._later(record.id, error)
                return None
        return await self._github.generate_jit(scope, record.name, labels)

    async def _refuse(self, record: RunnerRecord, error: Refused | Missing) -> None:
        """For good; but where the App is suspended or removed and nobody has heard of it, the runner waits until it is back."""
        if await ask(self._world, self._installations, record):
            return
        self._world.happen(record.id, RegistrationRefused(error.message))
        job = self._world.jobs.get(record.life.meant_for)
        if job is not None and job.job.wants_runner:
            self._world.give_up(job.job.id, error.message)

    async def _fence(self, runner_id: str, github_id: int) -> None:
        answer = await self._github.delete_runner(scope_of(self._world.runners[runner_id].life), github_id)
        if answer == "absent" and self._guest_has_a_job(runner_id):
            waiting = "GitHub doesn't know the runner any more, and its guest says that it has a job"
            self._world.change_runner(runner_id, not_before=self._world.now + ABSENT_AGAIN_S, waiting=waiting)
            return
        self._world.happen(runner_id, Fenced("free" if answer == "deleted" else answer))

    def _guest_has_a_job(self, runner_id: str) -> bool:
        """What its guest says.  It can't keep its machine by that for longer than any job may last."""
        sighting = self._world.sightings.get(self._world.runners[runner_id].life.host)
        seen = sighting.observed.runners if sighting is not None else ()
        return any(r.id == runner_id and r.claim is not None and r.vm == "running" for r in seen)

    async def _deregister(self, runner_id: str, github_id: int) -> None:
        """Remove the registration, and believe that it is gone only when GitHub doesn't find it."""
        world, record = self._world, self._world.runners[runner_id]
        scope = scope_of(record.life)
        if github_id:
            answer = await self._github.delete_runner(scope, github_id)
            left = None if answer == "absent" else await self._github.get_runner(scope, github_id)
        else:
            left = await self._github.find_runner(scope, record.name)
            answer = await self._github.delete_runner(scope, left.id) if left is not None else "absent"
            left = await self._github.find_runner(scope, record.name) if left is not None else None
        if left is None and (github_id or world.now - record.life.since >= LOST_ANSWER_S):
            world.happen(runner_id, RegistrationProvedGone())
            return
        waiting = "GitHub still gives the runner a job" if answer == "busy" else "the registration's removal"
        world.change_runner(runner_id, not_before=world.now + BUSY_AGAIN_S, waiting=waiting)

    async def _is_away(self, record: RunnerRecord) -> bool:
        """GitHub doesn't show a policy file.  That refuses no job where the App is suspended or removed: the job waits for its policy."""
        world = self._world
        away = world.away.get(record.life.installation) or await ask(world, self._installations, record)
        if away:
            world.change_runner(record.id, not_before=world.now + BUSY_AGAIN_S, waiting=away)
        return bool(away)

    async def _bind(self, runner_id: str, job_id: int) -> None:
        """Tell the host the policy of the job that GitHub says the runner has."""
        world, record = self._world, self._world.runners[runner_id]
        known = world.jobs.get(job_id)
        if known is None:
            return
        job = known.job
        policy = await self._book.policy_of(job.installation, job.repo, world.images_of(record), world.now)
        if isinstance(policy, RefusedPolicy) and policy.unread and await self._is_away(record):
            return
        unkept = "" if isinstance(policy, RefusedPolicy) else self._keep(policy)
        if unkept:
            world.change_runner(runner_id, not_before=world.now + BUSY_AGAIN_S, waiting=unkept)
            return
        identity = Identity(
            runner=runner_id,
            org=job.org,
            repo=job.repo,
            workflow=job.workflow,
            run_id=job.run_id,
            attempt=job.attempt,
            job=job.name,
            job_id=job.id,
        )
        record = msgspec.structs.replace(world.runners[runner_id], identity=identity, tries=0, not_before=0.0)
        record = msgspec.structs.replace(record, generation=record.generation + 1)
        if isinstance(policy, RefusedPolicy):
            reason = f"{policy.reason}\n{policy.remedy}"
            world.put_runner(msgspec.structs.replace(record, refused=reason).tell(world.now, "policy_refused", reason))
            world.change_job(job_id, reason=policy.reason)
            world.tell_job(job_id, "policy_refused", policy.reason)
            world.put_job(msgspec.structs.replace(world.jobs[job_id], refusal=policy.summary))
            return
        world.use_policy(policy)
        record = msgspec.structs.replace(record, policy=policy.digest, bound=True)
        world.put_runner(record.tell(world.now, "policy_sent", f"{policy.mode}, {len(policy.rules)} rules"))
