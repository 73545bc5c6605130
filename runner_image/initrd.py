"""The initrd: busybox, one script, and the kernel modules for a VM's devices.  Its bytes depend on its
content alone.
"""

from __future__ import annotations

import lzma
import stat
from pathlib import Path

import msgspec

from orchestrator.core.errors import HostError

MODULES = ("virtio_blk", "virtio_net", "virtio_scsi", "sr_mod", "isofs", "virtio-rng")
"""The devices of our VMs.  Debian's cloud kernel has virtio, its PCI transport and ext4 built in."""


class Entry(msgspec.Struct, frozen=True):
    """``mode`` with the type of file; ``device`` is major and minor."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def make_initrd(init: Path, busybox: Path, modules: Path) -> bytes:
    """``modules`` is the kernel's folder under ``/usr/lib/modules``."""
    entries = [Entry(name, stat.S_IFDIR | 0o755) for name in ("bin", "dev", "modules", "proc", "root")]
    # The kernel opens it for the first process before that can mount anything.
    entries.append(Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)))
    entries.append(Entry("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes()))
    entries.append(Entry("init", stat.S_IFREG | 0o755, init.read_bytes()))
    order = module_order((modules / "modules.dep").read_text(encoding="ascii"), MODULES)
    files = {_plain(path): _read_module(modules / path) for path in order}
    files["order"] = "".join(f"{name}\n" for name in files).encode()
    entries += [Entry(f"modules/{name}", stat.S_IFREG | 0o644, data) for name, data in files.items()]
    return cpio(entries)


def module_order(dependencies: str, wanted: tuple[str, ...]) -> list[str]:
    """Paths of ``wanted`` and all they need, in the order to load them in.  ``dependencies`` is ``modules.dep``."""
    needs = {}
    for line in dependencies.splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    order: list[str] = []
    for name in wanted:
        paths = [path for path in needs if _plain(path) == f"{name}.ko"]
        if not paths:
            raise HostError(
                f"the image's kernel has no module {name}",
                code="image-kernel",
                remedy="Build with Debian's linux-image-cloud-amd64, unmodified.",
            )
        # modules.dep lists what is needed last first.
        order += [path for path in [*reversed(needs[paths[0]]), paths[0]] if path not in order]
    return order


def cpio(entries: list[Entry]) -> bytes:
    """An archive in the "newc" format, owned by root, with no times."""
    archive = bytearray()
    for number, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], start=1):
        name = entry.name.encode() + b"\0"
        major, minor = entry.device
        fields = (number, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, major, minor, len(name), 0)
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        archive += b"\0" * (-len(archive) % 4)
        archive += entry.data
        archive += b"\0" * (-len(archive) % 4)
    return bytes(archive)


def _plain(path: str) -> str:
    return path.rsplit("/", 1)[-1].removesuffix(".xz")


def _read_module(path: Path) -> bytes:
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data
