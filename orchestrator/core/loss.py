"""Infrastructure loss: a job's machine ended under it.  What counts as one, and whether the job may be run again for it.

- GitHub notices by itself about ten minutes after the runner last renewed its hold of the job, and ends the job as failed.
  Until then we only say what we saw; we never end a job in GitHub's place.
- A runner that ended with status 0 has mostly done its job, and only GitHub's word is missing: nothing is lost before the
  hold has run out.
- A job that GitHub calls a success was none, whatever we saw; nor is one that it ended before it can have noticed.
- Run again is only what failed by a loss, where a setting says so: never what a person cancelled, never a deployment or
  what may be one, and a run at most so many times.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from orchestrator.core.job import Job

HOLD_S = 600.0
"""A runner's hold of its job lasts so long from its last renewal."""
SILENT_S = 60.0
"""A guest says that it lives every ten seconds; so long without is a loss."""
REPORTED_S = 120.0
"""GitHub ends a lost job minutes after its machine's last sign of life; an end that comes sooner was reported by the runner."""
NO_LOSS = frozenset({"job_completed", "lifetime", "drain", "drained"})
"""Why a machine may end under its job without anything being lost: it was GitHub's end, or an admin's."""
AGAIN_S = 30.0
GIVE_UP_S = 900.0
"""GitHub refuses to run a job again while its run goes on; it is asked so often and for so long."""

RerunState = Literal["wanted", "asked", "done", "refused"]


class Rerun(msgspec.Struct, frozen=True, omit_defaults=True):
    """What has become of the wish to run a lost job again."""

    state: RerunState
    since: float
    next_at: float = 0.0
    why: str = ""

    @property
    def settled(self) -> bool:
        return self.state in ("done", "refused")


def is_loss(reason: str, exit_code: int | None) -> bool:
    """True where a machine that ended for ``reason`` under its job has lost it, without waiting for the hold."""
    return reason not in NO_LOSS and not is_quiet(reason, exit_code)


def is_quiet(reason: str, exit_code: int | None) -> bool:
    """True where its runner ended in order, and only GitHub's word about the job is missing."""
    return reason == "runner_exited" and exit_code in (0, None)


def was_reported(job: Job, lost_at: float, over_at: float) -> bool:
    """True where GitHub ended the job too soon after its machine to have noticed by itself: the runner told it."""
    return job.conclusion == "success" or (job.completed_at or over_at) < lost_at + REPORTED_S


def may_rerun(job: Job, where: tuple[str, ...], machine: str) -> bool:
    """Whether a setting has the job run again after a loss.

    ``where`` names organisations, repositories (``owner/name``), classes (``class:NAME``), or all (``*``).
    """
    owner = job.repo.partition("/")[0]
    names = {"*", owner.lower(), job.repo.lower(), f"class:{machine.lower()}"}
    return any(one.lower() in names for one in where)


def why_not_again(job: Job) -> str:
    """Why the job must not be run again; empty where nothing speaks against it."""
    if job.conclusion != "failure":
        return f"GitHub ended it as {job.conclusion!r}, not as failed"
    if job.deploys:
        return "it deploys to an environment"
    if job.deploys is None:
        return "no delivery told whether it deploys to an environment"
    return ""
