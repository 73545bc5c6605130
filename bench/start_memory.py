"""What a machine has to itself: memory and disk that are gone when it goes, while it waits at its gate and while a job runs in it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from bench.rows import Figure, Row, row
from bench.start_jobs import JOB_WITHIN_S, Kind, begin, end
from orchestrator.core.names import names_of
from orchestrator.host.paths import host_paths
from orchestrator.host.qemu_process import PIDS, unlinked_bytes
from orchestrator.surface.demo import scenario
from orchestrator.surface.demo.lab import Deadline, Lab
from orchestrator.surface.timeline import milestones_of

INTO_STEP_S, STEP_S = 5.0, 20
"""How far in its step a job is when its machine is looked at, and how long that step takes, in seconds."""
MIB = 1 << 20

MEMORY = Figure("clone_running_unique_memory", "MiB", "<= 0.7")
DISK = Figure("clone_running_disk", "MiB")
FIGURES = (MEMORY, DISK)


class Taken(msgspec.Struct, frozen=True):
    """What one machine has to itself, in MiB."""

    memory: float
    disk: float


def while_running(lab: Lab) -> Iterator[Row]:
    """A job on a clone, beside the same job on a machine that was booted; each is looked at in the middle of its step."""
    clone, cold = (_in_its_step(lab, kind) for kind in ("clone", "cold"))
    yield from rows_of(clone, cold)


def rows_of(clone: Taken, cold: Taken) -> Iterator[Row]:
    peer = "the same job on a machine that booted"
    note = "private pages, in the middle of a step that sleeps"
    yield row(MEMORY, clone.memory, peer=peer, peer_value=cold.memory, note=note)
    yield row(DISK, clone.disk, peer=peer, peer_value=cold.disk, note="blocks of the overlay, at the same moment")


def private_mib(domain: str) -> float:
    """Memory that goes when this domain's QEMU goes: its private pages, in MiB.  Raises OSError where there is none."""
    return private_mib_of(int((PIDS / f"{domain}.pid").read_text()))


def private_mib_of(pid: int) -> float:
    return private_mib_in(Path(f"/proc/{pid}/smaps_rollup").read_text())


def private_mib_in(rollup: str) -> float:
    """MiB of private pages, clean and dirty, by the text of a ``smaps_rollup``."""
    fields = dict(line.split(":", 1) for line in rollup.splitlines()[1:])
    return sum(int(fields[name].split()[0]) for name in ("Private_Clean", "Private_Dirty")) / 1024


def _in_its_step(lab: Lab, kind: Kind) -> Taken:
    """Raises RuntimeError where the job was over before both were read."""
    job_id = begin(lab, kind, run=f"sleep {STEP_S}")
    deadline = Deadline(time.monotonic() + JOB_WITHIN_S, f"the {kind} job {job_id} came to no step")
    while "steps_released" not in milestones_of(job := scenario.job_of(lab, job_id)):
        deadline.pause(0.2)
    time.sleep(INTO_STEP_S)
    domain = names_of(job["runner"]).domain
    memory = private_mib(domain)
    disk = unlinked_bytes(host_paths(lab.stack.host).disks, prefix=domain) / MIB
    if "JobCompleted" in milestones_of(scenario.job_of(lab, job_id)):
        raise RuntimeError(f"the {kind} job {job_id} was over before its machine was looked at")
    end(lab, kind, job_id)
    return Taken(memory, disk)
