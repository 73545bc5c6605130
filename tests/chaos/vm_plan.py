"""What a run with real machines will do, drawn from its seed alone: which jobs, which faults, who is killed, and when.

A moment is a mark that a job passes (`orchestrator.surface.timeline.MILESTONES`, and those of `OWN_MARKS`) and some seconds
after it was seen, so that a plan means the same on a quick machine and on a slow one.

=========  ========================================================================================================
role       what becomes of the job
=========  ========================================================================================================
crash      its QEMU is killed while it works, or its whole host reboots (of the first one, by the seed): an infrastructure
           loss at once; run again only in `RERUN`, and then served
whole      it is served, whatever dies beside it
drain      its host is drained while it works, and the deadline passes
=========  ========================================================================================================
"""

from __future__ import annotations

import random
from typing import Literal

import msgspec

Role = Literal["crash", "whole", "drain"]

RERUN, NO_RERUN = "web", "app"
"""Repositories: lost jobs of the first one are run again, by the setting."""
OWN_MARKS = ("delivered", "at_work", "going", "draining")
"""The control plane knows of the job; its first step runs (the outside heard from it); it may go on; its host is drained."""
EARLY = ("delivered", "accepted", "domain_started", "chain_installed", "guest_hello", "jit_taken")
LATE = ("runner_listening", "policy_bound", "at_work", "end_begun")
PROCESSES = ("redis", "control", "worker", "agent", "gateway")
FAULTS = (
    "delivery-doubled", "delivery-dropped", "delivery-failed", "completed-lost", "jit-conflict", "jit-full", "lost-answers",
    "foreign-installation", "hostile-payload",
)  # fmt: skip
"""Those that cost little time; the other two tiers have the rest."""


class VmJob(msgspec.Struct, frozen=True):
    key: str
    role: Role
    repository: str

    @property
    def is_rerun(self) -> bool:
        return self.role == "crash" and self.repository == RERUN


class Kill(msgspec.Struct, frozen=True):
    """``process`` (`PROCESSES`, ``qemu`` of the job, or all of its ``host``) is killed ``after_s`` after ``job`` was seen to have passed ``mark``."""

    job: str
    mark: str
    after_s: float
    process: str


class Fault(msgspec.Struct, frozen=True):
    """``name`` (of the simulator's catalogue) is ordered just before ``job`` is queued."""

    job: str
    name: str


class VmPlan(msgspec.Struct, frozen=True):
    jobs: tuple[VmJob, ...]
    kills: tuple[Kill, ...]
    faults: tuple[Fault, ...]
    drain_s: float
    """From the drain to its deadline."""

    def is_alone(self, job: VmJob) -> bool:
        """No other job's machine may go down with its host."""
        return any((kill.job, kill.process) == (job.key, "host") for kill in self.kills)


def plan(jobs: int, seed: int) -> VmPlan:
    """Each process is killed at least once, and one QEMU or a whole host; a drain is among three jobs or more."""
    rng = random.Random(f"vms {seed}")
    made = _jobs(jobs, rng)
    kills = [_kill(rng, made, process) for process in (*PROCESSES, *rng.choices(PROCESSES, k=jobs))] if jobs else []
    crashed = [(job.key, round(rng.uniform(0.0, 2.0), 2)) for job in made if job.role == "crash"]
    faults = (
        [Fault(rng.choice(made).key, name) for name in rng.sample(FAULTS, min(len(FAULTS), 1 + jobs // 2))]
        if jobs
        else []
    )
    drain_s = round(rng.uniform(2.0, 8.0), 1)
    first = rng.choice(("qemu", "host"))
    kills += [Kill(key, "at_work", at, "qemu" if number else first) for number, (key, at) in enumerate(crashed)]
    order = {job.key: number for number, job in enumerate(made)}
    return VmPlan(
        jobs=tuple(made),
        kills=tuple(
            sorted(
                kills, key=lambda kill: (order[kill.job], (*EARLY, *OWN_MARKS, *LATE).index(kill.mark), kill.after_s)
            )
        ),
        faults=tuple(sorted(faults, key=lambda fault: (order[fault.job], fault.name))),
        drain_s=drain_s,
    )


def _jobs(count: int, rng: random.Random) -> list[VmJob]:
    """Crashes first: GitHub takes its time over them, and the others run meanwhile."""
    roles: list[tuple[Role, str]] = [("crash", RERUN)] if count else []
    roles += [("crash", NO_RERUN)] if count > 3 else []
    tail: list[tuple[Role, str]] = [("drain", RERUN)] if count > 2 else []
    roles += [("whole", rng.choice((RERUN, NO_RERUN))) for _ in range(count - len(roles) - len(tail))]
    return [VmJob(f"vm{number}", role, repo) for number, (role, repo) in enumerate([*roles, *tail], 1)]


def _kill(rng: random.Random, jobs: list[VmJob], process: str) -> Kill:
    """The gateway isn't killed while a job tries the ways out (`Play` holds that of other jobs too)."""
    job = rng.choice(jobs)
    marks: tuple[str, ...] = (*EARLY, "at_work") if process == "gateway" else (*EARLY, *LATE)
    if process != "gateway":
        marks += ("draining",) if job.role == "drain" else ("going",)
    return Kill(job.key, rng.choice(marks), round(rng.uniform(0.0, 1.5), 2), process)
