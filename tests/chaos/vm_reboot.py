"""The host of a run with real machines reboots, as far as its processes, libvirt and the kernel can tell.

Agent, gateway and every QEMU end at once, and nobody says goodbye.  The VMs' namespace goes, with its links, rules and
flows, and so does all that IronCD has under ``/run``.  What is on disk stays: records, seeds, disks, the ledger.  Libvirt
still has the machines for some moments, until it has noticed; then it has none, as after a boot.

GitHub, the control plane and Redis are other machines' here and go on.  The kernel's boot ID stays, too: nothing is decided
by it, it is only shown.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from pathlib import Path

from orchestrator.core.names import names_of
from orchestrator.host import qemu_process
from orchestrator.system import netns
from orchestrator.system.process import CommandFailed, run
from tests.chaos import vm_oracle
from tests.chaos.vm_city import VmCity

OF_THE_HOST = ("agent", "gateway")
BOOTED_WITHIN_S = 120.0


def reboot(city: VmCity) -> bool:
    """False where a process of the host is between two lives: it must be asked again."""
    stack = city.lab.stack
    if any(stack.pids.get(name) is None for name in OF_THE_HOST):
        return False
    for name in OF_THE_HOST:  # none may see the others end, nor tidy up after them
        stack.kill(name, signal.SIGSTOP)
    for domain in vm_oracle.domains(city):
        qemu_process.kill(domain)
    _forget_in_kernel(city)
    _empty(Path(stack.host.run_dir))
    for name in OF_THE_HOST:
        stack.kill(name)
    city.killed["host"] += 1
    _await_boot(city)
    return True


def _forget_in_kernel(city: VmCity) -> None:
    """The namespace itself goes with the last socket in it."""
    city.lift_traps()
    for ulid in city.ulids:
        with contextlib.suppress(CommandFailed):  # a link lies here only until its machine has opened it
            run(["ip", "link", "del", names_of(ulid).tap])
    netns.delete(city.lab.vm_netns)


def _empty(run_dir: Path) -> None:
    """But for what ``ironcd up`` writes before it starts the processes."""
    for path in run_dir.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.suffix != ".json":
            path.unlink()


def _await_boot(city: VmCity) -> None:
    """What isn't IronCD's comes up with the machine as well: a stranger's rules, and the host's own services."""
    limit = time.monotonic() + BOOTED_WITHIN_S
    while not (netns.exists(city.lab.vm_netns) and city.all_serve()) and time.monotonic() < limit:
        time.sleep(0.1)
    city.set_strangers_table()
    city.set_traps()
