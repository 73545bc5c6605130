"""The runner's registration (its JIT configuration): taken out of cloud-init's hands, once, with every copy destroyed.

Whoever has it can register as this runner and receive the job with its secrets, so it is in no file when the runner
starts: the file that cloud-init wrote is unlinked, what cloud-init keeps of its user-data goes, and then everything
that cloud-init leaves behind is searched for it.  ``/var/lib/cloud`` is in memory (a tmpfs), so no block of the disk
ever held it.
"""

from __future__ import annotations

import contextlib
import os
import signal
from base64 import b64encode

CLOUD = "/var/lib/cloud"
RUN = "/run/cloud-init"
LOGS = ("/var/log/cloud-init.log", "/var/log/cloud-init-output.log")
PROCESS_GROUP = "/sys/fs/cgroup/system.slice/cloud-init-main.service/cgroup.procs"

_KEEPS_USER_DATA = ("instance", "instances", "seed", "handlers")
_KEEPS_USER_DATA_TOO = ("instance-data-sensitive.json", "combined-cloud-config.json")


def end_cloud_init(process_group: str = PROCESS_GROUP) -> None:
    """To be called when its last stage has answered: nothing is left for it to do, and it takes half a second to let go of what it
    has in memory, the user-data among it.  What else runs in its group is waited for.
    """
    with contextlib.suppress(OSError), open(process_group, encoding="ascii") as file:
        for pid in file.read().split():
            with open(f"/proc/{pid}/comm", encoding="utf-8") as name:
                if name.read().strip() == "cloud-init":
                    os.kill(int(pid), signal.SIGKILL)


def cloud_init_done(run: str = RUN, process_group: str = PROCESS_GROUP) -> bool:
    """Its last stage has ended, and so has its process, which had the user-data in memory."""
    if not os.path.exists(f"{run}/result.json"):
        return False
    try:
        with open(process_group, "rb") as file:
            return not file.read().strip()
    except OSError:
        return True


def take(path: str, *, cloud: str = CLOUD, run: str = RUN, logs: tuple[str, ...] = LOGS) -> str:
    """Read and unlink the registration at ``path`` and destroy every copy; "" where there is none.

    Raises OSError where a copy can't be destroyed, and RuntimeError where one is in a process's arguments.
    """
    try:
        with open(path, "rb") as file:
            blob = file.read().strip()
        os.unlink(path)
    except FileNotFoundError:
        blob = b""
    for name in _KEEPS_USER_DATA:
        remove(f"{cloud}/{name}")
    for name in _KEEPS_USER_DATA_TOO:
        remove(f"{run}/{name}")
    if not blob:
        return ""
    for copy in [*holders(blob, (cloud, run)), *(log for log in logs if _holds(log, marks(blob)))]:
        remove(copy)
    if in_arguments(blob):
        raise RuntimeError("the registration is in a process's arguments")
    return blob.decode("ascii")


def marks(blob: bytes) -> tuple[bytes, ...]:
    """What a copy can be told by: a piece of it as it is, and in base64, which depends on where in a text it stands."""
    third = len(blob) // 3
    encoded = (b64encode(blob[shift:])[third:][:96] for shift in range(3))
    return (blob[third:][:96], *encoded)


def holders(blob: bytes, folders: tuple[str, ...]) -> list[str]:
    """The files under ``folders`` that hold the registration."""
    wanted = marks(blob)
    found = []
    for folder in folders:
        for place, _, names in os.walk(folder):
            found += [path for path in (f"{place}/{name}" for name in names) if _holds(path, wanted)]
    return found


def in_arguments(blob: bytes) -> bool:
    """Whether any process has the registration in its arguments, which everybody may read."""
    wanted = marks(blob)
    return any(_holds(f"/proc/{name}/cmdline", wanted) for name in os.listdir("/proc") if name.isdigit())


def remove(path: str) -> None:
    """Delete a file, a link or a whole folder; nothing happens where there is none."""
    if os.path.islink(path) or not os.path.isdir(path):
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        return
    for name in os.listdir(path):
        remove(f"{path}/{name}")
    os.rmdir(path)


def _holds(path: str, wanted: tuple[bytes, ...]) -> bool:
    if os.path.exists(path) and not os.path.isfile(path):
        return False  # a socket or a device: a read could wait for ever
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError:
        return False
    return any(mark in data for mark in wanted)
