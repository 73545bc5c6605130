"""What the end of a runner's process says about its start: a failure, with the runner's own last lines as evidence."""

from __future__ import annotations

from orchestrator.core.wire import Failure
from orchestrator.host.record import Record

CLOCK = "clock may be out of sync"
"""GitHub's runner says so where its sign-in fails for the time, and tries again for half an hour."""


def idled(record: Record) -> Failure | None:
    """Why a machine was ended that had no job to do; None where that isn't why."""
    if not record.idled or record.has("job_hint"):
        return None
    return Failure(
        code="idle-too-long",
        message=record.idled,
        remedy="Nothing: its job gets another one. See why the control plane was away that long.",
    )


def failure_of(record: Record, code: int, last_lines: str, *, stopped: bool) -> Failure | None:
    """None where nothing went wrong before the runner had a job.  ``stopped``: it was told to end."""
    if record.idled and not record.has("job_hint"):
        return idled(record)
    if record.has("job_hint") or (code == 0 and not (stopped and not record.has("runner_listening"))):
        return None
    if CLOCK in last_lines:
        return Failure(
            code="guest-clock",
            message="the runner couldn't sign in: its clock is more than five minutes off GitHub's",
            remedy="Guests take their time from their host: run an NTP client there, and see `ironcd hosts list`.",
            console=last_lines,
        )
    if code == 0:
        return Failure(
            code="boot-timeout",
            message="its runner had started and wasn't listening in time",
            remedy="Its last lines say what it waited for.",
            console=last_lines,
        )
    return Failure(
        code="runner-exited",
        message=f"the runner ended with status {code} before it had a job",
        remedy="Its last lines say why.",
        console=last_lines,
    )
