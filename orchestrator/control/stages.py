"""A job's way through its stages, from GitHub's queue to the proof of destruction: when each was passed, how long it took,
and what the job waits for now.

What comes before the machine is told by the job's own story; the rest by the last runner that had it, its marks being its
host's own times.  A stage takes the time from the one before it.  Runners that failed before are named where the machine is
waited for, which is where their time went.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

from orchestrator.control.records import JobRecord, RunnerRecord
from orchestrator.control.told_waits import WAITS
from orchestrator.control.world import ON_ITS_WAY
from orchestrator.core.job import Moment

State = Literal["done", "now", "to come", "skipped", "refused"]

NAMES: dict[str, str] = {
    "delivered": "GitHub's delivery received",
    "class": "class matched",
    "quota": "waited for a quota",
    "turn": "waited for its turn and for room",
    "host": "host found",
    "registration": "registered at GitHub",
    "boot": "machine booted",
    "online": "runner online",
    "assigned": "job given to the runner",
    "bound": "policy in force",
    "steps": "steps began",
    "ended": "job ended",
    "destroyed": "all of it destroyed, with proof",
}
_BY_JOB = {"class_matched": "class", "assigned": "assigned", "over": "ended"}
_BY_STORY = {
    "WANTED": "turn",
    "Placed": "host",
    "Registered": "registration",
    "JobStarted": "assigned",
    "PolicyBound": "bound",
    "GONE": "destroyed",
}
_BY_MARK = {
    "guest_hello": "boot",
    "runner_listening": "online",
    "policy_bound": "bound",
    "steps_released": "steps",
}
_BY_WAIT = {"quota": "quota", "github": "registration", "approval": "class", "policy": "class"}
"""Kinds of waits, and the stage that is named with them; all others are waited for before there is a host."""


class Stage(msgspec.Struct, frozen=True):
    """``at``: when it was passed (seconds since the epoch), None where it wasn't.  ``took_s``: up to then, or up to now."""

    name: str
    title: str
    state: State
    at: float | None = None
    took_s: float | None = None
    why: str = ""


def stages(
    record: JobRecord, runners: Iterable[RunnerRecord], now: float, *, kind: str = "", reason: str = ""
) -> list[Stage]:
    """Every stage of a job, in order.  ``kind`` and ``reason``: of what it waits for now (`Waiting`)."""
    known = list(runners)
    passed, why = _passed(record, known), dict(_details(record, known))
    names = [name for name in NAMES if name != "quota" or name in passed or kind == "quota"]
    reached = max((n for n, name in enumerate(names) if name in passed), default=-1)
    rest = _rest(record, known)
    before = record.job.created_at or min(passed.values(), default=now)
    found: list[Stage] = []
    for n, name in enumerate(names):
        if name in passed:
            at = passed[name]
            took = _quota_s(record.job.story, at) if name == "quota" else max(0.0, at - before)
            found.append(Stage(name, NAMES[name], "done", at, round(took, 3), why.get(name, "")))
            before = max(before, at)
        elif n < reached:
            found.append(Stage(name, NAMES[name], "skipped"))
        elif rest:
            is_refused = rest == "refused" and n == reached + 1
            found.append(
                Stage(name, NAMES[name], "refused" if is_refused else "skipped", why=reason if is_refused else "")
            )
        elif n == reached + 1 or (names[n - 1] == "quota" and kind != "quota"):
            found.append(
                Stage(name, NAMES[name], "now", None, round(max(0.0, now - before), 3), reason or why.get(name, ""))
            )
        else:
            found.append(Stage(name, NAMES[name], "to come"))
    return found


def _rest(record: JobRecord, runners: list[RunnerRecord]) -> Literal["", "refused", "skipped"]:
    """What becomes of the stages that weren't reached; empty where they are still to come."""
    job = record.job
    if job.served == "ignored" or (record.permanent and not job.over):
        return "refused"
    if job.served == "elsewhere":
        return "skipped"
    return "skipped" if job.over and not any(r.life.phase != "GONE" for r in runners) else ""


def _passed(record: JobRecord, runners: list[RunnerRecord]) -> dict[str, float]:
    story = record.job.story
    passed = {"delivered": story[0].at} if story else {}
    for moment in story:
        if moment.what in _BY_JOB:
            passed.setdefault(_BY_JOB[moment.what], moment.at)
        elif moment.what == f"{WAITS}quota":
            over = _end_of_wait(story, runners, moment.at)
            passed |= {"quota": over} if over is not None else {}
    runner = _runner_of(record, runners)
    if runner is not None:
        for moment in runner.story:
            if moment.what in _BY_STORY:
                passed.setdefault(_BY_STORY[moment.what], moment.at)
        passed |= {_BY_MARK[mark]: at for mark, at in runner.marks.items() if mark in _BY_MARK}
    return passed


def _runner_of(record: JobRecord, runners: list[RunnerRecord]) -> RunnerRecord | None:
    """The runner that has or had it, or is on its way to it; not one that failed, or that took another job."""
    mine = [r for r in runners if r.id == record.job.runner or r.life.job_id == record.job.id]
    coming = [r for r in runners if r.life.phase in ON_ITS_WAY]
    over = [r for r in runners if record.job.over and not r.life.job_id]
    return next(iter([*mine, *reversed(coming), *reversed(over)]), None)


def _end_of_wait(story: tuple[Moment, ...], runners: list[RunnerRecord], begun: float) -> float | None:
    """When a wait that began then was over; None where it isn't."""
    ends = [moment.at for moment in story if moment.at > begun and moment.what.startswith(WAITS)]
    ends += [moment.at for runner in runners for moment in runner.story[:1] if moment.at >= begun]
    return min(ends, default=None)


def _quota_s(story: tuple[Moment, ...], until: float) -> float:
    """How long it waited for quotas in all."""
    total, since = 0.0, None
    for moment in story:
        if since is not None and (moment.what.startswith(WAITS) or moment.at >= until):
            total, since = total + min(moment.at, until) - since, None
        if moment.what == f"{WAITS}quota" and moment.at < until:
            since = moment.at
    return total + (until - since if since is not None else 0.0)


def _details(record: JobRecord, runners: list[RunnerRecord]) -> Iterator[tuple[str, str]]:
    story = record.job.story
    for moment in story:
        if moment.what == "class_matched":
            yield "class", moment.detail
        elif moment.what == "found":
            yield "delivered", moment.detail
        elif moment.what.startswith(WAITS):
            yield _BY_WAIT.get(moment.what.removeprefix(WAITS), "turn"), moment.detail
    failed = [moment.detail for moment in story if moment.what == "runner_failed"]
    if failed:
        yield "turn", f"{len(failed)} failed before: " + "; ".join(failed[-3:])
    runner = _runner_of(record, runners)
    if runner is not None:
        yield "host", runner.life.host
        yield "registration", runner.name
        yield "destroyed", runner.life.reason
    yield "ended", record.job.conclusion
