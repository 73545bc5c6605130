"""Clones on one host, with nothing around them: no control plane, no job, no wall.  What libvirt and QEMU take, and no more.

The parts are the agent's own (`orchestrator.host.vm`): the same files, the same XML, the same device state.
"""

from __future__ import annotations

import queue
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgspec
from ulid import ULID

from bench.start_jobs import TEMPLATE_WITHIN_S
from orchestrator.core.machine import MachineClass
from orchestrator.core.names import names_of
from orchestrator.core.settings import HostSettings
from orchestrator.host import guest
from orchestrator.host.accelerator import choose
from orchestrator.host.channels import Channels
from orchestrator.host.disk import delete
from orchestrator.host.fakes import FakeGateway, FakeWall
from orchestrator.host.hypervisor import Libvirt
from orchestrator.host.images import LocalImage, find_image
from orchestrator.host.links import Links, make_namespace
from orchestrator.host.parts import Parts
from orchestrator.host.paths import host_paths, make_folders, vm_paths
from orchestrator.host.record import Records
from orchestrator.host.slots import Slot, Slots
from orchestrator.host.templates import Templates
from orchestrator.host.vm import Plan, boot_paused, clone_paused, connect, make_boot_files, make_clone_files
from orchestrator.surface.demo.lab import LIBVIRT
from orchestrator.system import netns

ROOT = Path("/var/lib/ironcd")
GUEST_WITHIN_S = 240.0


class Vm(msgspec.Struct):
    """``took``: seconds of each step, in order, of a clone's way to running vCPUs."""

    ulid: str
    slot: Slot
    took: dict[str, float] = {}
    said: queue.SimpleQueue[guest.Message] = msgspec.field(default_factory=queue.SimpleQueue)

    @property
    def domain(self) -> str:
        return names_of(self.ulid).domain


class Host:
    """Makes VMs of one class, from an image or its template; `end` in the background, since it waits for PID 1."""

    def __init__(self, parts: Parts, machine: MachineClass, image: LocalImage) -> None:
        self.parts = parts
        self.machine = machine
        self.image = image
        self._ends = ThreadPoolExecutor(4, thread_name_prefix="bench-end")

    def clone(self) -> Vm:
        """A clone whose vCPUs run; it stands in front of its gate."""
        parts, vm, at = self.parts, self.new(), [time.perf_counter()]

        def passed(step: str) -> None:
            vm.took[step] = time.perf_counter() - at[0]
            at[0] = time.perf_counter()

        plan, lease = self.plan(vm), parts.templates.lease(self.machine, self.image)
        make_clone_files(plan, lease)
        passed("disk")
        parts.wires.make(names_of(vm.ulid).tap)
        passed("link")
        clone_paused(parts, plan, lease)
        passed("libvirt and state")
        parts.hypervisor.resume(vm.domain)
        passed("resume")
        return vm

    def boot(self) -> Vm:
        """A machine that boots from the image, up to its gate."""
        parts, vm = self.parts, self.new()
        make_boot_files(self.plan(vm))
        parts.wires.make(names_of(vm.ulid).tap)
        boot_paused(parts, self.plan(vm))
        connect(parts, vm.ulid, self.plan(vm).files.channel)
        parts.hypervisor.resume(vm.domain)
        self.wait(vm, guest.Hello)
        return vm

    def open_gate(self, vm: Vm) -> float:
        """Seconds until the guest says that it has passed its gate."""
        began = time.perf_counter()
        self.parts.talk.send(vm.ulid, guest.opening())
        self.wait(vm, guest.Opened)
        return time.perf_counter() - began

    def wait(self, vm: Vm, kind: type[guest.Message]) -> None:
        deadline = time.monotonic() + GUEST_WITHIN_S
        while time.monotonic() < deadline:
            try:
                said = vm.said.get(timeout=0.5)
            except queue.Empty:
                continue
            if isinstance(said, guest.WhatTime):
                self.parts.talk.send(vm.ulid, guest.Time(time.time_ns()))
            if isinstance(said, kind):
                return
        raise RuntimeError(f"{vm.domain} never said {kind.__name__}")

    def end(self, vm: Vm) -> None:
        """Its process is dead when this returns; the rest is tidied up behind."""
        self.parts.talk.close(vm.ulid)
        self.parts.hypervisor.kill(vm.domain)
        self.tidy(vm)

    def tidy(self, vm: Vm) -> None:
        """Remove what is left of it, in the background."""
        self._ends.submit(self._tidy, vm)

    def settle(self) -> None:
        """Wait until everything that has ended is tidied up."""
        self._ends.shutdown(wait=True)
        self._ends = ThreadPoolExecutor(4, thread_name_prefix="bench-end")

    def overlay(self, vm: Vm) -> Path:
        return self.plan(vm).files.disk

    def new(self) -> Vm:
        vm = Vm(str(ULID()), self.parts.slots.take(time.time()))
        self.parts.reserved[vm.ulid] = vm.said.put
        return vm

    def plan(self, vm: Vm) -> Plan:
        files = vm_paths(self.parts.paths, names_of(vm.ulid))
        return Plan(vm.ulid, self.machine, self.image, files, vm.slot, seed=False)

    def _tidy(self, vm: Vm) -> None:
        parts, files = self.parts, self.plan(vm).files
        parts.hypervisor.destroy(vm.domain)
        parts.wires.delete(names_of(vm.ulid).tap)
        for path in (files.disk, files.boot, files.channel, files.console):
            delete(path)
        parts.slots.release(vm.slot.index, 0.0)
        parts.reserved.pop(vm.ulid, None)


@contextmanager
def host_of(machine: MachineClass, cache: Path) -> Iterator[Host]:
    """A host with a template for ``machine``; nothing of it is left afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=ROOT))
    folder.chmod(0o711)
    name = f"icdb-{folder.name[-6:]}"
    settings = HostSettings(
        name=name,
        state_dir=str(folder / "state"),
        run_dir=str(folder / "run"),
        cache_dir=str(cache),
        netns=name,
        allow_emulation=True,
    )
    thread = make_namespace(name)
    parts = _parts(settings, Links(thread))
    host = Host(parts, machine, find_image(parts.paths.images, machine.image))
    try:
        choice = choose(settings, host.image.kernel, cache=parts.paths.cache)
        parts.domain_type = "kvm" if choice.accelerator == "kvm" else "qemu"
        parts.qemu_group = parts.hypervisor.group()
        _wait_for_template(parts, machine)
        yield host
    finally:
        host.settle()
        parts.templates.close()
        for domain in parts.hypervisor.ours():
            parts.hypervisor.kill(domain.name)
            parts.hypervisor.destroy(domain.name)
        parts.hypervisor.close()
        parts.talk.stop()  # type: ignore[attr-defined]  # it is `Channels`
        for tap in parts.wires.present():
            parts.wires.delete(tap)
        thread.close()
        netns.delete(name)
        shutil.rmtree(folder, ignore_errors=True)


def _parts(settings: HostSettings, links: Links) -> Parts:
    paths = host_paths(settings)
    make_folders(paths)
    parts = Parts(
        settings=settings,
        paths=paths,
        hypervisor=Libvirt(LIBVIRT, settings.netns),
        wall=FakeWall(),
        wires=links,
        gateway=FakeGateway(paths.links),
        slots=Slots(settings.links_range),
        records=Records(paths.records),
    )

    def heard(ulid: str, message: guest.Message) -> None:
        listener: Callable[[guest.Message], None] | None = parts.reserved.get(ulid)
        if listener is not None:
            listener(message)

    parts.talk = Channels(heard, lambda _ulid: None)
    parts.templates = Templates(parts)
    return parts


def _wait_for_template(parts: Parts, machine: MachineClass) -> None:
    parts.templates.want([machine])
    deadline = time.monotonic() + TEMPLATE_WITHIN_S
    while machine.name not in parts.templates.ready():
        failed = parts.templates.problem()
        if failed is not None or time.monotonic() > deadline:
            raise RuntimeError(f"there is no template: {failed.message if failed else 'not in time'}")
        parts.templates.turn(time.monotonic(), lambda _machine: True)
        time.sleep(0.2)
