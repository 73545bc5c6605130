"""What jobs wait for, worked out when somebody asks: place in the line, reason, quotas.  Reads, and decides nothing."""

from __future__ import annotations

from typing import Any

import msgspec

from orchestrator.control.demand import reason_of
from orchestrator.control.line import Line
from orchestrator.control.records import JobRecord, Snapshot
from orchestrator.control.settings import ControlSettings
from orchestrator.control.told_waits import APPROVAL, READING
from orchestrator.control.world import ON_ITS_WAY, World
from orchestrator.core.policy import Policy


class Waiting(msgspec.Struct, frozen=True):
    """``place`` counts from 1 among ``of`` that stand in line; 0 for a job that has a runner on its way, or can have none."""

    place: int
    of: int
    kind: str
    reason: str


class Waits:
    """Of all jobs at one moment."""

    def __init__(self, snapshot: Snapshot, settings: ControlSettings, now: float) -> None:
        world = World(snapshot, settings, Policy("enforce", ()), now)
        self._line = Line(world)
        self._places = {job: place for place, job in enumerate(self._line.order(), 1)}
        self._dealt = self._line.deal()
        self._given = {given.job: given.host for given in self._dealt.given}
        self._runners = {r.life.meant_for: r for r in world.runners.values() if r.life.phase in ON_ITS_WAY}
        self._world = world

    def of(self, record: JobRecord) -> Waiting | None:
        """None where the job doesn't wait for anything of ours."""
        job = record.job
        if not job.wants_runner:
            return self._before_the_line(record)
        place, total = self._places.get(job.id, 0), len(self._places)
        if record.wait == "hosts":
            return Waiting(place, total, "hosts", job.reason)
        if job.id in self._given:
            return Waiting(place, total, "turn", f"its turn has come: host {self._given[job.id]} has room for it")
        kind, reason = reason_of(self._world, self._line, self._dealt, record, self._runners.get(job.id))
        return Waiting(place, total, kind or "runner", reason)

    def _before_the_line(self, record: JobRecord) -> Waiting | None:
        job = record.job
        if job.state == "waiting" and job.served != "ignored":
            return Waiting(0, 0, "approval", job.reason or APPROVAL)
        if job.state == "queued" and job.served in ("no", "refused"):
            return Waiting(0, 0, "policy", job.reason or READING)
        return None


def with_wait(view: dict[str, Any], wait: Waiting | None, created_at: float, now: float) -> dict[str, Any]:
    """A job's view with what it waits for: ``wait``, and the fresh reason in place of the one on record."""
    if wait is None:
        return view | {"wait": None}
    shown = msgspec.to_builtins(wait) | {"for_s": round(max(0.0, now - created_at), 1)}
    return view | {"wait": shown, "reason": wait.reason or view["reason"]}
