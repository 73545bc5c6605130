"""The policy of jobs that run already: looked at again in every pass, and sent anew where it has changed.

A change of the organisation's file counts at the next pass, one of a repository's when its file is read again (`Pace`).
The host gets a new generation, and its gateway ends the open flows that the new policy forbids, and only those.

- Where the organisation's policy now forbids what the repository's asks for, the baseline is all that is left.
- One that can't be kept in the archive isn't sent: what is in force stays, and the runner says why.
- A file that is gone or can't be read decides nothing about a job that has begun: what is in force stays, and the
  runner says why.  The repository's next jobs are refused.
"""

from __future__ import annotations

import msgspec

from orchestrator.control.github import GitHubFailure
from orchestrator.control.orders import Keep
from orchestrator.control.policies import PolicyBook, RefusedPolicy
from orchestrator.control.records import RunnerRecord
from orchestrator.control.world import World
from orchestrator.core.job import Job
from orchestrator.core.policy import Policy


class Rebind:
    def __init__(self, world: World, book: PolicyBook, keep: Keep) -> None:
        self._world = world
        self._book = book
        self._keep = keep
        self._digests: dict[int, tuple[Policy, str]] = {}
        """By identity: jobs of one repository share one policy, and a digest costs as much as all its rules."""
        self._policies: dict[tuple[int, str, str, str], Policy | RefusedPolicy] = {}
        """By installation, repository, host and image: asked for once in a pass, however many runners share one."""

    def bound(self) -> list[str]:
        """The runners whose job was given a policy."""
        return [key for key, record in self._world.runners.items() if self._is_bound(record)]

    async def look_again(self, runner_id: str) -> None:
        """Send the policy of the runner's job anew where it isn't what its host was told."""
        world, record = self._world, self._world.runners[runner_id]
        job = world.jobs[record.life.job_id].job
        try:
            policy = await self._policy_of(job, record)
        except GitHubFailure:
            return
        unkept = ""
        if not isinstance(policy, RefusedPolicy) and self._digest(policy) != record.policy:
            unkept = self._keep(policy)
        record = world.runners[runner_id]
        if not self._is_bound(record):
            return
        if unkept:
            world.change_runner(runner_id, waiting=unkept)
        elif not isinstance(policy, RefusedPolicy):
            self._send(record, policy, "policy_sent", f"{policy.mode}, {len(policy.rules)} rules")
        elif policy.forbids:
            self._send(record, world.baseline, "policy_withdrawn", policy.reason)
        else:
            world.change_runner(runner_id, waiting=f"its policy stays as it was: {policy.reason}")

    async def _policy_of(self, job: Job, record: RunnerRecord) -> Policy | RefusedPolicy:
        key = (job.installation, job.repo, record.life.host, record.life.machine.image)
        known = self._policies.get(key)
        if known is None:
            images = self._world.images_of(record)
            known = await self._book.policy_of(job.installation, job.repo, images, self._world.now)
            self._policies[key] = known
        return known

    def _send(self, record: RunnerRecord, policy: Policy, what: str, detail: str) -> None:
        world, digest = self._world, self._digest(policy)
        if record.policy == digest:
            world.change_runner(record.id, waiting="")
            return
        world.use_policy(policy)
        record = msgspec.structs.replace(record, policy=digest, generation=record.generation + 1, waiting="")
        world.put_runner(record.tell(world.now, what, detail))

    def _digest(self, policy: Policy) -> str:
        known = self._digests.get(id(policy))
        if known is None:
            known = self._digests[id(policy)] = (policy, policy.digest)
        return known[1]

    def _is_bound(self, record: RunnerRecord) -> bool:
        return (
            record.life.phase == "RUNNING"
            and record.bound
            and not record.refused
            and record.life.job_id in self._world.jobs
        )
