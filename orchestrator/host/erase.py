"""What becomes of a VM's disk once the VM is dead (``host.disk_erase``).

``unlink``
    The disk loses its name as soon as QEMU has it open.  Nobody can open it any more, and the file system takes it back
    in the moment in which QEMU dies, also where the agent is dead by then.  What was written stays in the freed blocks
    until something else is written there: no file shows it, a look at the raw device does.
``discard``
    The file keeps its name.  At the end its blocks are given back, and the file system then tells the device to discard
    everything that is free (FITRIM).  What the device gives back for discarded blocks is its own affair: zeros on thin
    volumes, loop devices and most NVMe.
``zero``
    The file keeps its name.  At the end everything in it is overwritten with zeros where it lies and flushed, before its
    blocks are given back.  Holds on file systems that write in place, and for what a device shows to its computer; flash
    keeps old cells for itself.  QEMU is kept from giving blocks back before (the guest's own discards are ignored).

With the last two the file's name is the debt: it goes only when all is done, so an end that was cut short is done again,
and the proof of destruction waits for it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
from pathlib import Path

from orchestrator.core.settings import DiskErase
from orchestrator.core.wire import Failure

_FITRIM = 0xC0185879
_CHUNK = 4 << 20
_IN_PLACE = frozenset({"ext2", "ext3", "ext4", "xfs"})
_trimming = threading.Lock()


def keeps_name(how: DiskErase) -> bool:
    """Whether a disk must keep its name while its VM runs."""
    return how != "unlink"


def erase(path: Path, how: DiskErase) -> None:
    """Delete the file ``path`` and with it what ``how`` promises.  Nothing happens where it isn't there.

    Raises OSError where that can't be kept; the file is there still.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        if how == "zero":
            _zero(descriptor)
        elif how == "discard":
            _give_back(descriptor)
            trim(path.parent)
    finally:
        os.close(descriptor)
    os.unlink(path)


def trim(folder: Path, size: int = (1 << 64) - 1) -> None:
    """Have the file system of ``folder`` tell its device to discard all that is free in its first ``size`` bytes.

    Raises OSError where it can't.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _trimming:
            os.fsync(descriptor)
            fcntl.ioctl(descriptor, _FITRIM, struct.pack("=QQQ", 0, size, 0))
    finally:
        os.close(descriptor)


def problem(folder: Path, how: DiskErase) -> Failure | None:
    """Why the file system of ``folder`` can't keep what ``how`` promises; None where it can."""
    if how == "discard":
        try:
            trim(folder, 1 << 20)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EPERM, errno.EINVAL):
                raise
            return _unsupported(folder, how, "its device or file system takes no discards")
    if how == "zero" and _file_system(folder) not in _IN_PLACE:
        return _unsupported(folder, how, f"{_file_system(folder)} may write elsewhere than where the old data lies")
    return None


def _unsupported(folder: Path, how: DiskErase, why: str) -> Failure:
    return Failure(
        code="disk-erase-unsupported",
        message=f"{folder} can't keep host.disk_erase = {how!r}: {why}",
        remedy="Put host.state_dir on ext4 or XFS (for discard: on a device that takes discards), or choose another value.",
    )


def _zero(descriptor: int) -> None:
    size, at, zeros = os.fstat(descriptor).st_size, 0, bytes(_CHUNK)
    while at < size:
        try:
            begin = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nothing but holes from here on
                raise
            break
        at = end = os.lseek(descriptor, begin, os.SEEK_HOLE)
        while begin < end:
            begin += os.pwrite(descriptor, zeros[: end - begin], begin)
    os.fsync(descriptor)


def _give_back(descriptor: int) -> None:
    """Punch out all there is and have that on disk: only what is free there is discarded."""
    os.ftruncate(descriptor, 0)
    os.fsync(descriptor)


def _file_system(folder: Path) -> str:
    """The type of the file system that ``folder`` is on, by the longest mount point above it."""
    place, best, kind = str(folder.resolve()), "", ""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        point = before.split()[4].encode().decode("unicode_escape")
        inside = point in ("/", place) or place.startswith(point + "/")
        if inside and len(point) >= len(best):
            best, kind = point, after.split()[0]
    return kind
