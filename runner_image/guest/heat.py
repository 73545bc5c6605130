"""In a machine that waits for a job: run what a job's start runs, as far as that needs no job.

A clone's memory is its template's until it is written to, and each page that is costs a fault, on the host and in the
guest.  Whoever has run a program once has these pages behind him: those of the kernel that start a process, of the loader,
the interpreter, the runner.  Under emulation their translation is kept besides.  Nothing that is run here changes a file or
reaches out: there is no link.
"""

from __future__ import annotations

import contextlib
import os
import subprocess

from . import runner

WITHIN_S = 30.0
_PROGRAMS = (
    ("/usr/sbin/blkid", "-V"),
    ("/usr/bin/mount", "-V"),
    ("/usr/bin/umount", "-V"),
    ("/usr/bin/sh", "-c", "exit"),
    ("/usr/bin/bash", "-c", "exit"),
    ("/usr/bin/udevadm", "--version"),
    ("/usr/bin/systemctl", "--version"),
)
_RUNNER = (f"{runner.FOLDER}/bin/Runner.Listener", "warmup")
"""GitHub's runner has it for this very purpose."""


def heat() -> None:
    """What fails leaves the machine as cold as it was."""
    for argv in _PROGRAMS:
        _run(argv, user="root")
    _run(_RUNNER, user=runner.USER)


def _run(argv: tuple[str, ...], *, user: str) -> None:
    if not os.access(argv[0], os.X_OK):
        return
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={"PATH": "/usr/sbin:/usr/bin", "HOME": "/nonexistent", "LANG": "C.UTF-8"},
            user=user,
            group=user,
            extra_groups=[],
            timeout=WITHIN_S,
            check=False,
        )
