"""Saving and loading a VM's device state without its memory, which is in a file that the clones share.

QEMU calls this migration: with the capability ``x-ignore-shared`` a memory that is mapped from a file isn't in the
stream.  The stream goes through a descriptor of ours, since QEMU under libvirt's sandbox may start no program and its user
may not open our file.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol

from orchestrator.core.errors import HostError

_NAME = "ironcd-state"
_SAVE_S = 120.0
_LOAD_S = 60.0


class Monitor(Protocol):
    """QEMU's monitor (QMP)."""

    def ask(self, command: str, arguments: Mapping[str, Any] | None = None, *, file: int | None = None) -> Any:
        """What ``command`` returns.  ``file`` goes with it as an open descriptor.  Raises HostError for an error."""


def save(monitor: Monitor, target: int) -> None:
    """Write the state of a VM that is stopped to ``target``."""
    _ignore_shared(monitor)
    monitor.ask("getfd", {"fdname": _NAME}, file=target)
    monitor.ask("migrate", {"uri": f"fd:{_NAME}"})
    deadline = time.monotonic() + _SAVE_S
    while True:
        found = monitor.ask("query-migrate")
        status = found.get("status", "")
        if status == "completed":
            return
        if status in ("failed", "cancelled") or time.monotonic() > deadline:
            raise _failed(f"its state can't be saved: {status} {found.get('error-desc', '')}".strip())
        time.sleep(0.01)


def load(monitor: Monitor, source: int) -> None:
    """Load the state from ``source`` into a VM that waits for it; it is stopped afterwards, and may be let run."""
    _ignore_shared(monitor)
    monitor.ask("getfd", {"fdname": _NAME}, file=source)
    monitor.ask("migrate-incoming", {"uri": f"fd:{_NAME}"})
    deadline = time.monotonic() + _LOAD_S
    while True:
        status = monitor.ask("query-status").get("status", "")
        if status not in ("inmigrate", "postmigrate"):
            break
        if monitor.ask("query-migrate").get("status") == "failed" or time.monotonic() > deadline:
            raise _failed("its template's state can't be loaded")
        time.sleep(0.005)
    if status != "paused" or monitor.ask("query-migrate").get("status", "completed") != "completed":
        raise _failed(f"its template's state can't be loaded: it is {status}")


def _ignore_shared(monitor: Monitor) -> None:
    on = [{"capability": "x-ignore-shared", "state": True}]
    monitor.ask("migrate-set-capabilities", {"capabilities": on})


def _failed(why: str) -> HostError:
    return HostError(why, code="clone-failed", remedy="The job boots cold; the template is looked at, and made anew.")
