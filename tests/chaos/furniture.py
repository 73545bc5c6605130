"""Light things in the place of those parts of the agent that would start programs, wait on threads, or ask this machine.

All else of it is the product's own: what is made in which order, what is checked, what is cleared away.
"""

# mypy: disable-error-code="assignment, attr-defined"

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from orchestrator.core.errors import HostError
from orchestrator.core.machine import MachineClass
from orchestrator.core.wire import Image
from orchestrator.host import agent as agent_module
from orchestrator.host import guest as wire
from orchestrator.host import pool as pool_module
from orchestrator.host import room as room_module
from orchestrator.host import start as start_module
from orchestrator.host import template_build, template_files, waiting
from orchestrator.host import templates as templates_module
from orchestrator.host import vm as vm_module
from orchestrator.host.domain_xml import Memory
from orchestrator.host.images import LocalImage, Manifest
from orchestrator.host.parts import Cancelled, Parts, Runner
from orchestrator.host.start import go_on
from orchestrator.host.template_key import FORMAT, Basis
from tests.chaos.hardware import Later

if TYPE_CHECKING:
    from tests.chaos.city import City

IMAGE_IS = ("default", "sha256:0", "2.336.0")
IMAGE = Image(*IMAGE_IS, {"apt": ("deb.example",)})


class _SharedMemory:
    """A template's memory, compared with its manifest as the real one is."""

    taken_bytes = 0

    def __init__(self, template: template_files.Template, *_: Any) -> None:
        others = tuple(name for name in template.manifest.files if name != template_files.RAM)
        template_files.verify(template, but=others)
        self._path = template.file(template_files.RAM)

    @contextlib.contextmanager
    def opened(self, _user: int, _group: int) -> Iterator[Memory]:
        yield Memory(str(self._path), "clone")

    def close(self) -> None:
        pass


def furnish(city: City) -> None:
    """For this whole process; whose part it is at a time, `City.acting` says."""
    place = city.folder / "image"
    place.mkdir()
    for name in ("disk", "kernel", "initrd"):
        (place / name).write_text(name)
    image = LocalImage(Manifest(*IMAGE_IS), place / "disk", place / "kernel", place / "initrd", 1 << 30)

    def make_disk(_image: LocalImage, path: Path, **_: Any) -> None:
        if city.is_full(path):
            raise HostError("can't make the disk: no space left", code="disk-failed", remedy="Make room.")
        path.touch()

    def copy_boot(_kernel: Path, _initrd: Path, folder: Path) -> None:
        folder.mkdir(exist_ok=True)

    def make_seed(path: Path, *_: Any, jit: str, **__: Any) -> None:
        path.write_text(jit)

    def prepare(parts: Parts, runner: Runner, _said: Any) -> None:
        """The machine is one of its own when its agent goes on, or has failed; nobody waits on a thread for it."""
        go_on(runner)
        guest = city.acting.guests.get(runner.record.id)
        told = parts.talk.send(runner.record.id, wire.preparing())
        if guest is None or guest.fate == "mute" or not told:
            raise waiting._failed("it didn't get ready")

    def basis_of(machine: MachineClass, _image: LocalImage, *_: Any) -> Basis:
        """What a real one has of files, processor and QEMU is this machine's, and no part of a seed."""
        size = f"{machine.vcpus} {machine.memory_mib}"
        return Basis(FORMAT, image.manifest.digest, (), "fake 0", "", size, machine.disk_gib)

    class Build(template_build.Build):
        """The real one, but that its machine has come to rest at once, or never does."""

        def _await(self, kind: type[wire.Message], *_: Any) -> None:
            city.acting.mortal.point("template")
            if self._cancelled.is_set():
                raise Cancelled
            if city.acting.fate_of("template-stuck"):
                raise template_build._failed(f"it didn't come as far as {kind.__name__.lower()!r}")

    class Ulid:
        """In place of `ULID`: out of the seed."""

        def __str__(self) -> str:
            return city.make_id()

        @classmethod
        def from_timestamp(cls, _now: float) -> Ulid:
            return cls()

    agent_module.capacity_of = lambda *_, **__: city.room
    agent_module.boot_id = lambda: f"{city.acting.name}-{city.acting.boots}"
    agent_module.device_problem = lambda: None
    agent_module.list_images = lambda _folder: (IMAGE,)
    for module in (start_module, room_module, templates_module, waiting):
        module.find_image = lambda *_: image
    vm_module.make_disk, vm_module.copy_boot = make_disk, copy_boot
    vm_module.make_overlay = template_build.make_overlay = make_disk
    start_module.make_seed = waiting.fill_seed = make_seed
    waiting.make_blank_seed = Path.touch
    waiting.prepare = prepare
    templates_module.basis_of, templates_module.memory_of = basis_of, _SharedMemory
    templates_module.Build = Build
    templates_module.threading = SimpleNamespace(RLock=threading.RLock, Thread=partial(Later, city))
    pool_module.ULID = template_build.ULID = Ulid
    os.chown = os.fchown = lambda *_, **__: None
