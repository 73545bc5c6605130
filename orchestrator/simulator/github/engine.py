"""What GitHub Actions does: runs and their jobs, which runner gets which job, and the events that tell of it.

A job goes to the first runner that is online, idle, allowed to serve the repository and whose labels contain all of
the job's: a just-in-time runner is not pinned to the job that it was made for.  A runner holds its job by a lock of ten
minutes that it renews; a lock that ran out ends the job as failed.
"""

from __future__ import annotations

import asyncio
import secrets
import uuid
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa

from orchestrator.core.errors import UserError
from orchestrator.simulator.github import present
from orchestrator.simulator.github.faults import Effect, Faults
from orchestrator.simulator.github.hooks import Hooks
from orchestrator.simulator.github.spec import WorkflowSpec
from orchestrator.simulator.github.state import (
    Account,
    Job,
    Message,
    Repository,
    Run,
    Runner,
    Session,
    State,
    Step,
)

LOCK_S = 600.0
ACQUIRE_S = 120.0
"""A job offered to a runner which doesn't take it goes back to the queue."""
NEVER_CONNECTED_S = 86_400.0
OFFLINE_S = 120.0
"""A runner that hasn't polled for so long shows as offline and is offered nothing."""


class RunnerBusy(Exception):
    """The runner has a job, so it can't be deleted."""


class Engine:
    """The state's only writer of runs, jobs, runners and sessions.  Belongs to one event loop."""

    def __init__(self, state: State, hooks: Hooks, faults: Faults | None = None) -> None:
        self.state = state
        self._hooks = hooks
        self._faults = faults or Faults()
        self._wakeups: dict[int, asyncio.Event] = {}
        self._open: dict[int, Job] = {}
        self.lock_s = LOCK_S
        self.acquire_s = ACQUIRE_S

    # Runs

    def create_run(
        self, repo: Repository, workflow: WorkflowSpec, *, event: str, actor: Account, sha: str = "", branch: str = ""
    ) -> Run:
        run = Run(
            id=self.state.next_id(17_000_000_000),
            repository=repo,
            workflow=workflow,
            number=1 + sum(1 for item in self.state.runs.values() if item.repository is repo),
            event=event,
            actor=actor,
            head_sha=sha or repo.head_sha,
            head_branch=branch or repo.default_branch,
            created_at=self.state.now(),
        )
        self.state.runs[run.id] = run
        run.attempts[1] = []
        self._add_jobs(run, list(workflow.jobs))
        return run

    def _add_jobs(self, run: Run, keys: list[str]) -> None:
        jobs = [self._new_job(run, key) for key in keys]
        run.attempts[run.attempt].extend(jobs)
        for job in jobs:
            if job.status == "waiting" and self._odd("queued-first", job):
                job.status = "queued"
                self._tell(job, "queued")
                job.status = "waiting"
            self._tell(job, "waiting" if job.status == "waiting" else "queued")
        self.assign()

    def _new_job(self, run: Run, key: str) -> Job:
        spec = run.workflow.jobs[key]
        now = self.state.now()
        waits = bool(spec.environment) and not spec.approved
        job = Job(
            id=self.state.next_id(48_000_000_000),
            key=key,
            spec=spec,
            run=run,
            attempt=run.attempt,
            created_at=now,
            started_at=now,
            plan_id=str(uuid.uuid4()),
            uuid=str(uuid.uuid4()),
            status="waiting" if waits else "queued",
            deployment_id=self.state.next_id(875_000_000) if spec.environment else 0,
        )
        self.state.jobs[job.id] = job
        self._open[job.id] = job
        return job

    def approve(self, run: Run, *, approved: bool) -> list[Job]:
        """Decide on all jobs of ``run`` that wait for an environment; returns them."""
        waiting = [job for job in run.jobs if job.status == "waiting"]
        for job in waiting:
            if approved:
                job.status = "queued"
                self._tell(job, "queued")
            else:
                self.complete(job, "failure")
        self.assign()
        return waiting

    def cancel(self, run: Run, *, force: bool = False) -> bool:
        """Cancel every job of ``run`` that hasn't ended; False where all have."""
        live = [job for job in run.jobs if job.status != "completed"]
        for job in live:
            self.cancel_job(job, force=force)
        return bool(live)

    def cancel_job(self, job: Job, *, force: bool = False) -> None:
        if job.status == "in_progress" and not force:
            if job.cancel_requested:
                return
            job.cancel_requested = True
            if job.runner is not None:
                self.send(job.runner, "JobCancellation", {"jobId": job.uuid, "timeout": "00:05:00"})
            return
        self.complete(job, "cancelled")

    def rerun(self, run: Run, *, only: set[str] | None = None) -> None:
        """Start the next attempt of ``run``; jobs outside ``only`` (keys) are carried over as they ended."""
        before = run.jobs
        run.attempt += 1
        keys = [job.key for job in before if only is None or job.key in only]
        run.attempts[run.attempt] = [job for job in before if job.key not in keys]
        self._add_jobs(run, keys)

    # Runners

    def add_runner(
        self,
        *,
        name: str,
        owner: Account,
        repository: Repository | None,
        group_id: int,
        labels: list[str],
        work_folder: str,
        key: rsa.RSAPublicKey,
    ) -> Runner:
        runner = Runner(
            id=self.state.next_id(),
            name=name,
            owner=owner,
            repository=repository,
            group_id=group_id,
            labels=labels,
            work_folder=work_folder,
            key=key,
            client_id=str(uuid.uuid4()),
            created_at=self.state.now(),
        )
        lag = self._faults.quirk("jit-lag")
        runner.known_from = runner.created_at + lag.by_s if lag else 0.0
        self.state.runners[runner.id] = runner
        return runner

    def seems_busy(self, runner: Runner) -> bool:
        """What the API says of it, which can be a lie."""
        return runner.job is not None and not self._odd("busy-lies", runner.job)

    def runners_of(self, owner: Account, repository: Repository | None) -> list[Runner]:
        return [
            item for item in self.state.runners.values() if item.owner.id == owner.id and item.repository is repository
        ]

    def remove_runner(self, runner: Runner) -> None:
        """Delete a registration.  Raises `RunnerBusy` where a job got in first."""
        if runner.job is not None:
            raise RunnerBusy(runner.name)
        self._forget(runner)

    def _forget(self, runner: Runner) -> None:
        runner.gone = True
        runner.session = None
        self.state.runners.pop(runner.id, None)
        for token in [value for value, it in self.state.runner_tokens.items() if it is runner]:
            del self.state.runner_tokens[token]
        self._wake(runner)

    # Sessions and messages

    def open_session(self, runner: Runner, owner_name: str) -> Session:
        session = Session(id=str(uuid.uuid4()), owner_name=owner_name, opened_at=self.state.now())
        runner.session = session
        return session

    def is_live(self, session: Session) -> bool:
        """False for a session whose runner went without a word: another may take its place."""
        return self.state.now() <= max(session.opened_at, session.polled_at) + OFFLINE_S

    def close_session(self, runner: Runner) -> None:
        runner.session = None
        if runner.job is not None and runner.job.status == "queued":
            self._unassign(runner.job)
        self._wake(runner)

    def send(self, runner: Runner, kind: str, body: dict[str, Any]) -> None:
        if runner.session is not None:
            runner.session.messages.append(Message(id=self.state.next_id(), type=kind, body=body))
            self._wake(runner)

    async def next_message(self, runner: Runner, session: Session, wait_s: float) -> Message | None:
        """The next message of ``session``, waiting up to ``wait_s``; None where none came or the session ended."""
        session.polled_at = self.state.now()
        self.assign()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        event = self._wakeups.setdefault(runner.id, asyncio.Event())
        while runner.session is session and not session.messages:
            event.clear()
            left = deadline - loop.time()
            if left <= 0:
                return None
            try:
                await asyncio.wait_for(event.wait(), left)
            except TimeoutError:
                return None
        return session.messages.pop(0) if runner.session is session and session.messages else None

    def _wake(self, runner: Runner) -> None:
        if (event := self._wakeups.get(runner.id)) is not None:
            event.set()
        if runner.gone:
            self._wakeups.pop(runner.id, None)

    # Jobs and who gets them

    def serves(self, runner: Runner, job: Job) -> bool:
        """True where ``runner`` may take ``job``: its scope, its group and its labels."""
        repo = job.run.repository
        if runner.owner.id != repo.owner.id or (runner.repository is not None and runner.repository is not repo):
            return False
        if runner.repository is None and not self._group_admits(runner.group_id, repo):
            return False
        return {label.lower() for label in job.spec.labels} <= {label.lower() for label in runner.labels}

    def _group_admits(self, group_id: int, repo: Repository) -> bool:
        group = self.state.groups.get(group_id)
        if group is None or (not repo.private and not group.allows_public_repositories):
            return False
        return group.visibility == "all" or repo.id in group.repository_ids

    def assign(self) -> None:
        """Offer each queued job, oldest first, to a runner that is online and idle."""
        idle = [item for item in self.state.runners.values() if item.online and item.job is None]
        queued = [item for item in self._open.values() if item.status == "queued" and item.runner is None]
        if idle and len(queued) > 1 and self._odd("another-runner", queued[0]):
            queued.insert(0, queued.pop(self._faults.drawn(len(queued))))
        for job in queued:
            if not idle:
                return
            fitting = [item for item in idle if self.serves(item, job)]
            runner = fitting[0] if fitting else None
            if len(fitting) > 1 and self._odd("another-runner", job):
                runner = fitting[self._faults.drawn(len(fitting))]
            if runner is not None:
                idle.remove(runner)
                self._offer(runner, job)

    def _offer(self, runner: Runner, job: Job) -> None:
        job.runner, runner.job = runner, job
        job.assigned_at = self.state.now()
        job.request_id = str(uuid.uuid4())
        if self._odd("start-lost", job):
            return
        self.send(runner, "RunnerJobRequest", {"runner_request_id": job.request_id})

    def _unassign(self, job: Job) -> None:
        if job.runner is not None:
            job.runner.job = None
        job.runner, job.assigned_at, job.request_id = None, None, ""
        self.assign()

    def withhold(self, job: Job) -> bool:
        """True where the runner can't take the job that it was told of, and isn't a runner any more either: a fault."""
        runner = job.runner
        if runner is None or not self._odd("acquire-404", job):
            return False
        self.state.runners.pop(runner.id, None)
        self._unassign(job)
        return True

    def known_to(self, runner: Runner) -> bool:
        """Whether the API and the token host know of ``runner`` yet."""
        return self.state.now() >= runner.known_from

    def acquire(self, job: Job) -> None:
        """The runner takes the job: it is in progress from now on."""
        now = self.state.now()
        job.status, job.started_at, job.locked_until = "in_progress", now, now + self.lock_s
        job.token = (
            "eyJ0eXAiOiJKV1QiLCJhbGciOiJSUzI1NiJ9." + secrets.token_urlsafe(160) + "." + secrets.token_urlsafe(64)
        )
        self._tell(job, "in_progress")

    def renew(self, job: Job) -> float:
        job.locked_until = self.state.now() + self.lock_s
        return job.locked_until

    def update_steps(self, job: Job, steps: list[Step]) -> None:
        known = {item.number: item for item in job.steps}
        known.update({item.number: item for item in steps})
        job.steps = [known[number] for number in sorted(known)]

    def complete(self, job: Job, conclusion: str) -> None:
        """End ``job``; its runner was ephemeral and is gone with it."""
        if job.status == "completed":
            return
        self._open.pop(job.id, None)
        had_runner = job.status == "in_progress"
        runner = job.runner
        job.status, job.conclusion, job.completed_at = "completed", conclusion, self.state.now()
        job.run.updated_at = job.completed_at
        job.token = ""
        if runner is not None:
            runner.job = None
            if had_runner and self._odd("ghost", job):
                runner.session = None
            elif had_runner:
                self._forget(runner)
            else:
                job.runner = None
        self._tell(job, "completed")
        self.assign()

    def expire(self) -> None:
        """What time brings about: locks run out, offers lapse, registrations that were never used go."""
        now = self.state.now()
        for runner in self.state.runners.values():
            waits = runner.job is None or runner.job.status == "queued"
            if runner.session is not None and waits and now > runner.session.polled_at + OFFLINE_S:
                runner.session.polled_at = 0.0
        for job in list(self._open.values()):
            if job.status == "in_progress" and now > job.locked_until:
                self.complete(job, "cancelled" if job.cancel_requested else "failure")
            elif job.status == "queued" and job.assigned_at is not None and now > job.assigned_at + self.acquire_s:
                self._unassign(job)
        for runner in list(self.state.runners.values()):
            if runner.session is None and runner.job is None and now > runner.created_at + NEVER_CONNECTED_S:
                self._forget(runner)

    def _odd(self, effect: Effect, job: Job) -> bool:
        return self._faults.quirk(effect, job.run.repository.full_name) is not None

    # Events

    def _tell(self, job: Job, action: str) -> None:
        payload = self.job_event(job, action)
        if payload is not None:
            self._hooks.emit("workflow_job", payload, lane=f"job-{job.id}")

    def job_event(self, job: Job, action: str) -> dict[str, Any] | None:
        """The ``workflow_job`` payload for ``job`` as it is now; None where the App isn't told (not installed, suspended)."""
        repo = job.run.repository
        installation = self.state.installation_of(repo.owner)
        if installation is None or installation.suspended_at or "workflow_job" not in self.state.app.events:
            return None
        if installation.repository_ids is not None and repo.id not in installation.repository_ids:
            return None
        payload: dict[str, Any] = {"action": action, "workflow_job": present.job(job, self.state.groups)}
        if job.deployment_id and action != "waiting":
            payload["deployment"] = present.deployment(job, job.run.actor)
        payload["repository"] = present.repository(repo)
        if repo.owner.type == "Organization":
            payload["organization"] = present.organization(repo.owner)
        payload["sender"] = present.account(job.run.actor)
        payload["installation"] = {"id": installation.id, "node_id": present.node_id("MDIz", installation.id)}
        return payload

    def find_job(self, *, plan_id: str, uuid_: str) -> Job | None:
        return next((it for it in self._open.values() if it.plan_id == plan_id and it.uuid == uuid_), None)


def repository_or_fail(state: State, name: str, default_owner: str) -> Repository:
    """The repository called ``name`` or ``default_owner/name``.  Raises UserError where there is none."""
    full_name = name if "/" in name else f"{default_owner}/{name}"
    repo = state.find_repository(full_name)
    if repo is None:
        raise UserError(
            f"the simulator has no repository {full_name}",
            code="no-such-repository",
            remedy="Create it first: POST /_sim/repositories.",
        )
    return repo
