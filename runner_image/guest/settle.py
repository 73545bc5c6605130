"""Before a template is taken of this machine: wait until nothing is on its way, and read ahead what a job's start reads."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time

PATIENCE_S = 120.0
_OURS = "ironcd-guest.service"
_QUIET_S = 0.5
_READ_AHEAD = (
    "/opt/actions-runner/bin",
    "/usr/lib/python3/dist-packages/cloudinit",
    "/usr/lib/ironcd",
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/systemd/system",
)
_PROGRAMS = (
    "sh",
    "bash",
    "nc",
    "blkid",
    "mount",
    "umount",
    "tee",
    "udevadm",
    "systemctl",
    "sudo",
    "env",
    "git",
    "node",
)
_SHARE = 4
"""At most one part in so many of the memory that is free goes into what is read ahead."""


def settle() -> None:
    """Returns once the machine stands still at the gate.  Raises TimeoutError where it never does."""
    deadline = time.monotonic() + PATIENCE_S
    while running_jobs():
        if time.monotonic() > deadline:
            raise TimeoutError("the boot doesn't come to its end")
        time.sleep(_QUIET_S)
    read_ahead(available_bytes() // _SHARE)
    os.sync()
    time.sleep(_QUIET_S)


def running_jobs() -> list[str]:
    """Units that systemd is starting or stopping at this moment, but for our own, which waits here."""
    listed = subprocess.run(
        ["/usr/bin/systemctl", "list-jobs", "--no-legend", "--no-pager", "--plain"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        check=False,
        timeout=60,
    )
    lines = (line.split() for line in listed.stdout.decode("utf-8", "replace").splitlines())
    return [line[1] for line in lines if len(line) > 3 and line[3] == "running" and line[1] != _OURS]


def read_ahead(limit: int) -> int:
    """Read files into the page cache, at most ``limit`` bytes of them; how many were read."""
    done = 0
    for path in files():
        with contextlib.suppress(OSError), open(path, "rb", buffering=0) as file:
            while done < limit and (data := file.read(1 << 20)):
                done += len(data)
    return done


def files() -> list[str]:
    """What is read on the way from the gate to a job's first step."""
    found = [f"/usr/bin/{name}" for name in _PROGRAMS]
    for top in _READ_AHEAD:
        if os.path.isfile(top):
            found.append(top)
        for place, _, names in os.walk(top):
            found += [f"{place}/{name}" for name in sorted(names)]
    return [path for path in found if os.path.isfile(path)]


def available_bytes(path: str = "/proc/meminfo") -> int:
    with open(path, encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0
