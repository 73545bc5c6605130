"""Making a template: a machine of the class boots as far as the gate, comes to rest there, and is put away.

It has no registration, no policy, no seed and no network: its link is in the VMs' namespace, down, and in no map of the
packet filter, and stays so.  Nothing of the host's or a user's is in it that a clone could find.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog
from ulid import ULID

from orchestrator.core.errors import HostError
from orchestrator.core.machine import MachineClass
from orchestrator.core.names import Names, names_of
from orchestrator.host import console, guest
from orchestrator.host import template_files as files
from orchestrator.host.disk import delete, make_overlay
from orchestrator.host.domain_xml import DomainSpec, Memory
from orchestrator.host.images import LocalImage
from orchestrator.host.parts import VM_USERS, Cancelled, Parts
from orchestrator.host.paths import VmPaths, vm_paths
from orchestrator.host.template_files import Manifest, Template
from orchestrator.host.template_key import Basis

log = structlog.get_logger()

TEMPLATE_USER = VM_USERS - 1
"""QEMU of a machine that becomes a template runs as this user; one is made at a time."""
WITHIN_S = 600.0
_CHANNEL_S = 10.0


class Build:
    """One building of one template; `cancel` may be called from any thread."""

    def __init__(self, parts: Parts, machine: MachineClass, image: LocalImage, basis: Basis) -> None:
        self.machine = machine
        self.key = basis.key
        self._parts = parts
        self._image = image
        self._basis = basis
        self._cancelled = threading.Event()
        self._heard: queue.SimpleQueue[guest.Message] = queue.SimpleQueue()
        self._ulid = str(ULID())

    def cancel(self) -> None:
        self._cancelled.set()

    def run(self) -> Template:
        """Raises HostError, OSError, or `Cancelled`; nothing half made is left then."""
        parts, names = self._parts, names_of(self._ulid)
        place = files.workplace(parts.paths.templates, self._ulid.lower())
        parts.reserved[self._ulid] = self._heard.put
        began = parts.clock()
        try:
            self._boot(names, place)
            template = self._publish(place)
            log.info("template_made", key=self.key[:12], took=round(parts.clock() - began, 1))
            return template
        finally:
            self._clear(names)
            files.delete_built(place)
            parts.reserved.pop(self._ulid, None)

    def _boot(self, names: Names, place: Path) -> None:
        """From nothing to a machine that is saved and gone."""
        parts, image, its = self._parts, self._image, vm_paths(self._parts.paths, names)
        files.link_or_copy(image.disk, place / files.BASE)
        make_overlay(Path(files.BASE), place / files.DISK, size_gib=self.machine.disk_gib, least=image.virtual_size)
        for source, target in ((image.kernel, files.KERNEL), (image.initrd, files.INITRD)):
            files.copy(source, place / target, mode=0o444)
        self._make_memory(place / files.RAM)
        parts.wires.make(names.tap)
        parts.hypervisor.start_paused(self._spec(names, its, place))
        parts.wires.move(names.tap)
        self._connect(its)
        parts.hypervisor.resume(names.domain)
        deadline = time.monotonic() + WITHIN_S
        self._await(guest.Hello, deadline, its)
        parts.talk.send(self._ulid, guest.Settle())
        self._await(guest.Settled, deadline, its)
        state = os.open(place / files.STATE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            parts.hypervisor.save_state(names.domain, state)
        finally:
            os.close(state)
        parts.talk.close(self._ulid)
        parts.hypervisor.kill(names.domain)
        parts.hypervisor.destroy(names.domain)

    def _make_memory(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, self.machine.memory_mib << 20)
            if self._parts.qemu_group is not None:
                os.fchown(descriptor, TEMPLATE_USER, self._parts.qemu_group)
        finally:
            os.close(descriptor)

    def _connect(self, its: VmPaths) -> None:
        deadline = time.monotonic() + _CHANNEL_S
        while not self._parts.talk.ensure(self._ulid, its.channel):
            if time.monotonic() > deadline:
                raise _failed("its channel can't be opened")
            if self._cancelled.wait(0.02):
                raise Cancelled

    def _await(self, kind: type[guest.Message], deadline: float, its: VmPaths) -> None:
        while time.monotonic() < deadline:
            if self._cancelled.is_set():
                raise Cancelled
            try:
                if isinstance(self._heard.get(timeout=0.1), kind):
                    return
            except queue.Empty:
                continue
        raise _failed(f"it didn't come as far as {kind.__name__.lower()!r}: {console.tail(its.console, ())[-300:]}")

    def _publish(self, place: Path) -> Template:
        for name in (files.RAM, files.STATE, files.DISK):
            os.chown(place / name, 0, 0)
            (place / name).chmod(0o444 if name == files.DISK else 0o400)
        manifest = Manifest(
            format=self._basis.format,
            key=self.key,
            image=self._image.manifest.digest,
            created=self._parts.clock(),
            vcpus=self.machine.vcpus,
            memory_mib=self.machine.memory_mib,
            disk_gib=self.machine.disk_gib,
            files={name: files.digest_of(place / name) for name in files.HASHED},
            basis=self._basis,
        )
        template = files.publish(place, manifest, self._parts.paths.templates)
        files.note_use(template.folder, self._parts.clock())
        return template

    def _clear(self, names: Names) -> None:
        """All but the files that make a template; what can't be cleared the sweep finds by its name."""
        parts, its = self._parts, vm_paths(self._parts.paths, names)
        parts.talk.close(self._ulid)
        steps: list[Callable[[], object]] = [
            partial(parts.hypervisor.destroy, names.domain),
            partial(parts.wires.delete, names.tap),
            *(partial(delete, path) for path in (its.channel, *console.parts(its.console))),
        ]
        for step in steps:
            try:
                step()
            except (HostError, OSError) as error:
                log.warning("template_not_cleared", vm=names.domain, error=str(error))

    def _spec(self, names: Names, its: VmPaths, place: Path) -> DomainSpec:
        group = self._parts.qemu_group
        return DomainSpec(
            ulid=self._ulid,
            site=self._parts.settings.netns,
            name=names.domain,
            domain_type=self._parts.domain_type,
            vcpus=self.machine.vcpus,
            memory_mib=self.machine.memory_mib,
            kernel=str(place / files.KERNEL),
            initrd=str(place / files.INITRD),
            cmdline=self._image.manifest.cmdline,
            disk=str(place / files.DISK),
            backing=str(place / files.BASE),
            seed="",
            tap=names.tap,
            channel=str(its.channel),
            console=str(its.console),
            memory=Memory(str(place / files.RAM), "template"),
            owner="" if group is None else f"+{TEMPLATE_USER}:+{group}",
        )


def _failed(why: str) -> HostError:
    return HostError(
        f"the machine that was to become a template failed: {why}",
        code="template-failed",
        remedy="See the agent's log; it is tried again by itself, and jobs boot cold until then.",
    )
