"""What the simulated GitHub knows.  Everything is in memory and belongs to one event loop; nothing here does I/O."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric import rsa

from orchestrator.simulator.github.spec import JobSpec, WorkflowSpec

JobStatus = Literal["queued", "in_progress", "completed", "waiting"]


def timestamp(at: float) -> str:
    """GitHub's form of a time: whole seconds, UTC, with a Z."""
    return datetime.fromtimestamp(int(at), tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Account:
    id: int
    login: str
    type: Literal["Organization", "User"]


@dataclass
class Status:
    id: int
    state: str
    context: str
    description: str | None
    target_url: str | None
    at: float


@dataclass
class Repository:
    id: int
    owner: Account
    name: str
    private: bool = True
    fork: bool = False
    default_branch: str = "main"
    head_sha: str = field(default_factory=lambda: secrets.token_hex(20))
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Content by branch and path."""
    statuses: dict[str, list[Status]] = field(default_factory=dict)
    check_runs: dict[int, dict[str, Any]] = field(default_factory=dict)
    created_at: float = 0.0

    @property
    def full_name(self) -> str:
        return f"{self.owner.login}/{self.name}"


@dataclass
class App:
    id: int
    slug: str
    name: str
    client_id: str
    owner: Account
    private_key: rsa.RSAPrivateKey
    permissions: dict[str, str]
    events: list[str]
    webhook_url: str
    webhook_secret: str
    hook_id: int
    created_at: float


@dataclass
class Installation:
    id: int
    account: Account
    permissions: dict[str, str]
    created_at: float
    repository_ids: set[int] | None = None
    """None where the App may see all repositories of the account."""
    suspended_at: float | None = None


@dataclass
class Token:
    value: str
    installation_id: int
    permissions: dict[str, str]
    repository_ids: set[int] | None
    expires_at: float


@dataclass
class RunnerGroup:
    id: int
    name: str
    default: bool = False
    visibility: str = "all"
    allows_public_repositories: bool = True
    repository_ids: set[int] = field(default_factory=set)


@dataclass
class Message:
    id: int
    type: str
    body: dict[str, Any]


@dataclass
class Session:
    id: str
    owner_name: str
    opened_at: float = 0.0
    messages: list[Message] = field(default_factory=list)
    polled_at: float = 0.0


@dataclass
class Runner:
    """A registration.  ``repository`` is None for one of the organisation's."""

    id: int
    name: str
    owner: Account
    repository: Repository | None
    group_id: int
    labels: list[str]
    work_folder: str
    key: rsa.RSAPublicKey
    client_id: str
    created_at: float
    version: str = ""
    os: str = "unknown"
    session: Session | None = None
    job: Job | None = None
    gone: bool = False
    known_from: float = 0.0
    """Until then nobody but whoever made it knows of it: a fault."""

    @property
    def online(self) -> bool:
        return self.session is not None and self.session.polled_at > 0.0


@dataclass
class Step:
    number: int
    name: str
    id: str
    status: str = "queued"
    conclusion: str | None = None
    started_at: float | None = None
    completed_at: float | None = None


@dataclass
class Job:
    id: int
    key: str
    """The job's key in the workflow file: what the runner calls GITHUB_JOB."""
    spec: JobSpec
    run: Run
    attempt: int
    created_at: float
    plan_id: str
    uuid: str
    status: JobStatus = "queued"
    conclusion: str | None = None
    started_at: float = 0.0
    completed_at: float | None = None
    steps: list[Step] = field(default_factory=list)
    runner: Runner | None = None
    assigned_at: float | None = None
    request_id: str = ""
    locked_until: float = 0.0
    cancel_requested: bool = False
    token: str = ""
    """The job's own access token (the runner's SystemVssConnection)."""
    outputs: dict[str, str] = field(default_factory=dict)
    deployment_id: int = 0

    @property
    def name(self) -> str:
        return self.spec.name or self.key


@dataclass
class Run:
    id: int
    repository: Repository
    workflow: WorkflowSpec
    number: int
    event: str
    actor: Account
    head_sha: str
    head_branch: str
    created_at: float
    attempt: int = 1
    updated_at: float = 0.0
    attempts: dict[int, list[Job]] = field(default_factory=dict)

    @property
    def jobs(self) -> list[Job]:
        return self.attempts[self.attempt]

    def status(self, attempt: int | None = None) -> str:
        states = {job.status for job in self.attempts[attempt or self.attempt]}
        for status in ("in_progress", "queued", "waiting"):
            if status in states:
                return "in_progress" if status == "queued" and "completed" in states else status
        return "completed"

    def conclusion(self, attempt: int | None = None) -> str | None:
        if self.status(attempt) != "completed":
            return None
        ends = {job.conclusion for job in self.attempts[attempt or self.attempt]}
        return next((end for end in ("cancelled", "failure", "timed_out") if end in ends), "success")


@dataclass
class Delivery:
    """One attempt to deliver one event; a redelivery has the same guid and another id."""

    id: int
    guid: str
    event: str
    action: str | None
    body: bytes
    installation_id: int | None
    repository_id: int | None
    delivered_at: float
    redelivery: bool = False
    duration: float = 0.0
    status: str = "pending"
    status_code: int = 0
    url: str = ""
    request_headers: dict[str, str] = field(default_factory=dict)
    response_headers: dict[str, str] = field(default_factory=dict)
    response_body: str = ""
    finished: bool = False


@dataclass
class State:
    app: App
    clock: Callable[[], float] = time.time
    accounts: dict[str, Account] = field(default_factory=dict)
    repositories: dict[int, Repository] = field(default_factory=dict)
    installations: dict[int, Installation] = field(default_factory=dict)
    tokens: dict[str, Token] = field(default_factory=dict)
    groups: dict[int, RunnerGroup] = field(default_factory=dict)
    runners: dict[int, Runner] = field(default_factory=dict)
    runner_tokens: dict[str, Runner] = field(default_factory=dict)
    runs: dict[int, Run] = field(default_factory=dict)
    jobs: dict[int, Job] = field(default_factory=dict)
    deliveries: dict[int, Delivery] = field(default_factory=dict)
    blobs: dict[str, bytearray] = field(default_factory=dict)
    """What runners uploaded, by path: logs and step summaries."""
    runner_release: tuple[str, float] | None = None
    """The latest release of the runner, and when it was published; None for the simulator's own runner, just now."""
    manifests: dict[str, App] = field(default_factory=dict)
    former_names: dict[str, Repository] = field(default_factory=dict)
    _ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def next_id(self, base: int = 0) -> int:
        """An id nobody has yet; ``base`` only makes kinds of ids look apart."""
        return base + next(self._ids)

    def now(self) -> float:
        return self.clock()

    def find_repository(self, full_name: str) -> Repository | None:
        wanted = full_name.lower()
        found = (repo for repo in self.repositories.values() if repo.full_name.lower() == wanted)
        return next(found, self.former_names.get(wanted))

    def find_account(self, login: str) -> Account | None:
        return next((item for name, item in self.accounts.items() if name.lower() == login.lower()), None)

    def installation_of(self, account: Account) -> Installation | None:
        return next((item for item in self.installations.values() if item.account.id == account.id), None)
