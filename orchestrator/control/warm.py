"""Machines that wait on hosts, and their ids as the ids of new runners.

Everything that belongs to a runner is named by one ULID, and a machine that waits has names already.  So nothing is
renamed: where a runner is wanted and a machine of its class waits on a host with room for it, the runner is *that*
machine's id, and placement puts it there.  Should the host have lost the machine in the meantime, it starts a clone by
that name, as for any other id.

A host isn't believed more than it must be.  An id that it offers has to be a ULID made lately, offered by no other host,
and no runner's, live or gone: one host can't have another's runner mistaken for its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import msgspec
from ulid import ULID

from orchestrator.control.world import World
from orchestrator.core.machine import MachineClass
from orchestrator.core.names import names_of

MADE_WITHIN_S = 24 * 3600.0
AHEAD_S = 300.0
"""How far a host's clock may be ahead of ours."""


class Waiting(msgspec.Struct, frozen=True):
    """A machine that waits; ``since`` by its host's clock."""

    id: str
    host: str
    machine_class: str
    since: float


def waiting(world: World) -> list[Waiting]:
    """What hosts offer and may be believed, longest waiting first.  Whether an id was a runner's that is gone is asked elsewhere."""
    offered = [
        Waiting(seen.id, host, seen.machine_class, seen.since)
        for host, sighting in world.sightings.items()
        for seen in sighting.observed.warm
    ]
    times = Counter(machine.id for machine in offered)
    known = world.runners.keys() | {runner for job in world.jobs.values() for runner in job.runners}
    fit = [m for m in offered if times[m.id] == 1 and m.id not in known and _is_fresh(m.id, world.now)]
    return sorted(fit, key=lambda machine: (machine.since, machine.id))


class Ids:
    """Where the ids of a pass's new runners come from.  That of each machine that waits is given once."""

    def __init__(self, machines: Iterable[Waiting], make_id: Callable[[], str]) -> None:
        self._machines = list(machines)
        self._make_id = make_id

    def hosts(self) -> dict[str, list[str]]:
        """Class to the hosts on which machines of it wait, longest waiting first, a host as often as it has one."""
        found: dict[str, list[str]] = {}
        for machine in self._machines:
            found.setdefault(machine.machine_class, []).append(machine.host)
        return found

    def next(self, machine: MachineClass, host: str) -> str:
        """The id for a runner of ``machine`` on ``host``: of one that waits there, else a new one."""
        for offer in self._machines:
            if (offer.machine_class, offer.host) == (machine.name, host):
                self._machines.remove(offer)
                return offer.id
        return self._make_id()


def _is_fresh(ulid: str, now: float) -> bool:
    try:
        names_of(ulid)
        made = ULID.from_str(ulid).timestamp
    except ValueError:
        return False
    return now - MADE_WITHIN_S <= made <= now + AHEAD_S
