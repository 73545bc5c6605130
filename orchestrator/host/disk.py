"""A VM's disk: an overlay on the image, thrown away with the VM, and its own copy of kernel and initrd.

The image itself is never given to QEMU's user: it stays root's and read-only, so a VM that got out of QEMU can't change
what the next one boots.  libvirt does hand the kernel and initrd of a VM to that VM's user, hence the copies.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from orchestrator.core.errors import HostError
from orchestrator.host.images import LocalImage
from orchestrator.system.process import CommandFailed, run

KERNEL, INITRD = "vmlinuz", "initrd"
_GIB = 1 << 30


def make_disk(image: LocalImage, path: Path, *, size_gib: int) -> None:
    """Make the overlay ``path`` of ``size_gib``, or of the image's size where that is larger."""
    make_overlay(image.disk, path, size_gib=size_gib, least=image.virtual_size)


def make_overlay(backing: Path, path: Path, *, size_gib: int, least: int = 0) -> None:
    """``backing`` may be relative to the folder of ``path``.  ``least``: in bytes."""
    try:
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(backing), str(path)]
        run([*argv, str(max(size_gib * _GIB, least))], timeout_s=30)
    except CommandFailed as error:
        raise HostError(
            f"can't make the disk: {error.message}", code="disk-failed", remedy="See that there is room on the disk."
        ) from error
    os.chmod(path, 0o600)


def copy_boot(kernel: Path, initrd: Path, folder: Path) -> None:
    """Copy kernel and initrd of an image into ``folder``, as `KERNEL` and `INITRD`."""
    folder.mkdir(mode=0o711, exist_ok=True)
    try:
        for source, target in ((kernel, folder / KERNEL), (initrd, folder / INITRD)):
            shutil.copyfile(source, target)
            os.chmod(target, 0o400)
    except OSError as error:
        raise HostError(
            f"can't copy the image's kernel: {error}", code="disk-failed", remedy="See that there is room on the disk."
        ) from error


def delete(path: Path) -> None:
    """Delete a file, or a folder with what is in it; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
