"""Deliveries that were accepted and then lost, when a process is killed at a random moment of a burst: there must be none.

Each round sends a burst of 50 to a whole control plane with a host's agent, and kills one of its processes with SIGKILL
once a random number of answers has come.  A delivery counts as accepted where its sender read the 202, and as lost where
the control plane, started again, doesn't know its job.  Every process takes its turn; the seed is in the row's note.
"""

from __future__ import annotations

import http.client
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx
from rich.console import Console

from bench.deliveries import Deliveries, Signed
from bench.installation import Installation, installation
from bench.machine import scratch
from bench.rows import Bench, Figure, Row, row

KILLED = ("control", "worker", "agent", "redis")
ROUNDS = 3
BURST = 50
SENDERS = 8
RECOVERED_WITHIN_S = 60.0

LOST = Figure("lost_after_kill", "deliveries", bar="<= 0")


def measure(console: Console) -> Iterable[Row]:
    seed = int(os.environ.get("BENCH_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
    chance = random.Random(seed)
    accepted = lost = 0
    with scratch("durability") as folder, installation(folder, only=("redis", "control", "worker", "agent")) as ours:
        repo = f"{ours.github['org']}/app"
        deliveries = Deliveries(ours.secret, repo=repo, installation=ours.github["installation_id"])
        for round_ in range(ROUNDS * len(KILLED)):
            name = KILLED[round_ % len(KILLED)]
            taken = burst(ours, deliveries.make(BURST), name, after=chance.randrange(BURST))
            unknown = wait_for(ours, [one.job for one in taken])
            console.print(f"  killed {name}: {len(taken)} of {BURST} accepted, {len(unknown)} lost")
            accepted += len(taken)
            lost += len(unknown)
    note = (
        f"{accepted} accepted in {ROUNDS * len(KILLED)} bursts of {BURST}, with kill -9 of {', '.join(KILLED)} in turn; "
        f"seed {seed}, again with BENCH_SEED={seed}"
    )
    if accepted < BURST:
        raise RuntimeError(f"only {accepted} deliveries were accepted at all")
    yield row(LOST, lost, note=note)


def burst(ours: Installation, deliveries: Sequence[Signed], name: str, *, after: int) -> list[Signed]:
    """Those of ``deliveries`` that were accepted while ``name`` was killed once ``after`` of them had been answered."""
    answers = Countdown(after, lambda: ours.stack.kill(name))
    with ThreadPoolExecutor(SENDERS) as pool:
        statuses = list(pool.map(lambda one: answers.passed(_send(ours.receiver, one)), deliveries))
    ours.stack.wait_ready(name)
    return [one for one, status in zip(deliveries, statuses, strict=True) if status == 202]


def wait_for(ours: Installation, jobs: Iterable[int]) -> set[int]:
    """Those of ``jobs`` that the control plane still doesn't know after a while."""
    until = time.monotonic() + RECOVERED_WITHIN_S
    unknown = set(jobs)
    url = f"http://{ours.settings.control.listen}/api/v1/jobs"
    token = ours.settings.control.admin_token_file.read_text()
    with httpx.Client(headers={"Authorization": f"Bearer {token}"}, timeout=10, trust_env=False) as client:
        while unknown and time.monotonic() < until:
            unknown -= {job for job in unknown if _is_known(client, f"{url}/{job}")}
            time.sleep(0.2)
    return unknown


def _is_known(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(url).status_code == 200
    except httpx.HTTPError:
        return False


def _send(address: tuple[str, int], delivery: Signed) -> int:
    """The status of the answer; 0 where there was none."""
    client = http.client.HTTPConnection(*address, timeout=15)
    try:
        client.request("POST", "/webhook", delivery.body, dict(delivery.headers()))
        return client.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        client.close()


class Countdown:
    """Calls ``then`` once, as the answer after the first ``count`` comes in."""

    def __init__(self, count: int, then: Callable[[], object]) -> None:
        self._left = count
        self._then = then
        self._lock = threading.Lock()

    def passed(self, status: int) -> int:
        with self._lock:
            self._left -= 1
            due = self._left == -1
        if due:
            self._then()
        return status


BENCH = Bench((LOST,), measure)
