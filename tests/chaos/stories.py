"""Whether each job's whole story says what the job waited for, all the time that it waited: read when all is over.

A line opens a reason, which holds until another one takes its place or what it speaks of has ended: a wait that is told, a
refusal, or a step that is being taken for the job (its runner is being registered, boots, listens).  A step has its own time;
beyond that the story must tell more.  What a job waits without a reason, in one go, may be no longer than `PATIENCE_S`.

Excused is only the time in which nobody could write anything down (the worker dead, Redis away).  When Redis is emptied the
stories up to then are judged as they were, and those after it begin when jobs are found again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from orchestrator.control.records import JobRecord, RunnerRecord
from orchestrator.simulator.github.state import Job
from tests.chaos.chronicle import Chronicle, Era, overlap_s

if TYPE_CHECKING:
    from tests.chaos.city import City

PATIENCE_S = 60.0
HELD = ("ignored", "policy_refused", "group_forbids", "given_up", "app_removed", "app_suspended")
"""Lines that say why nothing is done for a job, until they say otherwise."""
PAUSE_S = 60.0 + PATIENCE_S
"""A pause after a runner that failed is told by that line, and is no longer than the longest one."""
REGISTERS_S = PATIENCE_S
BOOTS_S = 300.0 + PATIENCE_S
"""The lifecycle's own deadlines: what takes longer is ended, and that is a line."""
STEPS = {
    "WANTED": REGISTERS_S,
    "Placed": REGISTERS_S,
    "Registered": BOOTS_S,
    "BOOTING": BOOTS_S,
    "RunnerListened": BOOTS_S,
    "READY": BOOTS_S,
}
ENDS = ("JobStarted", "RUNNING", "DESTROYING", "GONE")
"""Lines after which a runner does nothing more for a job that still waits."""


class Line(msgspec.Struct, frozen=True):
    at: float
    runner: str
    """Empty for the job's own."""
    what: str
    detail: str


class Reason(msgspec.Struct, frozen=True):
    since: float
    what: str
    holds_s: float = float("inf")
    runner: str = ""


class Gap(msgspec.Struct, frozen=True):
    job: int
    since: float
    seconds: float
    after: str
    """The line that it follows."""

    def __str__(self) -> str:
        return (
            f"job {self.job} waited {self.seconds:.0f} s from {self.since:.0f} on and its story has no reason: "
            f"it follows {self.after!r}"
        )


def unreasoned(city: City) -> list[Gap]:
    """Of every job that was ever on record, the longest gap in its story."""
    found: dict[int, Gap] = {}
    for era in city.chronicle.eras():
        for record in era.jobs.values():
            job = city.github.state.jobs.get(record.job.id)
            if job is None:
                continue
            for gap in gaps(record, job, era, city.chronicle):
                if gap.job not in found or gap.seconds > found[gap.job].seconds:
                    found[gap.job] = gap
    return [found[number] for number in sorted(found)]


def gaps(record: JobRecord, job: Job, era: Era, chronicle: Chronicle) -> Iterator[Gap]:
    """The stretches of its wait without a reason that are longer than they may be."""
    lines = story(record, era)
    known = record.job.story[0].at if record.job.story else era.since
    begun = max(known, job.created_at, era.since)
    over = min(end_of_wait(job), era.until)
    reason: Reason | None = None
    bare, after = begun, "nothing"
    for line in [*lines, None]:
        at = max(begun, min(over, line.at if line is not None else over))
        ran_out = reason.since + reason.holds_s if reason is not None else at
        if reason is not None and reason.holds_s != float("inf"):
            ran_out += overlap_s(chronicle.blind, reason.since, at) + overlap_s(chronicle.deaf, reason.since, at)
        bare = bare if reason is None else max(begun, ran_out)
        if reason is None or ran_out < at:
            seconds = at - bare - overlap_s(chronicle.blind, bare, at)
            if seconds > PATIENCE_S:
                yield Gap(job.id, bare, seconds, after)
        if line is None:
            return
        fresh = reason_after(reason, line)
        if fresh is None and reason is not None:
            bare = min(at, ran_out)
        reason, after = fresh, f"{line.what} {line.detail}"[:120]


def end_of_wait(job: Job) -> float:
    """When a runner had it, or GitHub had done with it."""
    if job.runner is not None and job.started_at:
        return job.started_at
    return job.completed_at if job.completed_at is not None else float("inf")


def story(record: JobRecord, era: Era) -> list[Line]:
    """The job's lines and those of all runners that were made for it, by time; of one moment the job's come last."""
    lines = [Line(one.at, "", one.what, one.detail) for one in record.job.story]
    for runner in _runners(record, era):
        lines += [Line(one.at, runner.id, one.what, one.detail) for one in runner.story]
    return sorted(lines, key=lambda line: (line.at, not line.runner and line.what != "tried_again"))


def _runners(record: JobRecord, era: Era) -> list[RunnerRecord]:
    return [era.runners[number] for number in record.runners if number in era.runners]


def reason_after(reason: Reason | None, line: Line) -> Reason | None:
    """Why the job waits once ``line`` is told."""
    what = line.what
    if line.runner:
        if what in STEPS:
            return Reason(line.at, what, STEPS[what], line.runner)
        ended = what in ENDS and reason is not None and reason.runner == line.runner
        return None if ended else reason
    if what.startswith("waits_for_") or what in HELD:
        return Reason(line.at, what) if line.detail else None
    if what == "runner_failed":
        return Reason(line.at, what, PAUSE_S) if line.detail else None
    return None if what == "tried_again" else reason
