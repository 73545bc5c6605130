"""In a machine that waits for a job: run what a job's start runs, as far as that needs no job.

A clone's memory is its template's until it is written to, and each page that is costs a fault, on the host and in the
guest.  Whoever has run a program once has these pages behind him: those of the kernel that start a process, of the loader,
the interpreter, cloud-init, the runner.  Under emulation their translation is kept besides.  Nothing that is run here changes a
file or reaches out: there is no link.
"""

from __future__ import annotations

import subprocess
import time

from . import rehearsal, runner

WITHIN_S = 100.0
"""All of it: the host waits half as long again for a machine to be ready.  It takes some ten seconds on an idle emulator."""

_PROGRAMS = (
    ("/usr/bin/sh", "-c", "exit"),
    ("/usr/bin/bash", "-c", "exit"),
    ("/usr/bin/nc", "-h"),
)
_RUNNER = (f"{runner.FOLDER}/bin/Runner.Listener", "warmup")
"""GitHub's runner has it for this very purpose."""
_REHEARSAL = (*rehearsal.ENTER, "/usr/lib/ironcd/ironcd-guest", "rehearse")


def heat() -> list[str]:
    """What failed, by name; it leaves the machine as cold as it was."""
    deadline = time.monotonic() + WITHIN_S
    went_well = {
        "cloud-init": _run(_REHEARSAL, "root", deadline),
        "the runner": _run(_RUNNER, runner.USER, deadline),
    }
    for argv in _PROGRAMS:
        _run(argv, "root", deadline)
    return [name for name, well in went_well.items() if not well]


def _run(argv: tuple[str, ...], user: str, deadline: float) -> bool:
    left = deadline - time.monotonic()
    if left <= 0:
        return False
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={"PATH": "/usr/sbin:/usr/bin", "HOME": "/nonexistent", "LANG": "C.UTF-8"},
            user=user,
            group=user,
            extra_groups=[],
            timeout=left,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0
