"""What GitHub is asked without having said anything: claims of guests, ends that may have been missed, policies.

A guest's claim to have a job is a reason to ask, and nothing else.  GitHub is asked only about repositories that the
runner's registration reaches.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from orchestrator.control.commit_checks import add_check
from orchestrator.control.github import GitHub, GitHubFailure, Missing, RateLimited, Refused, Unavailable
from orchestrator.control.groups import Groups
from orchestrator.control.ingest import class_of, learn
from orchestrator.control.installations import Installations
from orchestrator.control.policies import PolicyBook, RefusedPolicy
from orchestrator.control.records import JobRecord, RunnerRecord
from orchestrator.control.renamed import follow_name, present_name
from orchestrator.control.world import World, registers_under, scope_of
from orchestrator.core.job import Job
from orchestrator.core.names import ulid_of
from orchestrator.core.runner import Withdrawn
from orchestrator.core.wire import GuestClaim

AT_ONCE = 20
"""GitHub is asked about so many jobs in one pass; the others have their turn in the next."""
ENDED_CHECK_S = 10.0
"""How often GitHub is asked about a job whose runner has ended."""
GHOST_S = 120.0
"""A runner that listens and that GitHub doesn't know: it may be a record that lags, until it has been so for so long."""
STATUS_CONTEXT = "ironcd/policy"


class Checks:
    def __init__(
        self, world: World, github: GitHub, book: PolicyBook, installations: Installations, groups: Groups
    ) -> None:
        self._world = world
        self._groups = groups
        self._github = github
        self._book = book
        self._installations = installations

    def claims(self) -> list[tuple[str, GuestClaim]]:
        """Runners whose guest says that a job has begun, of which GitHub hasn't said so yet."""
        world, found = self._world, []
        for sighting in world.sightings.values():
            for seen in sighting.observed.runners:
                record = world.runners.get(seen.id)
                if seen.claim is None or record is None or record.life.phase not in ("BOOTING", "READY"):
                    continue
                if world.now - record.checked_at >= world.settings.pace.claim_s and _may_have(record, seen.claim):
                    found.append((seen.id, seen.claim))
        return found

    async def ask_claim(self, runner_id: str, claim: GuestClaim) -> None:
        """Find the job that GitHub gave to the runner, among those of the run that the guest names."""
        world = self._world
        world.change_runner(runner_id, checked_at=world.now)
        record = world.runners[runner_id]
        repo, attempt = claim.repository, claim.run_attempt or 1
        try:
            jobs = await self._github.run_jobs(record.life.installation, repo, claim.run_id, attempt)
            mine = [job for job in jobs if ulid_of(job.runner_name) == runner_id]
            for job in mine:
                await self._learn(job)
        except GitHubFailure as error:
            world.change_runner(runner_id, waiting=error.message)

    def idle(self) -> list[RunnerRecord]:
        """Runners that have listened for a while without a job: GitHub may have forgotten them, and they never notice."""
        world, found = self._world, []
        for record in world.runners.values():
            began = max(record.life.since, record.looked_for_at)
            if record.life.phase == "READY" and not record.life.fencing and world.now - began >= GHOST_S:
                found.append(record)
        return found[:AT_ONCE]

    async def look_for(self, record: RunnerRecord) -> None:
        """Give a runner back that GitHub doesn't know any more, and hasn't for two minutes.

        Its fence is asked all the same, and a guest that has a job keeps its machine (`Orders`).
        """
        world = self._world
        try:
            seen = await self._github.get_runner(scope_of(record.life), record.life.github_id)
        except GitHubFailure:
            return
        missing_since = 0.0 if seen is not None else record.missing_since or world.now
        world.change_runner(record.id, looked_for_at=world.now, missing_since=missing_since)
        if seen is None and world.now - missing_since >= GHOST_S:
            world.happen(record.id, Withdrawn("ghost"))

    def stale(self) -> list[JobRecord]:
        """Jobs whose end may have been missed, those first that were asked about longest ago."""
        due = [record for record in self._world.jobs.values() if self._is_stale(record)]
        return sorted(due, key=lambda record: (record.checked_at, record.job.id))[:AT_ONCE]

    async def ask_job(self, record: JobRecord) -> None:
        job, world = record.job, self._world
        world.put_job(msgspec.structs.replace(world.jobs[job.id], checked_at=world.now))
        try:
            seen = await self._github.get_job(job.installation, job.repo, job.id)
            name = await present_name(self._github, job) if seen is None else ""
            if name and name != job.repo:
                follow_name(world, job, name)
                world.put_job(msgspec.structs.replace(world.jobs[job.id], checked_at=0.0))
                return
            if seen is None:
                gone = msgspec.structs.replace(job, state="completed", conclusion="cancelled", completed_at=world.now)
                seen = msgspec.structs.replace(gone, story=())
                world.tell_job(job.id, "unknown_to_github")
            await self._learn(seen)
        except GitHubFailure:
            return

    def unjudged(self) -> list[JobRecord]:
        """Queued jobs of a class of ours whose policy hasn't been looked at, or was refused and may be mended."""
        return [
            record
            for record in self._world.jobs.values()
            if record.job.state in ("queued", "waiting") and record.job.served in ("no", "refused")
        ]

    async def judge(self, record: JobRecord) -> None:
        """Serve the job where its policy can be made, refuse it where it can't."""
        world, job = self._world, record.job
        machine = class_of(world, job).machine
        if machine is None:
            return
        if job.installation in world.away:
            world.change_job(job.id, reason=world.away[job.installation])
            return
        images = next(self._images(machine.image), None)
        try:
            policy = await self._book.policy_of(job.installation, job.repo, images, world.now)
        except (Unavailable, RateLimited) as error:
            world.change_job(job.id, reason=f"its policy can't be read yet: {error.message}")
            return
        except (Refused, Missing) as error:
            policy = RefusedPolicy(error.message, error.remedy)
        if not isinstance(policy, RefusedPolicy):
            forbids = await self._groups.why_not(job, registers_under(world.settings, job.org), world.now)
            if forbids:
                world.change_job(job.id, served="refused", reason=forbids)
                world.tell_job(job.id, "group_forbids", forbids)
                return
            world.change_job(job.id, served="yes", reason="")
            world.put_job(msgspec.structs.replace(world.jobs[job.id], refusal=""))
            return
        if world.jobs[job.id].refusal != policy.summary:
            world.tell_job(job.id, "policy_refused", f"{policy.reason}\n{policy.remedy}")
        world.change_job(job.id, served="refused", reason=policy.reason)
        world.put_job(msgspec.structs.replace(world.jobs[job.id], refusal=policy.summary))

    def gated(self) -> list[JobRecord]:
        """Jobs for an environment that GitHub calls queued: some are told of so before they are approved."""
        jobs = self._world.jobs.values()
        return [record for record in jobs if record.job.wants_runner and record.job.environment and not record.approved]

    async def ask_gate(self, record: JobRecord) -> None:
        """Have the job wait where its environment's approval is still to come.  GitHub's next word that it is queued has it asked again."""
        world, job = self._world, record.job
        try:
            pending = await self._github.pending_environments(job.installation, job.repo, job.run_id)
        except (Unavailable, RateLimited):
            return
        except GitHubFailure:
            pending = frozenset()  # whoever may not ask has GitHub's word that it is queued
        if job.environment in pending:
            why = f"environment {job.environment!r} waits for an approval"
            world.change_job(job.id, state="waiting", reason=why)
            world.tell_job(job.id, "waits_for_approval", why)
        else:
            world.put_job(msgspec.structs.replace(world.jobs[job.id], approved=True))

    def unsaid(self) -> list[JobRecord]:
        """Jobs whose commit status says something else than it ought to."""
        return [r for r in self._world.jobs.values() if r.refusal != r.status and r.job.head_sha]

    async def say(self, record: JobRecord) -> None:
        job, refusal = record.job, record.refusal
        text = refusal or "the policy is accepted"
        try:
            await self._github.set_commit_status(
                job.installation,
                job.repo,
                job.head_sha,
                state="failure" if refusal else "success",
                context=STATUS_CONTEXT,
                description=text,
            )
            await self._say_in_full(job, text, refused=bool(refusal))
        except (Unavailable, RateLimited):
            return
        except GitHubFailure as error:
            self._world.tell_job(job.id, "status_refused", error.message)
        self._world.put_job(msgspec.structs.replace(self._world.jobs[job.id], status=refusal))

    async def _say_in_full(self, job: Job, title: str, *, refused: bool) -> None:
        """A check run with every mistake and what to do about each; a status is a line."""
        told = next((moment.detail for moment in reversed(job.story) if moment.what == "policy_refused"), "")
        fence = "~" * max(3, *(len(run) + 1 for run in re.findall("~+", told)), 3)
        await add_check(
            self._github,
            job,
            name=STATUS_CONTEXT,
            conclusion="failure" if refused else "success",
            title=title,
            summary=f"{fence}text\n{told}\n{fence}" if refused else title,
        )

    async def _learn(self, job: Job) -> None:
        installation = await self._installations.get(job.installation, job.repo, self._world.now)
        if installation is not None:
            learn(self._world, job, installation, None)

    def _is_stale(self, record: JobRecord) -> bool:
        world, job = self._world, record.job
        every = world.settings.pace.job_check_s
        if job.state == "in_progress" and job.served == "yes":
            runner = world.runners.get(job.runner)
            ended = runner is None or runner.life.phase in ("DESTROYING", "GONE")
            begun = runner.life.since if runner is not None else 0.0
            return world.now - max(record.checked_at, begun) >= (ENDED_CHECK_S if ended else every)
        if job.state in ("queued", "in_progress", "waiting") and job.served != "ignored":
            return world.now - record.checked_at >= 3 * every
        return False

    def _images(self, name: str) -> Iterator[dict[str, tuple[str, ...]]]:
        for sighting in self._world.sightings.values():
            yield from (image.presets for image in sighting.observed.images if image.name == name)


def _may_have(record: RunnerRecord, claim: GuestClaim) -> bool:
    """True where a runner registered as this one is could have a job of the repository that its guest names."""
    owner, _, name = claim.repository.partition("/")
    if not owner or not name or "/" in name or claim.run_id <= 0 or not set(claim.repository) <= _REPO_CHARACTERS:
        return False
    return owner.lower() == record.life.org.lower() if record.life.org else claim.repository == record.life.repo


_REPO_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./")
