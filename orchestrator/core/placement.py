"""Which host a runner goes to.  No CPU overcommit: what doesn't fit waits, with a reason that a person can read.

Among the hosts with room the fullest is taken (best fit by what stays free), so that a large job finds an empty host;
equal ones are told apart by name, so the same input gives the same answer everywhere.

`Rooms` deals out what several hosts have, one machine after another, and can keep a host for a machine that is too large
for what is free now: the host gets nothing else until it has drained far enough (docs/adr/0015).
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
    why: str = ""
    """What to say of a cordoned host, where there is more to say than that it is cordoned (`is being drained`)."""
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


class Rooms:
    """What the hosts have left, in one look at them all.  What is placed counts at once."""

    def __init__(self, hosts: Iterable[HostView]) -> None:
        self._hosts = {host.name: host for host in sorted(hosts, key=lambda host: host.name)}
        self._free = {name: free_of(host) for name, host in self._hosts.items()}
        self._kept: dict[str, str] = {}
        """Host to whom it is kept for."""

    @property
    def total(self) -> Capacity:
        """What the hosts that take machines have in all."""
        able = [host.capacity for host in self._hosts.values() if host.alive and not host.cordoned and not host.refuses]
        able = able or [host.capacity for host in self._hosts.values()]
        return Capacity(
            vcpus=sum(room.vcpus for room in able),
            memory_mib=sum(room.memory_mib for room in able),
            disk_gib=sum(room.disk_gib for room in able),
            gpus=sum(room.gpus for room in able),
        )

    def place(self, machine: MachineClass, *, avoid: Iterable[str] = (), near: Iterable[str] = ()) -> Placed | Waits:
        """The host for a runner of ``machine``, or why it waits.

        ``avoid``: hosts on which it failed before; one of them is taken all the same where no other will have room,
        because it is too small, or away, cordoned or in trouble, which can last.  ``near``: hosts that are to be taken first where they have room, the best one first.
        """
        if not self._hosts:
            return Waits("no host has reported yet")
        shunned = frozenset(avoid)
        fits = [host for host in self._hosts.values() if self._why_not(machine, host) is None]
        choice = [host for host in fits if host.name not in shunned]
        others = [host for host in self._hosts.values() if host.name not in shunned]
        if not choice and not any(_could_ever(machine, host) and _closed(machine, host) is None for host in others):
            choice = fits
        if not choice:
            return Waits(self._explain(machine, shunned))
        names = {host.name for host in choice}
        host = next((name for name in near if name in names), "")
        host = host or min(choice, key=lambda host: self._left(machine, host)).name
        self._free[host] = _less(self._free[host], machine)
        return Placed(host)

    def keep(self, machine: MachineClass, whom: str, *, avoid: Iterable[str] = ()) -> str:
        """Keep the host that lacks least for ``machine``, for ``whom`` (for people to read); empty where none can be.

        At most one host in four is kept, and always one may be.
        """
        if len(self._kept) >= max(1, len(self._hosts) // 4):
            return ""
        shunned = frozenset(avoid)
        able = [
            host
            for host in self._hosts.values()
            if host.name not in shunned
            and host.name not in self._kept
            and _closed(machine, host) is None
            and _could_ever(machine, host)
        ]
        if not able:
            return ""
        host = max(able, key=lambda host: (*self._left(machine, host)[:2], host.name)).name
        self._kept[host] = whom
        return host

    def _left(self, machine: MachineClass, host: HostView) -> tuple[int, int, str]:
        free = self._free[host.name]
        return free.vcpus - machine.vcpus, free.memory_mib - machine.memory_mib, host.name

    def _why_not(self, machine: MachineClass, host: HostView) -> str | None:
        closed = _closed(machine, host)
        if closed is not None:
            return closed
        never = _lack(machine, host.capacity)
        if never is not None:
            return f"is too small: {never}"
        if host.name in self._kept:
            return f"is kept for {self._kept[host.name]}"
        now = _lack(machine, self._free[host.name])
        return None if now is None else f"is full: {now}"

    def _explain(self, machine: MachineClass, shunned: frozenset[str]) -> str:
        hosts = sorted(self._hosts.values(), key=lambda host: (host.name in shunned, host.name))
        parts = [f"host {host.name} {self._why_not(machine, host) or 'failed this job before'}" for host in hosts[:4]]
        more = f"; and {len(hosts) - 4} more" if len(hosts) > 4 else ""
        return f"no host has room for class {machine.name!r}: " + "; ".join(parts) + more


def place(machine: MachineClass, hosts: Sequence[HostView], *, avoid: Iterable[str] = ()) -> Placed | Waits:
    """`Rooms.place` for one machine."""
    return Rooms(hosts).place(machine, avoid=avoid)


def _less(room: Capacity, machine: MachineClass) -> Capacity:
    return Capacity(
        vcpus=room.vcpus - machine.vcpus,
        memory_mib=room.memory_mib - machine.memory_mib,
        disk_gib=room.disk_gib - machine.disk_gib,
        gpus=room.gpus - machine.gpus,
    )


def _could_ever(machine: MachineClass, host: HostView) -> bool:
    return _lack(machine, host.capacity) is None


def _closed(machine: MachineClass, host: HostView) -> str | None:
    """Why the host takes no such machine, however much room it has."""
    if not host.alive:
        return "is away"
    if host.refuses:
        return host.refuses
    if host.cordoned:
        return host.why or "is cordoned"
    if machine.image not in host.images:
        return f"has no image {machine.image!r}"
    if machine.image in host.unfit:
        return f"has image {machine.image!r}, which {host.unfit[machine.image]}"
    return None


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
