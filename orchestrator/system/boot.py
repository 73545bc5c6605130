"""The boot of this machine: which one it is, and how long ago it was."""

from __future__ import annotations

import time
from pathlib import Path


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def uptime() -> float:
    """Seconds since the machine's boot, with the time that it slept: no one can set it, and it is the same for all processes."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
