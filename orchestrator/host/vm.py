"""A VM that is paused: booted from an image, or woken from a template.  Neither has a link that is up, nor runs yet.

Both have the same devices at the same places; a clone's disk is an overlay on its template's, its memory is its template's
until it writes to it, and its devices' state is loaded.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from orchestrator.core.errors import HostError
from orchestrator.core.machine import MachineClass
from orchestrator.core.names import names_of
from orchestrator.host import template_files
from orchestrator.host.disk import INITRD, KERNEL, copy_boot, delete, make_disk, make_overlay
from orchestrator.host.domain_xml import DomainSpec, Memory
from orchestrator.host.end import take_down
from orchestrator.host.images import LocalImage
from orchestrator.host.parts import VM_USERS, Parts
from orchestrator.host.paths import VmPaths
from orchestrator.host.slots import Slot
from orchestrator.host.templates import Lease

_CHANNEL_PATIENCE_S = 5.0

GoOn = Callable[[], None]
"""Raises `Cancelled` where the VM isn't wished any more."""


class Plan(msgspec.Struct, frozen=True):
    """What a VM is made of.  ``seed``: its drive has the seed in it from the beginning."""

    ulid: str
    machine: MachineClass
    image: LocalImage
    files: VmPaths
    slot: Slot
    seed: bool = True


def make_boot_files(plan: Plan) -> None:
    image = plan.image
    make_disk(image, plan.files.disk, size_gib=plan.machine.disk_gib)
    copy_boot(image.kernel, image.initrd, plan.files.boot)


def boot_paused(parts: Parts, plan: Plan) -> None:
    """Make a VM that will boot.  Its files must be there: `make_boot_files`.  Raises HostError."""
    parts.hypervisor.start_paused(_spec(parts, plan, plan.image.disk))


def make_clone_files(plan: Plan, lease: Lease) -> None:
    template = lease.template
    make_overlay(template.file(template_files.DISK), plan.files.disk, size_gib=template.manifest.disk_gib)
    copy_boot(template.file(template_files.KERNEL), template.file(template_files.INITRD), plan.files.boot)


def clone_paused(parts: Parts, plan: Plan, lease: Lease, go_on: GoOn = lambda: None) -> None:
    """Wake a VM from ``lease``, with its channel open: it stands in front of the gate and needs only to be resumed.

    Its files must be there: `make_clone_files`.  Raises HostError or OSError; what is left then, `unmake` removes.
    """
    template = lease.template
    disk, base = template.file(template_files.DISK), template.file(template_files.BASE)
    with lease.memory.opened(VM_USERS + plan.slot.index, parts.qemu_group or 0) as memory:
        parts.hypervisor.start_paused(_spec(parts, plan, disk, below=base, memory=memory))
    connect(parts, plan.ulid, plan.files.channel, go_on)
    with template.file(template_files.STATE).open("rb", buffering=0) as state:
        parts.hypervisor.load_state(names_of(plan.ulid).domain, state.fileno())


def unmake(parts: Parts, ulid: str, files: VmPaths) -> None:
    """Remove what a clone that failed has left, so that the machine can be booted under the same names.  Raises HostError."""
    parts.talk.close(ulid)
    take_down(parts, names_of(ulid).domain)
    for path in (files.disk, files.boot, files.channel):
        delete(path)


def connect(parts: Parts, ulid: str, channel: Path, go_on: GoOn = lambda: None) -> None:
    """Open the guest's channel before the guest runs: what it says to a closed port is lost."""
    deadline = time.monotonic() + _CHANNEL_PATIENCE_S
    while not parts.talk.ensure(ulid, channel):
        if time.monotonic() > deadline:
            raise HostError(
                f"the guest's channel {channel} can't be opened",
                code="channel-failed",
                remedy="See /var/log/libvirt/qemu/ for what QEMU says about it.",
            )
        go_on()
        time.sleep(0.02)


def _spec(
    parts: Parts, plan: Plan, backing: Path, *, below: Path | None = None, memory: Memory | None = None
) -> DomainSpec:
    names, files, machine = names_of(plan.ulid), plan.files, plan.machine
    return DomainSpec(
        ulid=plan.ulid,
        site=parts.settings.netns,
        name=names.domain,
        domain_type=parts.domain_type,
        vcpus=machine.vcpus,
        memory_mib=machine.memory_mib,
        kernel=str(files.boot / KERNEL),
        initrd=str(files.boot / INITRD),
        cmdline=plan.image.manifest.cmdline,
        disk=str(files.disk),
        backing=str(backing),
        below=str(below) if below is not None else "",
        seed=str(files.seed) if plan.seed else "",
        tap=names.tap,
        channel=str(files.channel),
        console=str(files.console),
        memory=memory,
        keeps_blocks=parts.settings.disk_erase == "zero",
        owner="" if parts.qemu_group is None else f"+{VM_USERS + plan.slot.index}:+{parts.qemu_group}",
    )
