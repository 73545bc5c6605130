"""The line of waiting jobs: what ten thousand of them cost a look at full hosts, and what it costs to tell each its place.

Both are held against reading and decoding the very records that they are about.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from bench.control import FLEET, FLEET_HOSTS, fleet, own_redis
from bench.rows import Bench, Figure, Row, middles, row
from bench.table import INSTALLATION, ORG, Table
from orchestrator.control.explain_wait import Waits
from orchestrator.control.records import JobRecord
from orchestrator.control.store import Store
from orchestrator.core.job import Job, Moment

WAITING, REPOS = 10_000, 200
PASSES = 9
AT_ONCE = 500

LOOK = Figure("line_pass_10000_waiting", "ms", bar="<= 3.0")
PLACES = Figure("line_places_of_10000", "ms", bar="<= 3.0")
FIGURES = (LOOK, PLACES)
READING = "reading and decoding the same records"


def measure(console: Console) -> Iterable[Row]:
    with own_redis() as (url, folder), asyncio.Runner() as loop:
        yield from _line(url, folder, loop, console)


def _line(url: str, folder: Path, loop: asyncio.Runner, console: Console) -> Iterable[Row]:
    table = Table.at(url, folder, hosts=FLEET_HOSTS)
    loop.run(fleet(table, FLEET))
    loop.run(fill(table, WAITING))
    runs = [look, places, anew]
    looking, telling, reading = middles(PASSES, [lambda run=run: loop.run(run(table, url)) * 1e3 for run in runs])
    loop.run(table.close())
    console.print(
        f"  {WAITING} waiting: look {looking:.0f} ms, all places {telling:.0f} ms, reading anew {reading:.0f} ms"
    )
    note = f"{WAITING} jobs of {REPOS} repositories wait, {FLEET} runners on {FLEET_HOSTS} full hosts; median of {PASSES} in turns"
    yield row(LOOK, looking, peer=READING, peer_value=reading, note="a whole look with its lease; " + note)
    yield row(
        PLACES, telling, peer=READING, peer_value=reading, note="read, and each with its place and reason; " + note
    )


async def fill(table: Table, count: int) -> None:
    """``count`` jobs that wait for room, as they are known once their policies were read."""
    lease = await table.store.acquire()
    assert lease is not None
    now = time.time()
    for first in range(0, count, AT_ONCE):
        changes = table.store.changes()
        for number in range(first, min(count, first + AT_ONCE)):
            changes.put_job(waiting(number, now))
        await table.store.commit(lease, changes)
    await table.store.release(lease)
    await table.tell()
    await table.look()


def waiting(number: int, now: float) -> JobRecord:
    labels = ("ironcd",) if number % 3 else ("ironcd-4cpu-8gb",)
    job = Job(
        id=5_000_000 + number, installation=INSTALLATION, org=ORG, repo=f"{ORG}/r{number % REPOS}", state="queued",
        labels=labels, run_id=number, name=f"build ({number})", workflow="ci", head_sha=f"{number:040x}",
        created_at=now - 60 + number / 1000, served="yes", story=(Moment(now, "queued", "delivery received"),),
    )  # fmt: skip
    return JobRecord(job, checked_at=now)


async def look(table: Table, _url: str) -> float:
    await table.tell()
    began = time.perf_counter()
    await table.look()
    took = time.perf_counter() - began
    runners = await table.store.live_runners()
    assert len(runners) == FLEET, "the hosts are full"
    return took


async def places(table: Table, url: str) -> float:
    store = Store.at(url)
    await store.counters()
    began = time.perf_counter()
    snapshot = await store.standing()
    waits = Waits(snapshot, table.settings, time.time())
    found = [wait for record in snapshot.jobs.values() if (wait := waits.of(record)) is not None]
    took = time.perf_counter() - began
    assert sorted(wait.place for wait in found) == list(range(1, WAITING + 1))
    assert all(wait.kind == "room" for wait in found)
    await store.close()
    return took


async def anew(table: Table, url: str) -> float:
    store = Store.at(url)
    await store.counters()
    began = time.perf_counter()
    snapshot = await store.standing()
    took = time.perf_counter() - began
    assert len(snapshot.runners) == FLEET
    assert len(snapshot.jobs) == FLEET + WAITING
    assert len(snapshot.sightings) == len(table.hosts)
    await store.close()
    return took


BENCH = Bench(FIGURES, measure)
