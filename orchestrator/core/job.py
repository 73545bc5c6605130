"""A job as GitHub has it: what we know of it, merged from messages that come late, twice and out of order.

GitHub's states have a rank and a job never goes down in rank, but for ``waiting`` and ``queued``, which may alternate
until the job starts: an environment's approval can send ``queued`` before and after it.  A payload is believed by the
higher of its action and its status (a ``queued`` event can carry ``in_progress``).
"""

from __future__ import annotations

from typing import Literal

import msgspec

JobState = Literal["waiting", "queued", "in_progress", "completed"]
Served = Literal["no", "ignored", "refused", "yes", "elsewhere"]

_RANK: dict[str, int] = {"waiting": 0, "queued": 1, "in_progress": 2, "completed": 3}
_STATUS: dict[str, JobState] = {
    "waiting": "waiting",
    "requested": "waiting",
    "pending": "waiting",
    "queued": "queued",
    "in_progress": "in_progress",
    "completed": "completed",
}


class Moment(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of a job's story: ``what`` happened, when (seconds since the epoch), and a detail for people."""

    at: float
    what: str
    detail: str = ""


class Job(msgspec.Struct, frozen=True, omit_defaults=True):
    """Keyed by GitHub's job id; a re-run is another job."""

    id: int
    installation: int
    org: str
    repo: str
    """``owner/name``"""
    state: JobState
    labels: tuple[str, ...] = ()
    run_id: int = 0
    attempt: int = 1
    name: str = ""
    workflow: str = ""
    head_sha: str = ""
    head_branch: str = ""
    created_at: float = 0.0
    started_at: float = 0.0
    completed_at: float = 0.0
    conclusion: str = ""
    runner_id: int = 0
    runner_name: str = ""
    deploys: bool | None = None
    """It uses an environment; None where only the API told of the job, which doesn't say."""
    environment: str = ""
    """Which one; empty where it uses none, or only the API told of the job."""
    repo_id: int = 0
    """A repository keeps it when it is renamed or moved; 0 where nobody told it."""
    public: bool | None = None
    """Of its repository."""
    served: Served = "no"
    reason: str = ""
    """Why it waits, was ignored or refused; for a person to read."""
    runner: str = ""
    """ULID of our runner that has it, once GitHub said so."""
    replacements: int = 0
    """Runners that were made for it and lost to other jobs, or that failed."""
    story: tuple[Moment, ...] = ()

    @property
    def over(self) -> bool:
        return self.state == "completed"

    @property
    def wants_runner(self) -> bool:
        """Queued on GitHub and ours to serve."""
        return self.state == "queued" and self.served == "yes"


STORY_LIMIT = 200


def state_of(action: str, status: str) -> JobState:
    """The state that an event's ``action`` and its job's ``status`` stand for together: the higher of the two.

    ``waiting`` is the exception: a ``queued`` event whose job still waits for approval is waiting.
    Unknown words count as ``waiting``, the state in which nothing is done.
    """
    by_action = _STATUS.get(action, "waiting")
    by_status = _STATUS.get(status, by_action)
    if by_action == "queued" and by_status == "waiting":
        return "waiting"
    return by_action if _RANK[by_action] >= _RANK[by_status] else by_status


def may_move(old: JobState, new: JobState) -> bool:
    """True where a job in ``old`` may be moved to ``new``: up in rank, or between waiting and queued."""
    return _RANK[new] > _RANK[old] or (_RANK[old] <= 1 and _RANK[new] <= 1 and new != old)


def merge(known: Job | None, seen: Job) -> Job:
    """What is known of a job once ``seen`` has been read too.

    Facts that only one of the two has are kept; of those that both have, the one of the higher rank wins.  ``served``,
    ``runner``, ``reason`` and the story are ours, not GitHub's, and stay.
    """
    if known is None:
        return seen
    forward = may_move(known.state, seen.state)
    newer, older = (seen, known) if forward or known.state == seen.state else (known, seen)
    return msgspec.structs.replace(
        known,
        state=seen.state if forward else known.state,
        labels=newer.labels or older.labels,
        name=newer.name or older.name,
        workflow=newer.workflow or older.workflow,
        head_sha=newer.head_sha or older.head_sha,
        head_branch=newer.head_branch or older.head_branch,
        run_id=newer.run_id or older.run_id,
        attempt=newer.attempt or older.attempt,
        created_at=newer.created_at or older.created_at,
        started_at=newer.started_at or older.started_at,
        completed_at=newer.completed_at or older.completed_at,
        conclusion=newer.conclusion or older.conclusion,
        deploys=_either(known.deploys, seen.deploys),
        environment=newer.environment or older.environment,
        repo_id=newer.repo_id or older.repo_id,
        public=seen.public if seen.public is not None else known.public,
        runner_id=newer.runner_id or older.runner_id,
        runner_name=newer.runner_name or older.runner_name,
    )


def _either(one: bool | None, other: bool | None) -> bool | None:
    """True where either is; None where nobody knows."""
    return other if one is None else one or bool(other)


def tell(job: Job, at: float, what: str, detail: str = "") -> Job:
    """``job`` with one more line in its story; a line that says the same as the one before it is left out."""
    if job.story and (job.story[-1].what, job.story[-1].detail) == (what, detail):
        return job
    return msgspec.structs.replace(job, story=(*job.story, Moment(at, what, detail))[-STORY_LIMIT:])
