"""One run: so many jobs, a seed, and what came of it (`Report`, as ``build/chaos.json`` has it)."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import msgspec

from tests.chaos import trouble
from tests.chaos.city import City
from tests.chaos.clockwork import Loop, install
from tests.chaos.oracle import Oracle

HOSTS = 3
LOOK_S = 30.0
LIMIT_S = 6 * 3600.0
"""Of virtual time, after the last trouble."""


class Outcome(msgspec.Struct, kw_only=True):
    """What both tiers report."""

    jobs: int
    served: int
    lost: int
    served_twice: int
    ends: dict[str, int]
    """How jobs ended, by kind; ``served`` counts those that ran to their end on a machine of ours."""
    leaked: dict[str, int]
    foreign_gone: list[str]
    faults: dict[str, int]
    kills: int
    wrong: list[str]
    ok: bool


class Report(Outcome, kw_only=True):
    seed: int
    digest: str
    """Of the journal: the same for each run of one seed."""
    hours: float
    """Of virtual time"""


def run(jobs: int, seed: int, *, journal: Path | None = None, sabotage: str = "") -> Report:
    loop = Loop()
    install(loop)
    asyncio.set_event_loop(loop)
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="ironcd-chaos-", dir=shm if shm.is_dir() else None) as folder:
        try:
            lines: list[str] | None = None if journal is None else []
            return loop.run_until_complete(_run(loop, Path(folder), jobs, seed, lines, sabotage))
        finally:
            loop.close()
            if journal is not None:
                journal.write_text("\n".join(lines or ()) + "\n")


async def _run(loop: Loop, folder: Path, jobs: int, seed: int, lines: list[str] | None, sabotage: str) -> Report:
    city = City(loop, folder, seed, hosts=HOSTS, lines=lines)
    oracle = Oracle(city)
    clockwork = asyncio.ensure_future(city.clockwork())
    try:
        await asyncio.sleep(30.0)
        over_s = trouble.span_s(jobs)
        busy = [
            asyncio.ensure_future(trouble.work(city, jobs, over_s)),
            asyncio.ensure_future(trouble.trouble(city, over_s)),
        ]
        while not all(task.done() for task in busy):
            await asyncio.sleep(LOOK_S)
            await oracle.look()
        await asyncio.gather(*busy)
        city.github.faults.clear()
        ends = loop.time() + LIMIT_S
        while loop.time() < ends and not await oracle.at_rest():
            await asyncio.sleep(LOOK_S)
            await oracle.look()
        spoil(city, sabotage)
        found = await outcome(city, oracle, jobs)
        return Report(
            **msgspec.structs.asdict(found),
            seed=seed,
            digest=city.journal.digest,
            hours=round(city.loop.time() / 3600, 2),
        )
    finally:
        clockwork.cancel()
        await city.close()


def spoil(city: City, what: str) -> None:
    """Do what the oracle must find."""
    match what:
        case "lose-a-job":
            job = next(job for job in city.github.state.jobs.values() if city.taken.get(job.id))
            del city.taken[job.id]
            job.conclusion = "failure"
        case "leave-a-disk":
            (city.hosts[0].paths.disks / "left-behind.qcow2").touch()  # not by a name that an agent sweeps
        case "touch-a-stranger":
            runner = next(it for it in city.github.state.runners.values() if it.name == "their-runner")
            del city.github.state.runners[runner.id]
        case _:
            pass


async def outcome(city: City, oracle: Oracle, jobs: int, broken: Iterable[str] = ()) -> Outcome:
    """``broken``: what else is wrong, beside what the oracle and the journal know."""
    kinds, wrong = await oracle.ends()
    leaked = await oracle.leaked()
    foreign = oracle.foreign_gone()
    wrong += [f"left: {kind} {things}" for kind, things in leaked.items() if things]
    wrong += [*city.journal.faults, *broken]
    return Outcome(
        jobs=jobs,
        served=kinds["served"],
        lost=kinds["lost"],
        served_twice=kinds["served_twice"],
        ends=dict(sorted(kinds.items())),
        leaked={kind: len(things) for kind, things in leaked.items()},
        foreign_gone=foreign,
        faults=dict(sorted((Counter(city.github.faults.used) + city.used).items())),
        kills=city.kills,
        wrong=wrong,
        ok=not wrong and not foreign and sum(kinds.values()) == jobs,
    )
