"""Whether this host is short of memory, by the kernel's own figures.

``MemAvailable`` says how much could be had without swapping, pressure stall information (PSI) how much of the time
somebody waited for memory.  Either is enough to be short; both must be well for room to be plenty.
"""

from __future__ import annotations

from pathlib import Path

from orchestrator.host.pool_plan import Memory

TIGHT_SHARE, ROOMY_SHARE = 0.05, 0.10
"""Of all memory that is available."""
TIGHT_STALL, ROOMY_STALL = 10.0, 1.0
"""Percent of the last ten seconds in which something waited for memory."""


def look(meminfo: Path = Path("/proc/meminfo"), stalls: Path = Path("/proc/pressure/memory")) -> Memory:
    """A kernel without PSI is judged by what is available alone."""
    share = _available_share(meminfo.read_text())
    try:
        stalled = _stalled(stalls.read_text())
    except OSError:  # not built in, or switched off (psi=0)
        stalled = 0.0
    return Memory(
        tight=share < TIGHT_SHARE or stalled >= TIGHT_STALL,
        roomy=share >= ROOMY_SHARE and stalled < ROOMY_STALL,
    )


def _available_share(text: str) -> float:
    """Of ``/proc/meminfo``."""
    fields = {line.partition(":")[0]: line.split()[1] for line in text.splitlines() if len(line.split()) > 1}
    return int(fields["MemAvailable"]) / int(fields["MemTotal"])


def _stalled(text: str) -> float:
    """``some avg10`` of ``/proc/pressure/memory``, in percent."""
    for line in text.splitlines():
        if line.startswith("some "):
            return float(dict(pair.split("=", 1) for pair in line.split()[1:])["avg10"])
    return 0.0
