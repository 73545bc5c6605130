"""The control plane alone, on a real Redis that syncs each write: a burst of jobs, a pass over a large fleet, what a job costs.

The burst is a matrix of 256 jobs in one run.  Its peer is the queue that such systems hang their handlers on: RQ, running as
many jobs that do nothing on the same Redis.  A pass over 1,000 runners is held against reading and decoding the very
records that it is about, and against itself when one thing has changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import msgspec
import redis
from rich.console import Console
from rq import Queue, SimpleWorker
from rq.serializers import JSONSerializer

from bench.control_memory import FINISHED, measure_memory
from bench.installation import installation
from bench.machine import scratch
from bench.rows import Bench, Figure, Row, in_turns, middle, middles, percentile, row
from bench.table import CAPACITY, Table
from orchestrator.control.records import Sighting
from orchestrator.control.store import Store
from orchestrator.core.wire import Desired

BURST = 256
QUEUED = 64
ROUNDS = 5
HOSTS = 32
FLEET_HOSTS, FLEET = 100, 1000
PASSES = 15
CHANGING = "metal-7"
OUTSIDE = ("info", "ping", "client|setinfo", "hello", "config|get", "select")
"""Commands that are nobody's work."""

PER_SECOND = Figure("control_decisions_per_second", "jobs/s", bar=">= 1.0")
P99 = Figure("control_delivery_to_desired_p99", "ms", bar="<= 0.5")
COMMANDS = Figure("control_redis_commands_per_job", "commands", bar="<= 2.0")
CALLS = Figure("control_github_calls_per_job", "calls", bar="<= 3")
IDLE = Figure("control_pass_nothing_changed", "ms", bar="<= 3.0")
CHANGED = Figure("control_pass_one_change", "ms", bar="<= 4.0")
MEMORY = Figure("control_memory_10000_finished", "MiB", bar="<= 1.1")
REDIS_MEMORY = Figure("control_redis_memory_10000_finished", "MiB", bar="<= 256")
FIGURES = (PER_SECOND, P99, COMMANDS, CALLS, IDLE, CHANGED, MEMORY, REDIS_MEMORY)
RQ = "RQ, jobs that do nothing"

Commands = Callable[[], int]
"""How many Redis has carried out so far."""


def measure(console: Console) -> Iterable[Row]:
    with own_redis() as (url, folder), asyncio.Runner() as loop:
        yield from _burst(url, folder, loop, console)
    with own_redis() as (url, folder), asyncio.Runner() as loop:
        yield from _passes(url, folder, loop, console)
    with own_redis() as (url, folder), asyncio.Runner() as loop:
        yield from _memory(url, folder, loop, console)


@contextlib.contextmanager
def own_redis() -> Iterator[tuple[str, Path]]:
    """A Redis as `ironcd up` starts it, empty; and a folder."""
    with scratch("control") as folder, installation(folder, only=("redis",)) as ours:
        yield ours.settings.redis.url, folder


# The burst


class Burst(msgspec.Struct, frozen=True):
    """``waits``: seconds from each delivery to the desired state that has its runner.  The rest is of jobs' whole lives."""

    seconds: float
    waits: list[float]
    commands: float
    calls: float


def _burst(url: str, folder: Path, loop: asyncio.Runner, console: Console) -> Iterator[Row]:
    table = Table.at(url, folder, hosts=HOSTS)
    loop.run(table.tell())
    base = redis.Redis.from_url(url)
    commands = partial(commands_of, base)
    firsts = iter(range(1_000_000, 9_000_000, BURST))
    alone = [loop.run(burst(table, commands, 1, next(firsts))).waits[0] for _ in range(ROUNDS)]
    ours: list[Burst] = []
    peers: list[tuple[float, float]] = []
    takes: list[Callable[[], object]] = [
        lambda: ours.append(loop.run(burst(table, commands, BURST, next(firsts)))),
        lambda: peers.append(queue_rate(url, commands, QUEUED)),
    ]
    for _ in in_turns(ROUNDS, takes):
        pass
    loop.run(table.close())
    base.close()
    rate, theirs = middle([BURST / one.seconds for one in ours]), middle([jobs for jobs, _ in peers])
    tail, one_by_one = middle([percentile(one.waits, 99) for one in ours]) * 1e3, middle(alone) * 1e3 * BURST
    console.print(
        f"  {rate:.0f} jobs/s placed, {RQ} {theirs:.0f}/s; p99 {tail:.0f} ms, a job alone {middle(alone) * 1e3:.1f} ms"
    )
    note = f"a matrix of {BURST} jobs on {HOSTS} hosts in memory, first delivery to last desired state; median of {ROUNDS} in turns"
    yield row(PER_SECOND, rate, peer=RQ, peer_value=theirs, note=note + "; GitHub's limit on registrations is left out")
    yield row(
        P99, tail, peer=f"one job alone, {BURST} times", peer_value=one_by_one,
        note="from a delivery's arrival to the desired state of the host that is to run it",
    )  # fmt: skip
    yield row(
        COMMANDS, middle([one.commands for one in ours]), peer=f"{RQ}, each", peer_value=middle([each for _, each in peers]),
        note="over a job's whole life, from INFO commandstats, those within scripts and of hosts' reports too",
    )  # fmt: skip
    yield row(CALLS, middle([one.calls for one in ours]), note="over a job's whole life; GitHub allows 5,000 an hour")


async def burst(table: Table, commands: Commands, count: int, first: int) -> Burst:
    """``count`` jobs of one run arrive at once; they are timed until each has its place, and then led to their end."""
    await table.tell()  # hosts that were silent get no runner
    commands_before, calls_before = commands(), len(table.github.calls)
    jobs = table.queue(count, first)
    arrived: dict[int, float] = {}
    told: dict[str, float] = {}
    watching = asyncio.create_task(_watch(table.store, told))
    await asyncio.sleep(0.05)  # until it has subscribed

    async def deliver(job_index: int) -> None:
        arrived[jobs[job_index].id] = time.perf_counter()
        await table.deliver(jobs[job_index])

    began = time.perf_counter()
    delivering = asyncio.gather(*(deliver(index) for index in range(count)))
    while len(told) < count:
        await table.look()
        await asyncio.sleep(0)
        if time.perf_counter() - began > 60:
            raise RuntimeError(f"{len(told)} of {count} jobs have a place after a minute")
    await delivering
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    meant = {record.id: record.life.meant_for for record in await table.store.live_runners()}
    waits = [at - arrived[meant[runner]] for runner, at in told.items()]
    await table.end(await table.to_steps())
    spent, calls = commands() - commands_before, len(table.github.calls) - calls_before
    return Burst(max(told.values()) - began, waits, spent / count, calls / count)


async def _watch(store: Store, told: dict[str, float]) -> None:
    """Read each desired state as a host does that was woken, and note when each runner was first in it."""
    decoder = msgspec.json.Decoder(Desired)
    async for host in store.wakes():
        _, raw = await store.desired(host)
        at = time.perf_counter()
        for wish in decoder.decode(raw).runners if raw is not None else ():
            if wish.wish == "run":
                told.setdefault(wish.id, at)


def queue_rate(url: str, commands: Commands, count: int) -> tuple[float, float]:
    """Jobs a second from the first one's enqueueing to the last one's end, and commands for each."""
    connection = redis.Redis.from_url(url)
    queue = Queue("bench", connection=connection, serializer=JSONSerializer)
    before = commands()
    began = time.perf_counter()
    for _ in range(count):
        queue.enqueue("bench.control.nothing", result_ttl=0)
    SimpleWorker([queue], connection=connection, serializer=JSONSerializer).work(burst=True, logging_level="ERROR")
    rate = count / (time.perf_counter() - began)
    if len(queue):
        raise RuntimeError("RQ left jobs in its queue")
    connection.close()
    return rate, (commands() - before) / count


def nothing() -> None:
    """What RQ runs."""


def commands_of(base: redis.Redis) -> int:
    """How many commands Redis has carried out, those within scripts too."""
    stats = base.info("commandstats")
    assert isinstance(stats, dict)
    return sum(one["calls"] for name, one in stats.items() if name.removeprefix("cmdstat_") not in OUTSIDE)


# The pass


def _passes(url: str, folder: Path, loop: asyncio.Runner, console: Console) -> Iterator[Row]:
    table = Table.at(url, folder, hosts=FLEET_HOSTS)
    loop.run(fleet(table, FLEET))
    runs = [idle, changed, anew]
    nothing_new, one, reading = middles(PASSES, [lambda run=run: loop.run(run(table, url)) * 1e3 for run in runs])
    loop.run(table.close())
    console.print(
        f"  {FLEET} runners: pass {nothing_new:.1f} ms, with a change {one:.1f} ms, reading anew {reading:.1f} ms"
    )
    note = f"a whole look with its lease, {FLEET} runners on {FLEET_HOSTS} hosts; median of {PASSES} in turns"
    yield row(
        IDLE, nothing_new, peer="reading and decoding the same records", peer_value=reading,
        note=note,
    )  # fmt: skip
    yield row(
        CHANGED, one, peer="a pass in which nothing changed", peer_value=nothing_new,
        note="a host reports one mark more of one runner; what that calls for, and a second pass that finds nothing",
    )  # fmt: skip


async def fleet(table: Table, count: int) -> None:
    """``count`` jobs in their steps.  Raises RuntimeError where they don't get there."""
    await table.tell()
    await table.deliver_all(table.queue(count, 1_000_000))
    await table.look()
    given = await table.to_steps()
    await table.look()
    bound = [record for record in await table.store.live_runners() if record.life.bound]
    if len(given) != count or len(bound) != count:
        raise RuntimeError(
            f"{len(given)} of {count} jobs were given, {len(bound)} are bound; a host has room for {CAPACITY}"
        )


async def idle(table: Table, _url: str) -> float:
    return await _timed(table)


async def changed(table: Table, _url: str) -> float:
    host = table.hosts[CHANGING]
    runner = next(iter(host.seen))
    seen = host.seen[runner]
    marks = {**seen.marks, f"mark_{len(seen.marks)}": time.time()}
    host.seen[runner] = msgspec.structs.replace(seen, marks=marks)
    await table.store.put_sighting(Sighting(time.time(), host.report()))
    return await _timed(table)


async def anew(table: Table, url: str) -> float:
    """Read everything that a look reads, and decode it, with no memory of the time before."""
    store = Store.at(url)
    await store.counters()
    began = time.perf_counter()
    snapshot = await store.snapshot()
    took = time.perf_counter() - began
    assert len(snapshot.runners) == FLEET
    assert len(snapshot.sightings) == len(table.hosts)
    await store.close()
    return took


async def _timed(table: Table) -> float:
    began = time.perf_counter()
    await table.look()
    return time.perf_counter() - began


# Memory


def _memory(url: str, folder: Path, loop: asyncio.Runner, console: Console) -> Iterator[Row]:
    found = loop.run(measure_memory(url, folder))
    console.print(
        f"  worker and API: {found.none:.1f} MiB, with {FINISHED} finished jobs {found.full:.1f} MiB; Redis {found.redis:.1f} MiB"
    )
    yield row(
        MEMORY, found.full, peer="with no finished job", peer_value=found.none,
        note="resident, of a process that looks, sweeps, serves metrics and lists a hundred jobs",
    )  # fmt: skip
    yield row(REDIS_MEMORY, found.redis, note="used by Redis with them and their runners; the chart asks for 256 MiB")


BENCH = Bench(FIGURES, measure)
