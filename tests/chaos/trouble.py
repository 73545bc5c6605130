"""Who makes work, and who makes trouble: both are planned from the seed alone, and over after a while.

What is planned doesn't depend on what has happened: each step draws from a source of its own.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from orchestrator.simulator.github.catalogue import CATALOGUE, Order, fault_set
from orchestrator.simulator.github.state import Run

if TYPE_CHECKING:
    from tests.chaos.city import City

FLOOD = 13
"""A run of so many jobs is a flood: all of one repository that no quota holds back, and more than the others ever have."""
QUIET = 3
FLOODS = "acme/tools"
TERMINAL = ("jit-forbidden", "jit-invalid", "jit-missing")
"""After these a job is refused for good, with GitHub's reason: one each time, so that jobs remain to be served."""
BIG = "ironcd-big"
NOBODYS = "ironcd-nobodys"
"""A label that no class has: its jobs wait until their user gives up."""
SELDOM = ("acquire-404", "busy-lies", "delete-refused")
"""Declared more often, since what they befall seldom happens while they hold."""
UNINSTALLED_S = 90.0


def span_s(jobs: int) -> float:
    """So long jobs and troubles go on to begin, in virtual time."""
    return 300.0 + 4.0 * jobs


def work_plan(jobs: int, seed: int, over_s: float) -> list[tuple[float, int]]:
    """When runs start, and of how many jobs: single ones, matrices, and where there are enough a flood, with quiet ones behind it."""
    rng = random.Random(f"work {seed}")
    made: list[tuple[float, int]] = []
    left, at = jobs, 0.0
    flood: list[tuple[float, int]] = []
    if jobs >= 2 * FLOOD:
        begins = rng.uniform(0.1, 0.6) * over_s
        flood = [(begins, max(FLOOD, jobs // 4)), *((begins + rng.uniform(10.0, 120.0), 1) for _ in range(QUIET))]
        left -= sum(size for _, size in flood)
    while left:
        at += rng.expovariate(left / over_s) if made else 0.0
        size = min(left, rng.choice((1, 1, 1, 2, 3, 8, 12)))
        made.append((at, size))
        left -= size
        over_s = max(1.0, over_s - 1.0)
    return sorted([*made, *flood])


def trouble_plan(seed: int, over_s: float) -> list[tuple[float, str]]:
    """When which fault begins: every kind twice, but for those that end a job for good."""
    rng = random.Random(f"trouble {seed}")
    kinds = [*CATALOGUE, *HOST_FAULTS] * 2
    kinds = [kind for kind in kinds if kind not in TERMINAL] + list(TERMINAL) * 3 + list(SELDOM) * 3
    rng.shuffle(kinds)
    made, at = [], 0.0
    for kind in kinds:
        at += rng.expovariate(len(kinds) / over_s)
        made.append((at, kind))
    return made


async def work(city: City, jobs: int, over_s: float) -> None:
    """Start ``jobs`` jobs within ``over_s``: matrices, gates, a repository that floods, and people who change their minds."""
    began = city.loop.time()
    for number, (at, size) in enumerate(work_plan(jobs, city.seed, over_s)):
        await asyncio.sleep(max(0.0, began + at - city.loop.time()))
        rng = random.Random(f"run {city.seed} {number}")
        start_run(city, rng, size) if size < FLOOD else start_flood(city, rng, size)


def start_flood(city: City, rng: random.Random, size: int) -> None:
    """A matrix that takes all there is, for long, of a repository that has no quota."""
    spec = {"runs-on": "ironcd", "steps": [{"run": "true"}]}
    run = city.github.create_run(FLOODS, {"jobs": {f"job{number}": spec for number in range(size)}})
    for job in run.jobs:
        city.lengths[job.id] = rng.choice((40.0, 120.0, 240.0)) * city.pace
    city.used["flood"] += 1
    city.journal.note(f"run {run.id} of {FLOODS}: a flood of {size} jobs")


def start_run(city: City, rng: random.Random, size: int) -> Run:
    github = city.github
    repo = rng.choice([*github.state.repositories.values()])
    gated = rng.random() < 0.15
    unserved = len(city.labels) > 1 and rng.random() < 0.06
    label = rng.choice(city.labels)
    if repo.owner.login in city.small and label == BIG:  # its quota could never have one
        label = "ironcd"
    spec = {"runs-on": NOBODYS if unserved else label, "steps": [{"run": "true"}]}
    if gated:
        spec["environment"] = "production"
    run = github.create_run(repo.full_name, {"jobs": {f"job{number}": spec for number in range(size)}})
    for job in run.jobs:
        city.lengths[job.id] = rng.choice((2.0, 10.0, 40.0, 120.0, 400.0)) * city.pace
    city.journal.note(f"run {run.id} of {repo.full_name}: {size} jobs{', gated' if gated else ''}")
    if gated:
        city.loop.call_later(rng.uniform(10.0, 200.0) * city.pace, _approve, city, run, rng.random() < 0.85)
    if unserved:
        city.used["label-unserved"] += 1
        city.loop.call_later(rng.uniform(70.0, 200.0), _cancel, city, run, 0.0)
    elif rng.random() < 0.12:
        city.loop.call_later(rng.uniform(0.0, 120.0) * city.pace, _cancel, city, run, rng.random())
    if len(city.labels) > 1 and not unserved and rng.random() < 0.3:
        city.loop.call_later(rng.uniform(60.0, 600.0), _run_again, city, run)
    return run


def _run_again(city: City, run: Run) -> None:
    """A person does, where all of it is over."""
    if run.attempt == 1 and all(job.status == "completed" for job in run.jobs):
        city.used["run-again"] += 1
        city.rerun.add(run.id)
        city.github.engine.rerun(run)
        for job in run.jobs:
            if job.status == "waiting":
                city.loop.call_later(60.0, _approve, city, run, True)


def _approve(city: City, run: Run, approved: bool) -> None:
    for job in city.github.engine.approve(run, approved=approved):
        if not approved:
            city.cancelled.add(job.id)


def _cancel(city: City, run: Run, share: float) -> None:
    for number, job in enumerate(run.jobs):
        if job.status != "completed" and (number + 1) / len(run.jobs) >= share:
            city.cancelled.add(job.id)
            city.journal.note(f"job {job.id} is cancelled")
            city.github.engine.cancel_job(job)


async def trouble(city: City, over_s: float) -> None:
    """Faults of every kind, in an order of their own, all begun within ``over_s``; and processes that die all the while."""
    began = city.loop.time()
    city.deadly = 0.6
    for number, (at, kind) in enumerate(trouble_plan(city.seed, over_s)):
        await asyncio.sleep(max(0.0, began + at - city.loop.time()))
        city.journal.note(f"trouble: {kind}")
        rng = random.Random(f"fault {city.seed} {number}")
        if kind in HOST_FAULTS:
            HOST_FAULTS[kind](city, rng)
        else:
            github_fault(city, kind, rng)
    city.deadly = 0.0


def github_fault(city: City, kind: str, rng: random.Random) -> None:
    known = CATALOGUE[kind]
    late_s = known.by_s * city.pace
    if known.for_s is None:
        count = 1 if kind in TERMINAL else rng.randint(1, 2 * (known.count or 1) + 2)
        order = Order(kind, count=count, for_s=600.0 * city.pace, by_s=late_s)
    else:
        lasts = UNINSTALLED_S if kind in ("uninstalled", "suspended") else rng.uniform(0.3, 1.2) * known.for_s
        order = Order(kind, for_s=lasts * city.pace, chance=0.2 if kind == "errors" else 1.0, by_s=late_s)
    city.github.faults.declare(fault_set(order))


# What befalls hosts, guests and processes


def _crash(city: City, rng: random.Random) -> None:
    if rng.choice(city.hosts).crash_a_guest():
        city.used["guest-crashed"] += 1


def _fate(fate: str) -> object:
    def give(city: City, rng: random.Random) -> None:
        rng.choice(city.hosts).fates.append(fate)

    return give


def _reboot(city: City, rng: random.Random) -> None:
    host = rng.choice(city.hosts)
    if host.up:
        city.used["host-rebooted"] += 1
        host.reboot()


def _cut_off(city: City, rng: random.Random) -> None:
    host = rng.choice(city.hosts)
    city.used["host-cut-off"] += 1
    host.cut_off = True
    city.loop.call_later(rng.choice((20.0, 100.0, 400.0)), setattr, host, "cut_off", False)


def _disk(city: City, rng: random.Random) -> None:
    host = rng.choice(city.hosts)
    city.used["host-disk-full"] += 1
    host.disk_full = True
    city.loop.call_later(rng.uniform(10.0, 90.0), setattr, host, "disk_full", False)


def _kill(name: str) -> object:
    def kill(city: City, rng: random.Random) -> None:
        victim = {"api": city.api, "worker": city.worker}.get(name)
        if victim is not None and victim.running:
            victim.kill()
        host = rng.choice(city.hosts)
        if victim is None and host.agent is not None:
            host.kill_agent()

    return kill


def _gateway(city: City, rng: random.Random) -> None:
    host = rng.choice(city.hosts)
    city.used["killed-gateway"] += 1
    city.kills += 1
    host.gateway.away = True
    host.gateway.links = {}
    city.loop.call_later(rng.uniform(0.5, 8.0), _gateway_back, city, host.name)


def _gateway_back(city: City, name: str) -> None:
    next(host for host in city.hosts if host.name == name).gateway.restart()


def _flush(city: City, rng: random.Random) -> None:
    """Another program flushes the packet filter."""
    city.used["rules-flushed"] += 1
    rng.choice(city.hosts).flushes()


def _redis(city: City, rng: random.Random) -> None:
    city.used["killed-redis"] += 1
    city.kills += 1
    city.memory.away = True
    city.loop.call_later(rng.uniform(1.0, 20.0), setattr, city.memory, "away", False)


def _emptied(city: City, _rng: random.Random) -> None:
    """By a person's mistake, with everything that runs on it restarted."""
    city.used["redis-emptied"] += 1
    city.chronicle.emptied()
    city.memory.empty()
    city.people.forgotten()
    if city.worker.running:
        city.worker.kill()


def _archive(city: City, rng: random.Random) -> None:
    city.used["archive-full"] += 1
    city.archive_full = True
    city.loop.call_later(rng.uniform(10.0, 60.0), setattr, city, "archive_full", False)


def _control_away(city: City, rng: random.Random) -> None:
    """Both of the control plane's processes, for an hour (some of the time for less)."""
    city.used["control-away"] += 1
    city.control_away = True
    for process in (city.api, city.worker):
        if process.running:
            process.kill()
    city.loop.call_later(rng.choice((60.0, 300.0, 3600.0)), city.control_back)


def _api_away(city: City, rng: random.Random) -> None:
    """The API alone, while the worker goes on: hosts and GitHub reach nobody."""
    city.used["api-away"] += 1
    city.api_away = True
    if city.api.running:
        city.api.kill()
    city.loop.call_later(rng.choice((30.0, 250.0, 700.0)), city.api_back)


def _fates(fate: str, most: int) -> object:
    """``fate`` befalls the next so many for which it can."""

    def give(city: City, rng: random.Random) -> None:
        rng.choice(city.hosts).fates += [fate] * rng.randint(1, most)

    return give


def _corrupt(city: City, rng: random.Random) -> None:
    """A template's file isn't what it was."""
    found = [
        path
        for host in city.hosts
        for path in sorted(host.paths.templates.glob("*/state"))
        if path.parent.name[0] != "."
    ]
    if found:
        city.used["template-corrupt"] += 1
        path = rng.choice(found)
        path.chmod(0o600)
        path.write_bytes(path.read_bytes() + b"!")


def _waiting_crashes(city: City, rng: random.Random) -> None:
    found = [
        (host, ulid) for host in city.hosts if host.agent for ulid in sorted(host.agent.pool.ids() & host.guests.keys())
    ]
    if found:
        city.used["waiting-crashed"] += 1
        host, ulid = rng.choice(found)
        host.crash(ulid)


def _memory(city: City, rng: random.Random) -> None:
    city.used["memory-short"] += 1
    host = rng.choice(city.hosts)
    host.memory_tight = True
    city.loop.call_later(rng.uniform(20.0, 120.0), setattr, host, "memory_tight", False)


def _libvirt(city: City, rng: random.Random) -> None:
    city.used["libvirt-away"] += 1
    host = rng.choice(city.hosts)
    host.libvirt_away(True)
    city.loop.call_later(rng.choice((5.0, 40.0, 200.0)), host.libvirt_away, False)


def _skew(city: City, rng: random.Random) -> None:
    """A clock jumps, and is set right again later."""
    city.used["clock-skewed"] += 1
    host = rng.choice(city.hosts)
    host.skew_s = rng.choice((-400.0, -20.0, 3.0, 45.0, 400.0))
    city.loop.call_later(rng.choice((60.0, 600.0)), setattr, host, "skew_s", 0.0)


def _cordon(city: City, rng: random.Random) -> None:
    city.used["host-cordoned"] += 1
    city.start(city.people.cordon(rng.choice(city.hosts).name, rng.choice((30.0, 300.0))))


def _drain(city: City, rng: random.Random) -> None:
    city.used["host-drained"] += 1
    deadline_s = rng.choice((0.0, 60.0, 600.0))
    city.start(city.people.drain(rng.choice(city.hosts).name, rng.choice((120.0, 400.0)), deadline_s))


def _rebuild(city: City, rng: random.Random) -> None:
    city.used["templates-rebuilt"] += 1
    city.start(city.people.rebuild_templates(rng.choice(city.hosts).name))


def _stolen(city: City, rng: random.Random) -> None:
    queued = [job for job in city.github.state.jobs.values() if job.status == "queued" and job.runner is None]
    if queued:
        city.used["job-stolen"] += 1
        city.stranger_takes(rng.choice(queued))


HOST_FAULTS = {
    "guest-crashed": _crash,
    "guest-mute": _fate("guest-mute"),
    "guest-hangs": _fate("guest-hangs"),
    "host-rebooted": _reboot,
    "host-cut-off": _cut_off,
    "host-disk-full": _disk,
    "killed-api": _kill("api"),
    "killed-worker": _kill("worker"),
    "killed-agent": _kill("agent"),
    "killed-gateway": _gateway,
    "rules-flushed": _flush,
    "killed-redis": _redis,
    "redis-emptied": _emptied,
    "archive-full": _archive,
    "control-away": _control_away,
    "api-away": _api_away,
    "job-stolen": _stolen,
    "clone-fails": _fates("clone-fails", 4),
    "template-stuck": _fates("template-stuck", 2),
    "template-corrupt": _corrupt,
    "templates-rebuilt": _rebuild,
    "waiting-crashed": _waiting_crashes,
    "memory-short": _memory,
    "libvirt-away": _libvirt,
    "clock-skewed": _skew,
    "host-cordoned": _cordon,
    "host-drained": _drain,
}
KINDS = {*CATALOGUE, *HOST_FAULTS, "label-unserved", "run-again", "flood"}
"""All that can happen to a system, by the names under which reports count it."""
