"""What the control plane holds in memory: ``python -m bench.control_memory URL FOLDER`` works for a while and prints it.

It is a process of its own, since a process never gives back what it once took.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

import msgspec
import structlog
from ulid import ULID

from bench.table import Table
from orchestrator.control import metrics
from orchestrator.control.records import JobRecord, RunnerRecord
from orchestrator.system.process import run

FINISHED = 10_000
LOOKS = 20
AT_ONCE = 500


class Memory(msgspec.Struct, frozen=True):
    """MiB: of the process with no finished job and with all, and what Redis uses with all."""

    none: float
    full: float
    redis: float


async def measure_memory(url: str, folder: Path) -> Memory:
    none = _of_a_process(url, folder)
    table = Table.at(url, folder, hosts=1)
    await table.tell()
    await table.deliver_all(table.queue(1, 1))
    await table.look()
    await table.end(await table.to_steps())
    (job,) = await table.store.latest_finished_jobs(1)
    (runner,) = await table.store.latest_gone_runners(1)
    await _copy(table, job, runner)
    used = (await table.store.client.info("memory"))["used_memory"]
    await table.close()
    return Memory(none, _of_a_process(url, folder), used / 2**20)


async def _copy(table: Table, job: JobRecord, runner: RunnerRecord) -> None:
    """`FINISHED` jobs with their runners, as alike as the two."""
    lease = await table.store.acquire()
    assert lease is not None
    changes = table.store.changes()
    for number in range(2, FINISHED + 1):
        life = msgspec.structs.replace(runner.life, id=str(ULID()), job_id=number, meant_for=number)
        one = msgspec.structs.replace(job.job, id=number, runner=life.id)
        changes.finish_runner(msgspec.structs.replace(runner, life=life))
        changes.finish_job(msgspec.structs.replace(job, job=one, runners=(life.id,)))
        if number % AT_ONCE == 0:
            await table.store.commit(lease, changes)
    if changes:
        await table.store.commit(lease, changes)
    await table.store.release(lease)


def _of_a_process(url: str, folder: Path) -> float:
    return float(run([sys.executable, "-m", "bench.control_memory", url, str(folder)], timeout_s=60))


async def work(url: str, folder: Path) -> None:
    """Do what worker and API do."""
    table = Table.at(url, folder, hosts=1)
    for _ in range(LOOKS):
        await table.tell()
        await table.look()
        await metrics.scrape(table.store)
        await table.store.latest_finished_jobs(100)
    await table.close()


def resident() -> float:
    """MiB of this process."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    asyncio.run(work(sys.argv[1], Path(sys.argv[2])))
    print(resident())
