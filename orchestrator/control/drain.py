"""Emptying a host: it gets nothing new, idle runners are given back, and jobs may go on until a deadline.

An idle runner is fenced and not ended outright: GitHub may be giving it a job just now, and then it has one.  A job that still
runs at the deadline is told to end as one whose lifetime is over; its machine is ended `NOTICE_S` later, by the host itself
if need be.  Whoever takes the drain back gives jobs that still run their whole time again.
"""

from __future__ import annotations

from orchestrator.control.records import RunnerRecord
from orchestrator.control.world import World
from orchestrator.core.decided import Drain
from orchestrator.core.runner import NOTICE_S, LifetimeCut, Withdrawn

DRAINED = "drained"
BUSY_AGAIN_S = 15.0
"""GitHub said that a job got in first: its word of which one comes soon."""


def drain_hosts(world: World) -> None:
    for record in list(world.runners.values()):
        drain = world.draining.get(record.life.host)
        if drain is not None:
            _drain_runner(world, record, drain)
        elif record.life.cut == DRAINED:
            world.happen(record.id, LifetimeCut(0.0))


def _drain_runner(world: World, record: RunnerRecord, drain: Drain) -> None:
    match record.life.phase:
        case "WANTED":
            world.happen(record.id, Withdrawn(DRAINED))
        case "BOOTING" | "READY" if not record.life.fencing and not _was_busy(record, world.now):
            world.happen(record.id, Withdrawn(DRAINED))
        case "RUNNING":
            world.happen(record.id, LifetimeCut(drain.until + NOTICE_S, DRAINED))


def _was_busy(record: RunnerRecord, now: float) -> bool:
    last = record.story[-1:]
    return bool(last) and (last[0].what, last[0].detail) == ("Fenced", "busy") and now - last[0].at < BUSY_AGAIN_S
