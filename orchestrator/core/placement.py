"""Which host a runner goes to.  No CPU overcommit: what doesn't fit waits, with a reason that a person can read.

Among the hosts with room the fullest is taken (best fit by what stays free), so that a large job finds an empty host;
equal ones are told apart by name, so the same input gives the same answer everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from orchestrator.core.machine import Capacity, MachineClass


class HostView(msgspec.Struct, frozen=True, omit_defaults=True):
    """A host as placement sees it."""

    name: str
    capacity: Capacity
    taken: tuple[MachineClass, ...] = ()
    """Of every runner that is on it or on its way, until proof of destruction."""
    images: frozenset[str] = frozenset()
    alive: bool = True
    cordoned: bool = False
    unfit: dict[str, str] = {}
    """Images that it has and that get no runner, by name, and why; for a person to read."""
    refuses: str = ""
    """Why the host takes nothing at all (no hardware virtualisation, libvirt away), for a person to read."""


class Placed(msgspec.Struct, frozen=True):
    host: str


class Waits(msgspec.Struct, frozen=True):
    reason: str


def free_of(host: HostView) -> Capacity:
    """What ``host`` still has to give; a field is never below 0."""
    return Capacity(
        vcpus=max(0, host.capacity.vcpus - sum(m.vcpus for m in host.taken)),
        memory_mib=max(0, host.capacity.memory_mib - sum(m.memory_mib for m in host.taken)),
        disk_gib=max(0, host.capacity.disk_gib - sum(m.disk_gib for m in host.taken)),
        gpus=max(0, host.capacity.gpus - sum(m.gpus for m in host.taken)),
    )


def place(machine: MachineClass, hosts: Sequence[HostView], *, avoid: Iterable[str] = ()) -> Placed | Waits:
    """The host for a runner of ``machine``, or why it waits.  ``avoid``: hosts on which it failed before.

    An avoided host is taken all the same where no other could ever hold the class.
    """
    if not hosts:
        return Waits("no host has reported yet")
    shunned = frozenset(avoid)
    fits = [host for host in hosts if _why_not(machine, host) is None]
    choice = [host for host in fits if host.name not in shunned]
    if not choice and all(host.name in shunned for host in hosts if _could_ever(machine, host)):
        choice = fits
    if choice:
        return Placed(min(choice, key=lambda host: _room(machine, host)).name)
    return Waits(_explain(machine, hosts, shunned))


def _room(machine: MachineClass, host: HostView) -> tuple[int, int, str]:
    free = free_of(host)
    return free.vcpus - machine.vcpus, free.memory_mib - machine.memory_mib, host.name


def _could_ever(machine: MachineClass, host: HostView) -> bool:
    return _lack(machine, host.capacity) is None


def _why_not(machine: MachineClass, host: HostView) -> str | None:
    if not host.alive:
        return "is away"
    if host.refuses:
        return host.refuses
    if host.cordoned:
        return "is cordoned"
    return _without_image(machine, host) or _without_room(machine, host)


def _without_image(machine: MachineClass, host: HostView) -> str | None:
    if machine.image not in host.images:
        return f"has no image {machine.image!r}"
    if machine.image in host.unfit:
        return f"has image {machine.image!r}, which {host.unfit[machine.image]}"
    return None


def _without_room(machine: MachineClass, host: HostView) -> str | None:
    never = _lack(machine, host.capacity)
    if never is not None:
        return f"is too small: {never}"
    now = _lack(machine, free_of(host))
    return None if now is None else f"is full: {now}"


def _lack(machine: MachineClass, room: Capacity) -> str | None:
    for what, needed, has in (
        ("vCPUs", machine.vcpus, room.vcpus),
        ("MiB of memory", machine.memory_mib, room.memory_mib),
        ("GiB of disk", machine.disk_gib, room.disk_gib),
        ("GPUs", machine.gpus, room.gpus),
    ):
        if needed > has:
            return f"needs {needed} {what}, has {has}"
    return None


def _explain(machine: MachineClass, hosts: Sequence[HostView], shunned: frozenset[str]) -> str:
    parts = [
        f"host {host.name} {_why_not(machine, host) or 'failed this job before'}"
        for host in sorted(hosts, key=lambda host: (host.name in shunned, host.name))
    ]
    more = f"; and {len(parts) - 4} more" if len(parts) > 4 else ""
    return f"no host has room for class {machine.name!r}: " + "; ".join(parts[:4]) + more
