"""A GitHub in memory, with the answers of the real one: names are unique, a busy runner can't be deleted, 404 is None.

It ships beside `orchestrator.control.github_kit` so that whoever tests what uses the port needs no patching.  ``trouble``
is called before and after each call takes effect and may raise: an answer lost after the deed is as real as a refusal.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Callable
from typing import Literal

import msgspec

from orchestrator.control.github import (
    CommitState,
    Conclusion,
    DeliveryPage,
    GitHubRunner,
    HookDelivery,
    Installation,
    Missing,
    NameTaken,
    PolicyText,
    Refused,
    Registration,
    Release,
    Removal,
    RunnerGroup,
    RunnerScope,
)
from orchestrator.core.job import Job

When = Literal["before", "after"]


class FakeGitHub:
    def __init__(self, *, trouble: Callable[[str, When], None] = lambda _call, _when: None) -> None:
        self.trouble = trouble
        self.runners: dict[tuple[str, int], GitHubRunner] = {}
        """By account (organisation or repository) and id."""
        self.jobs: dict[int, Job] = {}
        self.files: dict[tuple[str, str], bytes] = {}
        """By repository and path."""
        self.statuses: list[tuple[str, str, CommitState, str]] = []
        """Repository, commit, state, description."""
        self.check_runs: list[tuple[str, str, str, Conclusion, str, str]] = []
        """Repository, commit, name, conclusion, title, summary."""
        self.apps: dict[int, Installation] = {}
        self.attempts: list[HookDelivery] = []
        """Of deliveries to the webhook, oldest first."""
        self.page = 100
        """So many of them on one page."""
        self.redelivered: Callable[[HookDelivery], HookDelivery] = _failed_again
        """What comes of an attempt that was asked for."""
        self.runner_release: Release | None = None
        """Of GitHub's runner, the latest."""
        self.group: RunnerGroup | None = RunnerGroup("Default", "all", allows_public=True)
        self.names: dict[int, str] = {}
        """Of repositories, by id."""
        self.calls: list[str] = []
        self._ids = itertools.count(1)

    async def close(self) -> None:
        pass

    async def generate_jit(self, scope: RunnerScope, name: str, labels: tuple[str, ...]) -> Registration:
        with self._call("generate_jit"):
            self._known(scope.installation)
            if self._by_name(scope, name) is not None:
                raise NameTaken(name)
            github_id = next(self._ids)
            self.runners[scope.account, github_id] = GitHubRunner(
                github_id, name, online=False, busy=False, labels=labels
            )
            jit = base64.b64encode(f'{{".runner":"{name}/{github_id}"}}'.encode()).decode()
        return Registration(github_id, jit)

    async def find_runner(self, scope: RunnerScope, name: str) -> GitHubRunner | None:
        with self._call("find_runner"):
            self._known(scope.installation)
            return self._by_name(scope, name)

    async def list_runners(self, scope: RunnerScope) -> list[GitHubRunner]:
        with self._call("list_runners"):
            self._known(scope.installation)
            return [seen for (account, _), seen in self.runners.items() if account == scope.account]

    async def get_runner(self, scope: RunnerScope, github_id: int) -> GitHubRunner | None:
        with self._call("get_runner"):
            self._known(scope.installation)
            return self.runners.get((scope.account, github_id))

    async def delete_runner(self, scope: RunnerScope, github_id: int) -> Removal:
        with self._call("delete_runner"):
            self._known(scope.installation)
            runner = self.runners.get((scope.account, github_id))
            if runner is None:
                return "absent"
            if runner.busy:
                return "busy"
            del self.runners[scope.account, github_id]
            return "deleted"

    async def get_job(self, installation: int, repo: str, job_id: int) -> Job | None:
        with self._call("get_job"):
            self._known(installation)
            job = self.jobs.get(job_id)
            return job if job is not None and job.repo == repo else None

    async def run_jobs(self, installation: int, repo: str, run_id: int, attempt: int) -> list[Job]:
        with self._call("run_jobs"):
            self._known(installation)
            wanted = (repo, run_id, attempt)
            return [job for job in self.jobs.values() if (job.repo, job.run_id, job.attempt) == wanted]

    async def pending_environments(self, installation: int, repo: str, run_id: int) -> frozenset[str]:
        with self._call("pending_environments"):
            self._known(installation)
            waiting = [
                job for job in self.jobs.values() if (job.repo, job.run_id, job.state) == (repo, run_id, "waiting")
            ]
            return frozenset(job.environment for job in waiting if job.environment)

    async def queued_jobs(self, installation: int, repo: str) -> list[Job]:
        with self._call("queued_jobs"):
            self._known(installation)
            return [job for job in self.jobs.values() if job.repo == repo and not job.over]

    async def rerun_job(self, installation: int, repo: str, job_id: int) -> bool:
        with self._call("rerun_job"):
            self._known(installation)
            job = self.jobs.get(job_id)
            if job is None or job.repo != repo:
                raise Missing(f"job {job_id}")
            if any(not other.over for other in self.jobs.values() if (other.repo, other.run_id) == (repo, job.run_id)):
                return False
            fresh = Job(
                id=max(self.jobs) + 1000,
                installation=job.installation,
                org=job.org,
                repo=repo,
                state="queued",
                labels=job.labels,
                run_id=job.run_id,
                attempt=job.attempt + 1,
                name=job.name,
                workflow=job.workflow,
                head_sha=job.head_sha,
                created_at=job.created_at,
            )
            self.jobs[fresh.id] = fresh
            return True

    async def set_commit_status(
        self, installation: int, repo: str, sha: str, *, state: CommitState, context: str, description: str
    ) -> None:
        del context
        with self._call("set_commit_status"):
            self._known(installation)
            self.statuses.append((repo, sha, state, description))

    async def add_check_run(
        self, installation: int, repo: str, sha: str, *, name: str, conclusion: Conclusion, title: str, summary: str
    ) -> None:
        with self._call("add_check_run"):
            self._known(installation)
            self.check_runs.append((repo, sha, name, conclusion, title, summary))

    async def read_file(self, installation: int, repo: str, path: str) -> PolicyText | None:
        with self._call("read_file"):
            self._known(installation)
            text = self.files.get((repo, path))
            if text is None:
                return None
            blob = hashlib.sha1(b"blob %d\0" % len(text) + text, usedforsecurity=False).hexdigest()
            return PolicyText(text, f"https://github.example/{repo}/blob/main/{path}", "main", blob)

    async def installations(self) -> list[Installation]:
        with self._call("installations"):
            return list(self.apps.values())

    async def installation_of(self, repo: str) -> Installation | None:
        with self._call("installation_of"):
            owner = repo.partition("/")[0]
            return next((app for app in self.apps.values() if app.account == owner), None)

    async def repositories(self, installation: int) -> list[str]:
        with self._call("repositories"):
            self._known(installation)
            owner = self.apps[installation].account
            return sorted({repo for repo, _ in self.files if repo.startswith(owner + "/")})

    async def latest_runner(self, installation: int) -> Release | None:
        with self._call("latest_runner"):
            self._known(installation)
            return self.runner_release

    async def repository_name(self, installation: int, repo_id: int) -> str | None:
        with self._call("repository_name"):
            self._known(installation)
            return self.names.get(repo_id)

    async def runner_group(self, installation: int, org: str) -> RunnerGroup | None:
        del org
        with self._call("runner_group"):
            self._known(installation)
            return self.group

    async def deliveries(self, cursor: str = "") -> DeliveryPage:
        with self._call("deliveries"):
            older = [seen for seen in reversed(self.attempts) if not cursor or seen.id < int(cursor)]
            here = tuple(older[: self.page])
            return DeliveryPage(here, str(here[-1].id) if len(older) > len(here) else "")

    async def redeliver(self, delivery_id: int) -> None:
        with self._call("redeliver"):
            attempt = next((seen for seen in self.attempts if seen.id == delivery_id), None)
            if attempt is None:
                raise Missing(f"delivery {delivery_id}")
            fresh = msgspec.structs.replace(attempt, id=max(seen.id for seen in self.attempts) + 1)
            self.attempts.append(self.redelivered(fresh))

    # What happens at GitHub

    def give(self, job_id: int, runner_name: str) -> Job:
        """The runner of that name gets the job."""
        key, runner = next((key, seen) for key, seen in self.runners.items() if seen.name == runner_name)
        self.runners[key] = msgspec.structs.replace(runner, online=True, busy=True)
        self.jobs[job_id] = msgspec.structs.replace(
            self.jobs[job_id], state="in_progress", runner_id=runner.id, runner_name=runner_name
        )
        return self.jobs[job_id]

    def end(self, job_id: int, conclusion: str = "success") -> Job:
        """The job ends, and an ephemeral runner that had it is gone."""
        job = self.jobs[job_id] = msgspec.structs.replace(self.jobs[job_id], state="completed", conclusion=conclusion)
        self.runners = {key: seen for key, seen in self.runners.items() if seen.name != job.runner_name}
        return job

    def _call(self, name: str) -> _Call:
        return _Call(self, name)

    def _by_name(self, scope: RunnerScope, name: str) -> GitHubRunner | None:
        found = (seen for (account, _), seen in self.runners.items() if account == scope.account)
        return next((runner for runner in found if runner.name == name), None)

    def _known(self, installation: int) -> None:
        if installation not in self.apps:
            raise Missing(f"installation {installation}")
        if self.apps[installation].suspended:
            raise Refused("403 This installation has been suspended")


def _failed_again(attempt: HookDelivery) -> HookDelivery:
    return attempt


class _Call:
    """Trouble before, the deed, trouble after."""

    def __init__(self, github: FakeGitHub, name: str) -> None:
        self._github = github
        self._name = name

    def __enter__(self) -> None:
        self._github.calls.append(self._name)
        self._github.trouble(self._name, "before")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._github.trouble(self._name, "after")
