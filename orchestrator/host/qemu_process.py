"""The process of one VM's QEMU, looked at and ended without libvirt in between.

Libvirt's `destroy` waits until PID 1 has reaped QEMU, which takes seconds on some machines, and it waits in line behind
whatever else it does with that domain.  The room of a VM is free before that: when the kernel has torn the process down.
A pidfd tells exactly this: it becomes readable once the last thread is dead, and a thread gives its memory back before it
counts as dead.  It also never names another process that was given the number of a dead one.

And while a dead QEMU isn't reaped, nobody may ask libvirt about its domain: whoever does holds the list of all domains until
then, and no VM at all can be made.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

PIDS = Path("/run/libvirt/qemu")
"""Where libvirt's system daemon writes ``<domain>.pid``."""


def kill(name: str, *, pids: Path = PIDS, within_s: float = 5.0) -> bool:
    """Kill the QEMU of the domain ``name``; True where it was seen dead, its processors and memory given back.

    False where there is none that is known, or where it isn't dead ``within_s`` seconds later.
    """
    with _opened(name, pids) as pidfd:
        if pidfd is None:
            return False
        with contextlib.suppress(ProcessLookupError):  # dead already, and not reaped
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        return bool(select.select([pidfd], [], [], within_s)[0])


def is_unreaped(name: str) -> bool:
    """Whether the QEMU of the domain ``name`` is dead, and PID 1 hasn't reaped it: libvirt waits for that."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        stat = Path(f"/proc/{int((PIDS / f'{name}.pid').read_text())}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "Z"
    return False


def wait_reaped(name: str, *, within_s: float = 10.0) -> bool:
    """Wait until a dead QEMU of the domain ``name`` is reaped; False where it isn't ``within_s`` seconds later."""
    deadline = time.monotonic() + within_s
    while is_unreaped(name):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def unlinked_bytes(folder: Path, *, pids: Path = PIDS, prefix: str = "ironcd-") -> int:
    """What the disks of running VMs take up that were in ``folder`` and have no name there any more, in bytes."""
    found: dict[tuple[int, int], int] = {}
    for file in pids.glob(f"{prefix}*.pid") if pids.is_dir() else ():
        with contextlib.suppress(OSError, ValueError):
            for descriptor in Path(f"/proc/{int(file.read_text())}/fd").iterdir():
                with contextlib.suppress(OSError):
                    target = os.readlink(descriptor)
                    if target.startswith(f"{folder}/") and target.endswith(" (deleted)"):
                        seen = os.stat(descriptor)
                        found[seen.st_dev, seen.st_ino] = seen.st_blocks * 512
    return sum(found.values())


@contextlib.contextmanager
def _opened(name: str, pids: Path) -> Iterator[int | None]:
    """A pidfd of the QEMU of ``name``; None where there is none.  The process is checked after it is held."""
    pidfd = None
    try:
        with contextlib.suppress(OSError, ValueError):
            pid = int((pids / f"{name}.pid").read_text())
            pidfd = os.pidfd_open(pid)
            if f"guest={name},".encode() not in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.close(pidfd)
                pidfd = None
        yield pidfd
    finally:
        if pidfd is not None:
            os.close(pidfd)
