"""An outage of GitHub, as runners see it: nothing is concluded from what can't be heard, and time stands still.

While it lasts, the deadlines of runners that wait for GitHub don't count; where a host watches one by itself, it is moved
ahead of the clock.  Once it is over they are later by as long as it lasted.  That an outage goes on is written down, so a
worker that is killed in the middle of one leaves it to the next.
"""

from __future__ import annotations

from orchestrator.control.world import World
from orchestrator.core.runner import OutagePassed, Phase

HELD: frozenset[Phase] = frozenset({"WANTED", "BOOTING", "READY"})
"""Phases that end when GitHub or the runner's talk with it brings news."""
AHEAD_S = 600.0
LOW_S = 120.0


def hold(world: World) -> None:
    """Keep hosts from ending machines that only wait for GitHub."""
    for record in list(world.runners.values()):
        if record.life.phase == "BOOTING" and 0 < record.boot_by < world.now + LOW_S:
            world.change_runner(record.id, boot_by=world.now + AHEAD_S)


def is_over(world: World, since: float) -> None:
    """The outage that began at ``since`` is over."""
    seconds = max(0.0, world.now - since)
    for record in list(world.runners.values()):
        if record.life.phase not in HELD:
            continue
        world.happen(record.id, OutagePassed(seconds))
        after = world.runners[record.id]
        if after.boot_by:
            deadline = after.life.deadline if after.life.phase == "BOOTING" else after.boot_by
            world.change_runner(record.id, boot_by=deadline, end_by=after.end_by + seconds)
