"""One run: so many jobs, a seed, and what came of it (`Report`, as ``build/chaos.json`` has it)."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import msgspec

from policies import baseline_policy, load_presets
from tests.chaos import fairness, stories, trouble
from tests.chaos.city import City, spare_key
from tests.chaos.clockwork import Loop, install
from tests.chaos.forks import in_a_fork
from tests.chaos.lot import HOSTS
from tests.chaos.oracle import Oracle
from tests.chaos.sabotage import LATER, PLANTED, SABOTAGES

HARNESS = 5
"""Of which version this is.  It grows when the same seed plays another history than before: a seed is of one harness."""
LOOK_S = 30.0
LIMIT_S = 6 * 3600.0
"""Of virtual time, after the last trouble."""
LEASE_S = 20.0
"""The worker holds its lease for each look, also for one at which nothing is to be done.  One that stays is left."""


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
    run_again: int
    """Jobs of later attempts, beside those that were asked for."""
    ok: bool


class ByPlan(Outcome, kw_only=True):
    """What the tiers report that are real: they follow a plan, and take the time they take."""

    tier: str
    killed: dict[str, int]
    """By kind of process."""
    seed: int
    schedule: str
    """Digest of the plan: the same for each run of one seed."""
    replays_exactly: bool
    seconds: float


class Report(Outcome, kw_only=True):
    harness: int
    seed: int
    digest: str
    """Of the journal: the same for each run of one seed."""
    hours: float
    """Of virtual time"""
    unreasoned: int
    """Jobs that waited at some time and whose story has no reason for it."""
    starved: int
    """Jobs that were made to wait while machines went to somebody who wasn't to come before them."""
    overtook: int
    """Machines that were placed for somebody with few while older jobs of somebody with more waited."""
    starts: dict[str, int]
    """How runners' machines were started, as far as Redis has it."""


def prepare() -> None:
    """Load what every run needs, before processes are forked that each play one."""
    load_presets()
    baseline_policy()
    spare_key()
    importlib.import_module("anyio._backends._asyncio")


def run(jobs: int, seed: int, *, journal: Path | None = None, sabotage: str = "") -> Report:
    lines: list[str] | None = None if journal is None else []
    PLANTED.get(sabotage, _leave_alone)()
    try:
        with played(jobs, seed, lines) as (loop, city, oracle):
            return loop.run_until_complete(judged(city, oracle, jobs, seed, sabotage))
    finally:
        if journal is not None:
            journal.write_text("\n".join(lines or ()) + "\n")


def run_judged(jobs: int, seed: int, sabotages: Sequence[str] = ()) -> bytes:
    """The report as a line of JSON; with ``sabotages`` the same end is judged once for each, and they come in a list.

    One that is planted before all begins has the run to itself.
    """
    planted = [sabotage for sabotage in sabotages if sabotage in PLANTED]
    if planted:
        return msgspec.json.encode(run(jobs, seed, sabotage=planted[0]))
    with played(jobs, seed) as (loop, city, oracle):

        def judge(sabotage: str = "") -> bytes:
            return msgspec.json.encode(loop.run_until_complete(judged(city, oracle, jobs, seed, sabotage)))

        if not sabotages:
            return judge()
        there = set(city.folder.rglob("*"))
        found = []
        for sabotage in sabotages:
            found.append(in_a_fork(partial(judge, sabotage)))
            for path in set(city.folder.rglob("*")) - there:  # a fork has its own memory, and no disk of its own
                path.unlink()
        return b"[" + b",".join(found) + b"]"


@contextlib.contextmanager
def played(jobs: int, seed: int, lines: list[str] | None = None) -> Iterator[tuple[Loop, City, Oracle]]:
    """The city when all is over, who judges it, and the loop that both live in."""
    loop = Loop()
    install(loop)
    asyncio.set_event_loop(loop)
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="ironcd-chaos-", dir=shm if shm.is_dir() else None) as folder:
        city, oracle, clockwork = loop.run_until_complete(_begun(loop, Path(folder), seed, lines))
        try:
            loop.run_until_complete(_play(city, oracle, jobs))
            yield loop, city, oracle
        finally:
            clockwork.cancel()
            loop.run_until_complete(city.close())
            loop.close()


async def _begun(
    loop: Loop, folder: Path, seed: int, lines: list[str] | None
) -> tuple[City, Oracle, asyncio.Future[None]]:
    city = City(loop, folder, seed, hosts=len(HOSTS), lines=lines)
    return city, Oracle(city), asyncio.ensure_future(city.clockwork())


async def _play(city: City, oracle: Oracle, jobs: int) -> None:
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
    ends = city.loop.time() + LIMIT_S
    wound_down = False
    while city.loop.time() < ends and (city.memory.away or not await oracle.at_rest()):
        if not city.memory.away:
            await oracle.give_up()
        if not wound_down and all(job.status == "completed" for job in city.github.state.jobs.values()):
            city.wind_down()
            wound_down = True
        await asyncio.sleep(LOOK_S)
        await oracle.look()


def _leave_alone() -> None:
    """No fault is planted."""


async def judged(city: City, oracle: Oracle, jobs: int, seed: int, sabotage: str = "") -> Report:
    spoil(city, sabotage)
    if sabotage in LATER:
        await LATER[sabotage](city, oracle)
    assert city.rules is not None
    city.rules.look()
    decided, starts = await city.rules.decided(oracle.store)
    silent = stories.unreasoned(city)
    fair = fairness.judged(city)
    found = await outcome(city, oracle, jobs, [*decided, *map(str, silent), *fair.words()])
    return Report(
        **msgspec.structs.asdict(found),
        unreasoned=len({gap.job for gap in silent} | oracle.unreasoned),
        starved=len(fair.starved),
        overtook=fair.overtook,
        starts=dict(sorted(starts.items())),
        harness=HARNESS,
        seed=seed,
        digest=city.journal.digest,
        hours=round(city.loop.time() / 3600, 2),
    )


def spoil(city: City, what: str) -> None:
    """Do what the oracle must find."""
    match what:
        case "lose-a-job":
            jobs = city.github.state.jobs.values()
            job = next(job for job in jobs if city.taken.get(job.id) and job.conclusion == "success")
            del city.taken[job.id]
            job.conclusion = "failure"
        case "leave-a-disk":
            (city.hosts[0].paths.disks / "left-behind.qcow2").touch()  # not by a name that an agent sweeps
        case "touch-a-stranger":
            runner = next(it for it in city.github.state.runners.values() if it.name == "their-runner")
            del city.github.state.runners[runner.id]
        case _ if not what or what in PLANTED:
            pass
        case _:
            SABOTAGES[what](city)


async def _leaked(oracle: Oracle) -> dict[str, list[str]]:
    loop = asyncio.get_running_loop()
    ends = loop.time() + LEASE_S
    while True:
        leaked = await oracle.leaked()
        if oracle.store.names.lease not in leaked["redis_keys"] or loop.time() >= ends:
            return leaked
        await asyncio.sleep(0.05)


async def outcome(city: City, oracle: Oracle, jobs: int, broken: Iterable[str] = ()) -> Outcome:
    """``broken``: what else is wrong, beside what the oracle and the journal know."""
    kinds, wrong = await oracle.ends()
    leaked = await _leaked(oracle)
    again = sum(job.attempt > 1 for job in city.github.state.jobs.values())
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
        run_again=again,
        ok=not wrong and not foreign and sum(kinds.values()) == jobs + again,
    )
