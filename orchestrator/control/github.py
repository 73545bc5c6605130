"""What the control plane asks of GitHub, as a port: `orchestrator.control.github_kit` is the real thing, and
`orchestrator.control.github_fake` one in memory that ships beside it.

A failure is sorted by what to do about it, not by its status: ask again later (`Unavailable`, `RateLimited`), or stop
asking (`Refused`, `Missing`).  A name that is taken (`NameTaken`) is no failure of ours: an earlier request, whose
answer was lost, succeeded.
"""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from orchestrator.core.errors import GitHubError
from orchestrator.core.job import Job

Removal = Literal["deleted", "busy", "absent"]
"""GitHub's answer to the deletion of a runner: 204, 422 (a job got in first), 404."""
Conclusion = Literal["success", "neutral", "failure"]
CommitState = Literal["error", "failure", "pending", "success"]


class RunnerScope(msgspec.Struct, frozen=True):
    """Where a runner is registered: with ``org`` where it is set, else with ``repo`` (``owner/name``)."""

    installation: int
    org: str = ""
    repo: str = ""

    @property
    def account(self) -> str:
        return self.org or self.repo


class Registration(msgspec.Struct, frozen=True):
    github_id: int
    jit: str
    """Encoded JIT configuration: a secret, good for one runner."""

    def __repr__(self) -> str:
        return f"Registration(github_id={self.github_id})"


class GitHubRunner(msgspec.Struct, frozen=True):
    id: int
    name: str
    online: bool
    busy: bool
    """True is true; False can lie for as long as a whole job (actions/runner#4422)."""
    labels: tuple[str, ...] = ()


class PolicyText(msgspec.Struct, frozen=True):
    """A file of a repository's default branch."""

    text: bytes
    url: str
    """Where a person reads it."""
    branch: str = ""
    """The default branch's name."""
    blob: str = ""
    """Git's own hash of the file."""


class Installation(msgspec.Struct, frozen=True):
    id: int
    account: str
    organization: bool
    suspended: bool = False


class RunnerGroup(msgspec.Struct, frozen=True):
    """Which repositories may use an organisation's runners of one group."""

    name: str
    visibility: str
    """``all``, ``private`` (private repositories), or ``selected``."""
    allows_public: bool
    repositories: frozenset[str] | None = None
    """Those that are selected (``owner/name``); None where all may."""


class Release(msgspec.Struct, frozen=True):
    """A release of GitHub's runner."""

    version: str
    published: float


class HookDelivery(msgspec.Struct, frozen=True):
    """One attempt to deliver one event to the App's webhook; all attempts of one event have its ``guid``."""

    id: int
    guid: str
    at: float
    """When it was sent."""
    ok: bool
    """It was answered 2xx."""


class DeliveryPage(msgspec.Struct, frozen=True):
    deliveries: tuple[HookDelivery, ...]
    """Latest first."""
    cursor: str = ""
    """Of the page that follows; empty on the last."""


class GitHub(Protocol):
    """All calls raise `GitHubFailure`s.  ``repo`` is ``owner/name``."""

    async def generate_jit(self, scope: RunnerScope, name: str, labels: tuple[str, ...]) -> Registration:
        """Register a runner of that name.  Sent once: raises `NameTaken` where the name is registered already."""
        ...

    async def find_runner(self, scope: RunnerScope, name: str) -> GitHubRunner | None: ...

    async def list_runners(self, scope: RunnerScope) -> list[GitHubRunner]: ...

    async def get_runner(self, scope: RunnerScope, github_id: int) -> GitHubRunner | None: ...

    async def delete_runner(self, scope: RunnerScope, github_id: int) -> Removal: ...

    async def get_job(self, installation: int, repo: str, job_id: int) -> Job | None: ...

    async def run_jobs(self, installation: int, repo: str, run_id: int, attempt: int) -> list[Job]:
        """The jobs of one attempt of a run; empty where there is no such run."""
        ...

    async def pending_environments(self, installation: int, repo: str, run_id: int) -> frozenset[str]:
        """Environments that jobs of the run wait for somebody's approval of; empty where there is no such run."""
        ...

    async def queued_jobs(self, installation: int, repo: str) -> list[Job]:
        """Jobs of the repository that are queued or in progress."""
        ...

    async def rerun_job(self, installation: int, repo: str, job_id: int) -> bool:
        """Run a job that has ended again, as the next attempt of its run; False while the run still goes on."""
        ...

    async def set_commit_status(
        self, installation: int, repo: str, sha: str, *, state: CommitState, context: str, description: str
    ) -> None: ...

    async def add_check_run(
        self, installation: int, repo: str, sha: str, *, name: str, conclusion: Conclusion, title: str, summary: str
    ) -> None:
        """A finished check run; ``summary`` is Markdown.  Raises `Refused` where the App may not write checks."""
        ...

    async def read_file(self, installation: int, repo: str, path: str) -> PolicyText | None:
        """A file of the default branch; None where there is none."""
        ...

    async def installations(self) -> list[Installation]: ...

    async def installation_of(self, repo: str) -> Installation | None:
        """Where the App is installed for ``repo``; None where it isn't."""
        ...

    async def repositories(self, installation: int) -> list[str]:
        """All repositories that an installation may see."""
        ...

    async def latest_runner(self, installation: int) -> Release | None:
        """The latest release of GitHub's runner; None where this GitHub has none."""
        ...

    async def repository_name(self, installation: int, repo_id: int) -> str | None:
        """What a repository is called now (``owner/name``); None where the installation may see none of that id."""
        ...

    async def runner_group(self, installation: int, org: str) -> RunnerGroup | None:
        """The runner group that our runners are registered in; None where the organisation has none of that id."""
        ...

    async def deliveries(self, cursor: str = "") -> DeliveryPage:
        """One page of the attempts that GitHub made to deliver to the App's webhook."""
        ...

    async def redeliver(self, delivery_id: int) -> None:
        """Have GitHub try once more; it does so in its own time."""
        ...

    async def close(self) -> None: ...


class GitHubFailure(GitHubError):
    """Base of the failures below."""


class Unavailable(GitHubFailure):
    """No answer, or one of 5xx: nobody knows whether it was done."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"GitHub can't be reached: {what}",
            code="github-unavailable",
            remedy="Nothing; it is tried again. See https://www.githubstatus.com.",
        )


class RateLimited(GitHubFailure):
    """``retry_after``: seconds until it makes sense to ask again.

    ``resource``: which of GitHub's limits it is; empty for a secondary one, which holds for all.  ``ours``: GitHub wasn't
    asked, to spare its limit.
    """

    def __init__(self, what: str, retry_after: float, *, resource: str = "", ours: bool = False) -> None:
        super().__init__(
            f"GitHub's rate limit: {what}; going on in {retry_after:.0f} s",
            code="github-rate-limited",
            remedy="Nothing; jobs stay queued and are served when the limit is reset.",
        )
        self.retry_after = retry_after
        self.resource = resource
        self.ours = ours


class Refused(GitHubFailure):
    """It won't succeed by asking again: 401, 403, 422."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"GitHub refuses: {what}",
            code="github-refused",
            remedy="Check the App's permissions and the runner group: docs/operations/github-app.md.",
        )


class Missing(GitHubFailure):
    """404: the App isn't installed there any more, or the repository or runner group is gone."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"GitHub doesn't know it: {what}",
            code="github-missing",
            remedy="Install the App on the repository, or check the runner group's id.",
        )


class GroupFull(GitHubFailure):
    """422 that passes: as many runners are registered as may be."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"GitHub takes no more runners: {what}",
            code="github-full",
            remedy="Nothing, if runners end: it is tried again. Remove registrations that nobody needs.",
        )


class NameTaken(GitHubFailure):
    """409: a runner of that name is registered."""

    def __init__(self, name: str) -> None:
        super().__init__(f"a runner {name!r} is registered already", code="github-name-taken", remedy="Nothing.")
