"""The port to GitHub with the governor before it: each call has a kind, and how it ended is told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from orchestrator.control.github import (
    CommitState,
    Conclusion,
    DeliveryPage,
    GitHub,
    GitHubFailure,
    GitHubRunner,
    Installation,
    PolicyText,
    RateLimited,
    Registration,
    Release,
    Removal,
    RunnerGroup,
    RunnerScope,
    Unavailable,
)
from orchestrator.control.governor import Governor, Kind
from orchestrator.core.job import Job

_T = TypeVar("_T")
APP = 0
log = structlog.get_logger()


class GovernedGitHub:
    """``urgent``: what is a sweep otherwise counts as a check, since nothing goes on before it is done."""

    def __init__(self, github: GitHub, governor: Governor, *, urgent: bool = False) -> None:
        self._github = github
        self.governor = governor
        self._sweep: Kind = "check" if urgent else "sweep"

    async def probe(self) -> bool:
        """In an outage, ask now and then whether it is over; True where it has just ended."""
        if not self.governor.wants_probe():
            return False
        try:
            await self._github.installations()
        except (Unavailable, RateLimited) as error:
            self.governor.probed(answered=isinstance(error, RateLimited))
        except GitHubFailure:
            self.governor.probed(answered=True)
        else:
            self.governor.probed(answered=True)
        over = not self.governor.open_since
        log.warning("github_probed", over=over)
        return over

    async def close(self) -> None:
        await self._github.close()

    async def generate_jit(self, scope: RunnerScope, name: str, labels: tuple[str, ...]) -> Registration:
        return await self._do("register", scope.installation, lambda: self._github.generate_jit(scope, name, labels))

    async def find_runner(self, scope: RunnerScope, name: str) -> GitHubRunner | None:
        return await self._do("delete", scope.installation, lambda: self._github.find_runner(scope, name))

    async def list_runners(self, scope: RunnerScope) -> list[GitHubRunner]:
        return await self._do(self._sweep, scope.installation, lambda: self._github.list_runners(scope))

    async def get_runner(self, scope: RunnerScope, github_id: int) -> GitHubRunner | None:
        return await self._do("delete", scope.installation, lambda: self._github.get_runner(scope, github_id))

    async def delete_runner(self, scope: RunnerScope, github_id: int) -> Removal:
        return await self._do("delete", scope.installation, lambda: self._github.delete_runner(scope, github_id))

    async def get_job(self, installation: int, repo: str, job_id: int) -> Job | None:
        return await self._do("check", installation, lambda: self._github.get_job(installation, repo, job_id))

    async def run_jobs(self, installation: int, repo: str, run_id: int, attempt: int) -> list[Job]:
        return await self._do("check", installation, lambda: self._github.run_jobs(installation, repo, run_id, attempt))

    async def pending_environments(self, installation: int, repo: str, run_id: int) -> frozenset[str]:
        return await self._do(
            "check", installation, lambda: self._github.pending_environments(installation, repo, run_id)
        )

    async def queued_jobs(self, installation: int, repo: str) -> list[Job]:
        return await self._do(self._sweep, installation, lambda: self._github.queued_jobs(installation, repo))

    async def rerun_job(self, installation: int, repo: str, job_id: int) -> bool:
        return await self._do("tell", installation, lambda: self._github.rerun_job(installation, repo, job_id))

    async def set_commit_status(
        self, installation: int, repo: str, sha: str, *, state: CommitState, context: str, description: str
    ) -> None:
        async def call() -> None:
            await self._github.set_commit_status(
                installation, repo, sha, state=state, context=context, description=description
            )

        await self._do("tell", installation, call)

    async def add_check_run(
        self, installation: int, repo: str, sha: str, *, name: str, conclusion: Conclusion, title: str, summary: str
    ) -> None:
        async def call() -> None:
            await self._github.add_check_run(
                installation, repo, sha, name=name, conclusion=conclusion, title=title, summary=summary
            )

        await self._do("tell", installation, call)

    async def read_file(self, installation: int, repo: str, path: str) -> PolicyText | None:
        return await self._do("policy", installation, lambda: self._github.read_file(installation, repo, path))

    async def installations(self) -> list[Installation]:
        return await self._do("check", APP, self._github.installations)

    async def installation_of(self, repo: str) -> Installation | None:
        return await self._do("check", APP, lambda: self._github.installation_of(repo))

    async def repositories(self, installation: int) -> list[str]:
        return await self._do(self._sweep, installation, lambda: self._github.repositories(installation))

    async def latest_runner(self, installation: int) -> Release | None:
        return await self._do("sweep", installation, lambda: self._github.latest_runner(installation))

    async def repository_name(self, installation: int, repo_id: int) -> str | None:
        return await self._do("check", installation, lambda: self._github.repository_name(installation, repo_id))

    async def runner_group(self, installation: int, org: str) -> RunnerGroup | None:
        return await self._do("check", installation, lambda: self._github.runner_group(installation, org))

    async def deliveries(self, cursor: str = "") -> DeliveryPage:
        return await self._do("sweep", APP, lambda: self._github.deliveries(cursor))

    async def redeliver(self, delivery_id: int) -> None:
        await self._do("sweep", APP, lambda: self._github.redeliver(delivery_id))

    async def _do(self, kind: Kind, installation: int, call: Callable[[], Awaitable[_T]]) -> _T:
        governor = self.governor
        governor.admit(kind, installation)
        try:
            answer = await call()
        except Unavailable:
            governor.failed()
            raise
        except RateLimited as error:
            governor.limited(installation, error)
            governor.answered()
            raise
        except GitHubFailure:
            governor.answered()
            raise
        governor.answered()
        return answer
