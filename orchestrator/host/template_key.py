"""What a template depends on, and the name that it gets from that.

A clone's device state fits only a QEMU with the very devices that it was saved from, and its memory only the image whose
files it has open.  So the key covers everything that either depends on, the XML of the machine itself among it: a change
there, in this code or in a class, makes another template, and the old one is let go.

Authorities that guests trust aren't in it: each clone takes them from its own seed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path

import msgspec

from orchestrator.core.machine import MachineClass
from orchestrator.host.domain_xml import DomainSpec, DomainType, Memory, domain_xml
from orchestrator.host.images import LocalImage

FORMAT = 1
"""Of a template's files: grows when they are to be read otherwise."""
_EMULATOR = "qemu-system-x86_64"
_CPU_LINES = ("vendor_id", "cpu family", "model", "stepping", "microcode", "flags")


class Basis(msgspec.Struct, frozen=True):
    """All that a template depends on.  Files are told by inode, size and time: a rebuilt image of the same recipe is another."""

    format: int
    image: str
    files: tuple[str, ...]
    hypervisor: str
    processor: str
    machine: str
    disk_gib: int
    kernel: str = ""
    """The host's, where it runs the guest's processors: what these can do, and the state they are in, is for KVM to say."""

    @property
    def key(self) -> str:
        """64 hexadecimal digits."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()


def basis_of(machine: MachineClass, image: LocalImage, domain_type: DomainType, hypervisor: str) -> Basis:
    """``hypervisor`` is `Hypervisor.identity`."""
    emulator = shutil.which(_EMULATOR)
    files = (image.disk, image.kernel, image.initrd, *((Path(emulator).resolve(),) if emulator else ()))
    return Basis(
        format=FORMAT,
        image=image.manifest.digest,
        files=tuple(identity_of(path) for path in files),
        hypervisor=hypervisor,
        processor=processor() if domain_type == "kvm" else "",
        machine=domain_xml(_shape(machine, image, domain_type)),
        disk_gib=machine.disk_gib,
        kernel=host_kernel() if domain_type == "kvm" else "",
    )


def identity_of(path: Path) -> str:
    """Changes when the file is another one, or was written to.  Raises OSError."""
    found = path.stat()
    return f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"


def processor(path: Path = Path("/proc/cpuinfo")) -> str:
    """The first processor, as a guest with its features sees it: they are in the device state."""
    first = path.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    found = dict(re.findall(r"^(.+?)\s*:[ \t]*(.*)$", first, re.MULTILINE))
    return "\n".join(f"{name}: {found.get(name, '')}" for name in _CPU_LINES)


def host_kernel(modules: Path = Path("/sys/module")) -> str:
    """A distribution's rebuilt kernel has the same release and another version; what KVM nests into guests is a feature of their processor."""
    here = os.uname()
    nested = [path.read_text().strip() for path in sorted(modules.glob("kvm_*/parameters/nested"))]
    return " ".join((here.release, here.version, *nested))


def _shape(machine: MachineClass, image: LocalImage, domain_type: DomainType) -> DomainSpec:
    """The machine with the same words in place of what each VM has of its own."""
    return DomainSpec(
        ulid="",
        site="",
        name="template",
        domain_type=domain_type,
        vcpus=machine.vcpus,
        memory_mib=machine.memory_mib,
        kernel="kernel",
        initrd="initrd",
        cmdline=image.manifest.cmdline,
        disk="disk",
        backing="backing",
        seed="seed",
        tap="tap",
        channel="channel",
        console="console",
        memory=Memory("memory", "clone"),
    )
