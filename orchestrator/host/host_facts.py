"""What the host is: its room for VMs, its boot, and what an administrator should correct."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from orchestrator.core.machine import Capacity
from orchestrator.core.settings import HostSettings
from orchestrator.host.paths import HostPaths
from orchestrator.host.qemu_process import unlinked_bytes

_GIB = 1 << 30


def capacity_of(settings: HostSettings, paths: HostPaths, *, kept_mib: int = 0) -> Capacity:
    """What VMs can have in all: the machine less its reserve, and ``kept_mib`` that templates take.  Disk counts what overlays already take as free.

    Overlays of running VMs have no name any more (`orchestrator.host.erase`), and are counted all the same.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    taken = _taken(paths.disks) + unlinked_bytes(paths.disks)
    return Capacity(
        vcpus=max(0, (os.cpu_count() or 1) - settings.reserve_vcpus),
        memory_mib=max(0, memory - settings.reserve_memory_mib - kept_mib),
        disk_gib=max(0, (_free(paths.disks) + taken) // _GIB - settings.reserve_disk_gib),
    )


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _taken(folder: Path) -> int:
    taken = 0
    for entry in os.scandir(folder):
        try:
            taken += entry.stat(follow_symlinks=False).st_blocks * 512
        except FileNotFoundError:
            continue
    return taken
