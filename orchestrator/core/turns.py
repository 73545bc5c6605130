"""Dealing out what the hosts have to the jobs that wait: whose turn it is, whether a quota allows it, and where there is room.

A job that has its turn, is within its quotas, and finds no room although it has waited for long has a host kept for it, so
that small jobs which fit into every gap can't keep a large one out for ever.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Literal

import msgspec

from orchestrator.core.fair_share import FairQueue, Lane
from orchestrator.core.machine import MachineClass
from orchestrator.core.placement import Placed, Rooms
from orchestrator.core.sharing import Quotas

WaitKind = Literal["turn", "quota", "room", "hosts"]
COMING = "a runner of its kind is on its way to the jobs that were there before it"


class Wait(msgspec.Struct, frozen=True):
    kind: WaitKind
    reason: str


class Given(msgspec.Struct, frozen=True):
    job: int
    machine: MachineClass
    host: str


class Dealt(msgspec.Struct, frozen=True):
    given: tuple[Given, ...]
    waits: dict[Hashable, Wait]
    """By lane, for those that still have jobs."""


def deal(
    queue: FairQueue,
    short: dict[Hashable, int],
    quotas: Quotas,
    rooms: Rooms,
    *,
    long_since: float,
    warm: Mapping[str, list[str]] | None = None,
) -> Dealt:
    """Machines for as many jobs as can have one.

    ``short``: how many runners each group of lanes lacks.  For a job that waits since before ``long_since`` a host is kept.
    ``warm``: class to the hosts on which a machine of it waits, a host as often as it has one; taken out as they are given.
    """
    given: list[Given] = []
    waits: dict[Hashable, Wait] = {}
    full: dict[tuple[MachineClass, frozenset[str]], str] = {}
    while len(full) < len(queue.shapes) and (lane := queue.next()) is not None:
        wait = _why_not(lane, short, quotas)
        if wait is None:
            near = warm.get(lane.machine.name, []) if warm else []
            found = full.get(lane.shape) or rooms.place(lane.machine, avoid=lane.avoid, near=near)
            if isinstance(found, Placed):
                given.append(Given(queue.give(lane), lane.machine, found.host))
                quotas.take(lane.repo, lane.machine)
                short[lane.group] -= 1
                if found.host in near:
                    near.remove(found.host)
                continue
            reason = full[lane.shape] = found if isinstance(found, str) else found.reason
            wait = Wait("room", reason + (_kept(lane, rooms) if lane.jobs[0][0] <= long_since else ""))
        waits[lane.key] = wait
        queue.leave_out(lane)
    for lane in queue.rest():
        waits[lane.key] = _why_not(lane, short, quotas) or Wait("room", full[lane.shape])
    return Dealt(tuple(given), waits)


def used_by(runners: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The sum of costs by repository (in lower case), of runners given as repository and cost."""
    used: dict[str, float] = {}
    for repo, cost in runners:
        used[repo.lower()] = used.get(repo.lower(), 0.0) + cost
    return used


def _why_not(lane: Lane, short: dict[Hashable, int], quotas: Quotas) -> Wait | None:
    if short.get(lane.group, 0) <= 0:
        return Wait("turn", COMING)
    broken = quotas.why_not(lane.repo, lane.machine)
    return Wait("quota", broken) if broken else None


def _kept(lane: Lane, rooms: Rooms) -> str:
    _, job = lane.jobs[0]
    host = rooms.keep(lane.machine, f"job {job}, which waits for {lane.machine.vcpus} vCPUs", avoid=lane.avoid)
    return f"; host {host} is kept for it" if host else ""
