"""Which machines wait on this host, and which should: `plan`, pure, from what is wished and what there is.

A machine that waits is a clone in front of its gate.  It has no registration, no policy and no network, and it is worth
less than any job.  The rules, first match wins for each machine:

1. It ends where nothing asks for it any more: its class is gone, has another size or image, or wants none waiting; its
   template was replaced; it is older than ``age_s`` (its clock has drifted, its image may have been rebuilt).
2. Under memory pressure those that wait end, one after the other, each once the one before it is dead, until there is none.
3. Where a job's machine and those that wait don't fit together, as many end as the job needs, oldest first, at once.
4. More than its class wants: the oldest end.
5. Too few: one is made, and only where no job's machine is being started, none other is being made, memory is not even
   near pressure, and there is room beside all jobs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from orchestrator.core.machine import Capacity, MachineClass

AGE_S = 3600.0

WaiterState = Literal["making", "waiting", "ending"]


class Waiter(msgspec.Struct, frozen=True):
    """``since`` in seconds since the epoch, of its state's beginning.  ``ending`` holds its room until it is seen dead."""

    id: str
    machine: MachineClass
    template: str
    state: WaiterState
    since: float


class Memory(msgspec.Struct, frozen=True):
    """``tight``: those that wait must go.  ``roomy``: another one may come.  Between the two nothing happens."""

    tight: bool = False
    roomy: bool = True


class Scene(msgspec.Struct, frozen=True):
    classes: tuple[MachineClass, ...]
    """As the control plane wants them, ``warm`` of each."""
    templates: Mapping[str, str]
    """Class name to the key of the template that its clones start from; a class that has none isn't in it."""
    waiters: tuple[Waiter, ...]
    taken: tuple[MachineClass, ...]
    """Of runners, also of one that is about to be started."""
    capacity: Capacity
    starting: bool = False
    """A job's machine is on its way up, or waits for room."""
    memory: Memory = Memory()


class Plan(msgspec.Struct, frozen=True):
    """``make``: a machine of this class, from the template with this key.  ``end``: ids, each with the reason."""

    make: tuple[MachineClass, str] | None = None
    end: tuple[tuple[str, str], ...] = ()


def plan(scene: Scene, now: float, age_s: float = AGE_S) -> Plan:
    """What to do now.  Total; an empty plan where all is as it should be."""
    ends = dict(_unwanted(scene, now, age_s))
    left = [waiter for waiter in scene.waiters if waiter.state == "waiting" and waiter.id not in ends]
    left.sort(key=lambda waiter: (waiter.since, waiter.id))
    dying = any(waiter.state == "ending" for waiter in scene.waiters)  # its memory may be all that was short
    if scene.memory.tight and left and not ends and not dying:
        ends[left[0].id] = "memory is short"
    for waiter in make_room(scene.taken, [w for w in scene.waiters if w.id not in ends], scene.capacity):
        ends[waiter] = "a job needs its room"
    ends |= dict(_surplus(scene, [waiter for waiter in left if waiter.id not in ends]))
    return Plan(make=None if ends else _make(scene), end=tuple(ends.items()))


def make_room(taken: Sequence[MachineClass], waiters: Iterable[Waiter], capacity: Capacity) -> list[str]:
    """The ids of those of ``waiters`` that must go for ``taken`` to fit beside the rest, oldest first."""
    kept = sorted(waiters, key=lambda waiter: (waiter.state != "ending", waiter.since, waiter.id))
    gone: list[str] = []
    while kept and not fits([*taken, *(waiter.machine for waiter in kept)], capacity):
        waiter = kept.pop(0)
        if waiter.state == "waiting":
            gone.append(waiter.id)
    return gone


def fits(machines: Sequence[MachineClass], capacity: Capacity) -> bool:
    return (
        sum(machine.vcpus for machine in machines) <= capacity.vcpus
        and sum(machine.memory_mib for machine in machines) <= capacity.memory_mib
        and sum(machine.disk_gib for machine in machines) <= capacity.disk_gib
    )


def same_machine(one: MachineClass, other: MachineClass) -> bool:
    """Whether a machine made as ``one`` serves ``other``; how many wait and how long a job may last is all the same."""
    return _essence(one) == _essence(other)


def _essence(machine: MachineClass) -> MachineClass:
    return msgspec.structs.replace(machine, warm=0, lifetime_s=0)


def _unwanted(scene: Scene, now: float, age_s: float) -> Iterable[tuple[str, str]]:
    classes = {machine.name: machine for machine in scene.classes}
    for waiter in scene.waiters:
        if waiter.state != "waiting":
            continue
        name = waiter.machine.name
        wanted = classes.get(name)
        if wanted is None or not wanted.warm or wanted.start != "clone" or not same_machine(wanted, waiter.machine):
            yield waiter.id, "its class wants none waiting"
        elif scene.templates.get(name) != waiter.template:
            yield waiter.id, "its template was replaced"
        elif now - waiter.since >= age_s:
            yield waiter.id, "it is old"


def _surplus(scene: Scene, left: Sequence[Waiter]) -> Iterable[tuple[str, str]]:
    for machine in scene.classes:
        mine = [waiter for waiter in left if waiter.machine.name == machine.name]
        for waiter in mine[: max(0, len(mine) - machine.warm)]:
            yield waiter.id, "more wait than its class wants"


def _make(scene: Scene) -> tuple[MachineClass, str] | None:
    if scene.starting or not scene.memory.roomy or any(waiter.state == "making" for waiter in scene.waiters):
        return None
    held = [*scene.taken, *(waiter.machine for waiter in scene.waiters)]
    for machine in sorted(scene.classes, key=lambda machine: (_waiting(scene, machine), machine.name)):
        template = scene.templates.get(machine.name)
        short = _waiting(scene, machine) < machine.warm
        if short and machine.start == "clone" and template is not None and fits([*held, machine], scene.capacity):
            return machine, template
    return None


def _waiting(scene: Scene, machine: MachineClass) -> int:
    return sum(waiter.machine.name == machine.name and waiter.state != "ending" for waiter in scene.waiters)
