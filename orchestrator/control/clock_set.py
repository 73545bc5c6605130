"""The clock of the worker's machine is set while jobs run: nothing ends by that, and nothing lives longer.

All deadlines are times of day, and so is since when something is so.  A worker notes how its clock stands to the one since
its machine's boot, which nobody can set.  Where that changes by more than a time service's steering, the clock was set, and
what was reckoned by it moves along, in the same write as the note, so that it moves once.  Nobody can tell after a reboot,
or where the worker went on on another machine; and a drain's end is a time of day that a person named, and stays.
"""

from __future__ import annotations

import time

import msgspec
import structlog

from orchestrator.control.world import World
from orchestrator.core.clocks import Reckoned, is_news, was_set
from orchestrator.core.runner import ClockSet
from orchestrator.system.boot import boot_id, uptime

log = structlog.get_logger()


def reckoned() -> Reckoned:
    """How this machine's clock stands now."""
    return Reckoned(boot_id(), time.time() - uptime())


def follow_clock(world: World, seen: Reckoned) -> float:
    """Move along what was reckoned by a clock that was set since; by how many seconds, 0 where it wasn't."""
    seconds = was_set(world.clock, seen)
    if is_news(world.clock, seen):
        world.clock = seen
    if seconds:
        log.warning("clock_set", seconds=round(seconds))
        _move(world, seconds)
    return seconds


def _move(world: World, seconds: float) -> None:
    for runner in list(world.runners.values()):
        world.happen(runner.id, ClockSet(seconds))
        moved = world.runners[runner.id]
        times = ("boot_by", "end_by", "checked_at", "looked_for_at", "unreachable_since", "missing_since")
        world.change_runner(runner.id, **{at: value + seconds for at in times if (value := getattr(moved, at))})
    for job in list(world.jobs.values()):
        if job.quiet_at:
            world.put_job(msgspec.structs.replace(job, quiet_at=job.quiet_at + seconds))
