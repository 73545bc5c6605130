"""The job's seed: copied from its drive into the folder in which cloud-init's NoCloud looks first.

cloud-init would find the drive by itself, with five programs that look through all drives and two that mount and unmount the
one; the documents are the same.  The folder is in memory, and goes with all else that has the registration in it
(`registration.take`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time

from .mounts import NODEV, NOEXEC, NOSUID, RDONLY, mount, unmount

DRIVE = "/dev/sr0"
FOLDER = "/var/lib/cloud/seed/nocloud"
DOCUMENTS = ("user-data", "meta-data", "network-config", "vendor-data")
MAX_BYTES = 16 << 20

_PLACE = "/run/ironcd/seed"
_WITHIN_S = 10.0
_PAUSE_S = 0.02


def hand_over(drive: str = DRIVE, folder: str = FOLDER) -> None:
    """Have what is on ``drive`` where cloud-init reads it; at boot the drive may come later than we do.

    Raises OSError where there is no seed in it, or it can't be let go of; nothing is handed over then.
    """
    deadline = time.monotonic() + _WITHIN_S
    while not os.path.exists(drive) and time.monotonic() < deadline:
        time.sleep(_PAUSE_S)
    os.makedirs(_PLACE, mode=0o700, exist_ok=True)
    mount(drive, _PLACE, "iso9660", RDONLY | NOSUID | NODEV | NOEXEC)
    try:
        try:
            copy(_PLACE, folder)
        finally:
            unmount(_PLACE)
        os.rmdir(_PLACE)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def copy(source: str, folder: str = FOLDER) -> None:
    """The documents that are in ``source``, for root only.  Raises OSError, also where one is too large to be one."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    for name in DOCUMENTS:
        with contextlib.suppress(FileNotFoundError), open(f"{source}/{name}", "rb") as file:
            data = file.read(MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                raise OSError(f"the seed's {name} is too large")
            with open(f"{folder}/{name}", "wb", opener=_for_root) as made:
                made.write(data)


def _for_root(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
