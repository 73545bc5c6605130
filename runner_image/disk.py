"""From a folder to a disk: ext4 written without mounting anything, then qcow2."""

from __future__ import annotations

import os
from pathlib import Path

from orchestrator.core.errors import HostError
from orchestrator.system.process import CommandFailed, run

LABEL = "ironcd-root"
_GIB = 1 << 30
_BUILD_S = 900.0


def make_disk(root: Path, disk: Path) -> None:
    """Write ``disk`` (qcow2) with the content of ``root``.

    No journal and lazily made inode tables: the file system lives for one job.  Its size here is the least that a class
    may ask for; it grows into a larger disk at boot.
    """
    raw = disk.with_suffix(".raw")
    with raw.open("wb") as file:
        file.truncate(disk_size(used_bytes(root)))
    try:
        run(
            [
                *("mke2fs", "-q", "-F", "-t", "ext4", "-L", LABEL, "-m", "0"),
                *("-O", "^has_journal,^metadata_csum", "-E", "lazy_itable_init=1,nodiscard,root_owner=0:0"),
                *("-d", str(root), str(raw)),
            ],
            timeout_s=_BUILD_S,
        )
        run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(disk)], timeout_s=_BUILD_S)
    except CommandFailed as error:
        raise HostError(
            f"the image's disk can't be made: {error.message}",
            code="image-disk",
            remedy="Check for free space in the cache folder; install `e2fsprogs` and `qemu-utils`.",
        ) from error
    finally:
        raw.unlink(missing_ok=True)


def disk_size(used: int) -> int:
    """Bytes, whole GiB: what is used, a third more for what a file system takes, and 512 MiB to boot with."""
    return -(-(used + used // 3 + _GIB // 2) // _GIB) * _GIB


def used_bytes(root: Path) -> int:
    """What the files under ``root`` take in blocks of 4 KiB."""
    total = 0
    for place, folders, names in os.walk(root):
        total += 4096 * len(folders)
        for name in names:
            size = os.lstat(os.path.join(place, name)).st_size
            total += -(-size // 4096) * 4096
    return total
