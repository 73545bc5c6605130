"""One run of the real tier: the shipped processes, their real deaths, and the same oracle.

The seed decides what jobs there are, which faults come, which process is killed, and when.  What the machine makes of it
isn't decided by it: two runs of one seed have the same schedule (`Report.schedule`), not the same outcome.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from redis.exceptions import RedisError

from orchestrator.core.errors import IronCDError
from orchestrator.simulator.github import Simulator
from orchestrator.simulator.github.catalogue import CATALOGUE
from tests.chaos import trouble
from tests.chaos.city import REPOSITORIES
from tests.chaos.oracle import Oracle
from tests.chaos.real_city import RealCity
from tests.chaos.run import ByPlan, Outcome, outcome, spoil

HOSTS = 2
LIMIT_S = 240.0
"""After the last trouble."""
TELL_S = 10.0
LEASE_S = 20.0
PATIENCE_S = 30.0
"""Before a job must say for what it waits: a worker that was killed is started again within this on a slow machine too."""
LONG = {
    "jit-timeout",
    "slow",
    "rate-limit-pause",
    "rate-limit-wordless",
    "suspended",
    "uninstalled",
    "busy-lies",
    "ghost",
}
"""Left to the other tier: by the rules of GitHub or of ours they take a minute or more of real time."""
FAULTS = tuple(sorted(set(CATALOGUE) - LONG - set(trouble.TERMINAL)))


class Report(ByPlan, kw_only=True):
    spoiled: Outcome | None = None
    """What the same end was found to be after a sabotage that came behind the report (``then``)."""


Plan = list[tuple[float, str, str]]
"""Seconds from the start, ``run``, ``fault`` or ``kill``, and which; in order."""


def plan(jobs: int, seed: int, hosts: int = HOSTS) -> Plan:
    """Every kind of process is killed at least once; jobs and faults come in between."""
    rng = random.Random(seed)
    over_s = 6.0 + 0.6 * jobs
    names = ["redis", "control", "worker"]
    names += [f"{kind}-h{number}" for number in range(1, hosts + 1) for kind in ("agent", "gateway")]
    kills = names + [rng.choice(names) for _ in range(jobs // 8)]
    faults = rng.sample(FAULTS, min(len(FAULTS), 3 + jobs // 4))
    made: Plan = [(rng.uniform(1.0, over_s), "kill", name) for name in kills]
    made += [(rng.uniform(0.0, over_s), "fault", name) for name in [*faults, "rules-flushed"]]
    left = jobs
    while left:
        size = min(left, rng.choice((1, 1, 2, 3)))
        made.append((rng.uniform(0.0, over_s) if left < jobs else 0.0, "run", str(size)))
        left -= size
    # The last one starts when nothing is killed any more, so something is served on any machine.
    *others, (_, _, size) = [step for step in made if step[1] == "run"]
    made = [step for step in made if step[1] != "run"] + others
    return [*sorted(made), (over_s, "run", size)]


def run(
    jobs: int,
    seed: int,
    *,
    journal: Path | None = None,
    sabotage: str = "",
    then: str = "",
    told: Callable[[str], None] = lambda _what: None,
) -> Report:
    """``told`` is called with a line for people every few seconds."""
    with (
        tempfile.TemporaryDirectory(prefix="icdt-") as folder,
        Simulator(repositories=REPOSITORIES, shared_keys=1) as simulator,
    ):
        city = RealCity(simulator, Path(folder), seed, hosts=HOSTS)
        try:
            city.supervisor.start()
            loop = simulator.call(asyncio.get_running_loop)
            return asyncio.run_coroutine_threadsafe(_run(city, jobs, seed, sabotage, then, told), loop).result()
        finally:
            city.stop()
            if journal is not None:
                logs = [f"== {path.name}\n{path.read_text(errors='replace')}" for path in Path(folder).glob("*.log")]
                journal.write_text("\n".join([*(city.journal._lines or ()), *logs]) + "\n")


async def _run(city: RealCity, jobs: int, seed: int, sabotage: str, then: str, told: Callable[[str], None]) -> Report:
    began = time.monotonic()
    city.begin()
    oracle = Oracle(city)
    oracle.patience_s = PATIENCE_S
    schedule = plan(jobs, seed)
    telling = asyncio.ensure_future(_tell(city, jobs, told))
    try:
        playing = asyncio.ensure_future(_play(city, schedule))
        while not playing.done():
            await _look(oracle)
        await playing
        city.github.faults.clear()
        ends = time.monotonic() + LIMIT_S
        while time.monotonic() < ends and not await _at_rest(oracle):
            await _look(oracle)
        spoil(city, sabotage)
        report = await _report(city, oracle, seed, schedule, began, jobs)
        if then:
            spoil(city, then)
            report.spoiled = await _judged(city, oracle, jobs)
        return report
    finally:
        telling.cancel()
        await oracle.store.client.aclose()
        await city.close()


async def _play(city: RealCity, schedule: Plan) -> None:
    began = time.monotonic()
    for number, (at, what, which) in enumerate(schedule):
        await asyncio.sleep(max(0.0, began + at - time.monotonic()))
        rng = random.Random(f"real {city.seed} {number}")  # what a step does doesn't depend on how those before it went
        match what:
            case "kill":
                await city.kill(which)
            case "run":
                trouble.start_run(city, rng, int(which))
            case _ if which == "rules-flushed":
                city.used[which] += 1
                rng.choice(city.hosts).flushes()
            case _:
                city.journal.note(f"trouble: {which}")
                trouble.github_fault(city, which, rng)


async def _tell(city: RealCity, jobs: int, told: Callable[[str], None]) -> None:
    while True:
        await asyncio.sleep(TELL_S)
        over = sum(1 for job in city.github.state.jobs.values() if job.status == "completed")
        told(f"{over} of {jobs} jobs are over, {city.kills} killed")


async def _look(oracle: Oracle) -> None:
    await asyncio.sleep(0.5)
    with contextlib.suppress(RedisError, IronCDError, OSError):
        await oracle.look()


async def _at_rest(oracle: Oracle) -> bool:
    try:
        return await oracle.at_rest()
    except (RedisError, IronCDError, OSError):
        return False


async def _judged(city: RealCity, oracle: Oracle, jobs: int) -> Outcome:
    """The worker holds its lease for each look, also for one at which nothing is to be done; a lease that stays is left."""
    ends = time.monotonic() + LEASE_S
    while True:
        found = await outcome(city, oracle, jobs, city.broken())
        if not found.leaked["redis_keys"] or time.monotonic() > ends:
            return found
        await asyncio.sleep(0.05)


async def _report(city: RealCity, oracle: Oracle, seed: int, schedule: Plan, began: float, jobs: int) -> Report:
    found = await _judged(city, oracle, jobs)
    return Report(
        **msgspec.structs.asdict(found),
        tier="real",
        killed={kind.removeprefix("killed-"): n for kind, n in sorted(city.used.items()) if kind.startswith("killed-")},
        seed=seed,
        schedule=hashlib.sha256(repr(schedule).encode()).hexdigest(),
        replays_exactly=False,
        seconds=round(time.monotonic() - began, 1),
    )
