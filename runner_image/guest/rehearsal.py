"""In a machine that waits for a job: cloud-init goes through all its stages once, on a seed that is made up.

It runs in namespaces of its own, as a second process beside the one that waits for the job.  There everything is read-only but what
is in memory and gone with the namespaces: ``/run``, ``/tmp``, ``/var/lib/cloud``, the logs, and a copy of ``/etc``.  It has no link,
another hostname, and its processes end with it.  So nothing of it can stay, whatever cloud-init does, and nothing of the job can
be in it: there is no job yet.  What stays is that the kernel, the interpreter and cloud-init's code have been run: their pages
are this machine's own, and an emulator has translated them.

The registration is taken at the end as a job's is, by the same code.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from base64 import b64encode

from . import registration, seed
from .mounts import BIND, RDONLY, REMOUNT, mount
from .stages import STAGES, Stages

WITHIN_S = 90.0
ENTER = (
    *("/usr/bin/unshare", "--mount", "--net", "--uts", "--ipc", "--pid"),
    *("--fork", "--kill-child", "--mount-proc", "--propagation", "private"),
)
"""What is run behind these words is in namespaces of its own, and dies with them."""

IN_MEMORY = ("/run", "/tmp", "/var/tmp", "/var/log", "/var/lib/cloud")
_ETC = "/run/rehearsal/etc"
_JIT = "/run/ironcd/jit"
_CLOUD_INIT = ("/usr/bin/cloud-init", "--all-stages")
_PRELOADED = "/usr/lib/ironcd/cloud-init"
_PAUSE_S = 0.02


def main() -> None:
    """To be run behind `ENTER`.  Raises where it doesn't come to its end."""
    close_off()
    write_seed()
    run_stages()
    registration.take(_JIT)


def close_off(folders: tuple[str, ...] = IN_MEMORY) -> None:
    """Let nothing be written that stays: memory over what cloud-init writes to, and all else read-only."""
    for folder in folders:
        mount("rehearsal", folder, "tmpfs", data="mode=0755,size=64m")
    os.makedirs("/run/systemd/system")
    os.makedirs("/run/ironcd")
    shutil.copytree("/etc", _ETC, symlinks=True, ignore_dangling_symlinks=True)
    mount(_ETC, "/etc", flags=BIND)
    for place in ("/", "/sys"):
        mount("rehearsal", place, flags=REMOUNT | BIND | RDONLY)


def write_seed(folder: str = seed.FOLDER) -> None:
    os.makedirs(folder)
    for name, text in documents().items():
        with open(f"{folder}/{name}", "w", encoding="ascii") as file:
            file.write(text)


def documents() -> dict[str, str]:
    """Of the form and size of those that the host makes for a job (`orchestrator.host.seed`), with nothing real in them."""
    text = "-----BEGIN CERTIFICATE-----\n" + ("A" * 64 + "\n") * 12 + "-----END CERTIFICATE-----\n"
    files: list[dict[str, object]] = [
        {"path": _JIT, "content": b64encode(bytes(3300)).decode(), "owner": "root:root", "permissions": "0600"},
        {"path": "/etc/rehearsal/one.crt", "content": text},
        {"path": "/etc/rehearsal/one.0", "content": text},
        {"path": "/etc/rehearsal/all.crt", "content": text, "append": True},
    ]
    link = {
        "match": {"macaddress": "02:00:00:00:00:01"},
        "dhcp4": False,
        "dhcp6": False,
        "accept-ra": False,
        "link-local": [],
        "addresses": ["192.0.2.1/31"],
        "routes": [{"to": "0.0.0.0/0", "via": "192.0.2.0"}],
        "nameservers": {"addresses": ["192.0.2.0"]},
    }
    return {
        "user-data": "#cloud-config\n" + json.dumps({"hostname": "rehearsal", "write_files": files}, indent=1) + "\n",
        "meta-data": json.dumps({"instance-id": "rehearsal", "local-hostname": "rehearsal"}) + "\n",
        "network-config": json.dumps({"version": 2, "ethernets": {"link": link}}, indent=1) + "\n",
    }


def run_stages(within_s: float = WITHIN_S) -> None:
    """Raises TimeoutError."""
    deadline = time.monotonic() + within_s
    env = {"PATH": "/usr/sbin:/usr/bin", "LANG": "C.UTF-8", "PYTHONPATH": _PRELOADED}
    with subprocess.Popen(
        _CLOUD_INIT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env
    ) as process:
        try:
            _start_stages(deadline)
        finally:
            process.kill()


def _start_stages(deadline: float) -> None:
    stages = Stages()
    while not (stages.start() and len(stages.done) == len(STAGES)):
        if time.monotonic() > deadline:
            raise TimeoutError("cloud-init's stages don't come to their end")
        if not stages.started:
            time.sleep(_PAUSE_S)
            continue
        poll = select.poll()
        for descriptor in stages.waiting():
            poll.register(descriptor, select.POLLIN)
        for descriptor, _ in poll.poll(1000 * max(0.0, deadline - time.monotonic())):
            stages.read(descriptor)
