"""Crashes and lost answers at every line that leaves something behind: the job is served once and nothing is left.

The scenario is run once to count the calls to GitHub and the writes to Redis; then once for each of them, with the
worker dying just before it took effect, or just after, or with the answer lost.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.control.changes import Changes
from orchestrator.control.github import RateLimited, Unavailable
from orchestrator.control.store import Lease

from .outside import Died, has_died
from .stage import Host, Stage


class Trouble:
    """Raises ``make()`` at the n-th point (from 1) where something takes effect; counts points all along."""

    def __init__(self, at: int, make: Callable[[], BaseException], *, store: bool) -> None:
        self.at = at
        self.make = make
        self.store = store
        self.points = 0

    def __call__(self, *_: Any) -> None:
        self.points += 1
        if self.points == self.at:
            raise self.make()

    def set_up(self, stage: Stage) -> None:
        stage.github.trouble = self
        commit = stage.store.commit

        async def troubled(lease: Lease, changes: Changes) -> None:
            self()
            await commit(lease, changes)
            self()

        if self.store:
            stage.store.commit = troubled  # type: ignore[method-assign]


async def play(stage: Stage) -> None:
    """Three jobs: one that runs, one that is cancelled before it starts, one that was stolen by the first's runner."""
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    await stage.deliver(stage.job(2))
    await stage.deliver(stage.job(3))
    await survive(stage)
    await stage.hosts_move()
    if 2 not in stage.started:
        await stage.deliver(stage.github.end(2, "cancelled"))
    for _ in range(60):
        await survive(stage)
        await stage.hosts_move()
        for job in stage.github_assigns():
            await stage.deliver(job)
        for record in await stage.store.live_runners():
            job_now = stage.github.jobs.get(record.life.job_id)
            if job_now is not None and job_now.state == "in_progress" and record.life.bound:
                await stage.deliver(stage.github.end(job_now.id))
        stage.now += 2.0
        if await at_rest(stage):
            break
    stage.github.trouble = lambda *_: None
    for _ in range(200):
        await survive(stage)
        await stage.hosts_move()
        stage.now += 10.0
        if await at_rest(stage):
            break


async def at_rest(stage: Stage) -> bool:
    over = all(job.over for job in stage.github.jobs.values())
    return over and not await stage.store.live_runners() and not await stage.store.live_jobs()


async def survive(stage: Stage) -> None:
    try:
        await stage.look()
    except BaseException as error:
        if not has_died(error):
            raise
        await stage.redis.delete(stage.store.names.lease)
        stage.reconciler = stage.fresh()


async def points_of(folder: Path, *, store: bool) -> int:
    stage = Stage(folder, hosts=[Host("h1", 4), Host("h2", 2)])
    trouble = Trouble(0, Died, store=store)
    trouble.set_up(stage)
    await play(stage)
    await check(stage)
    await stage.close()
    return trouble.points


async def check(stage: Stage) -> None:
    assert await stage.leftovers() == {}
    for job_id in (1, 2, 3):
        record = await stage.job_record(job_id)
        assert record.job.state == "completed"
        assert record.job.conclusion == ("success" if job_id in stage.started else "cancelled")
        assert len(stage.started.get(job_id, [])) <= 1
    assert {1, 3} <= stage.started.keys()
    for record in await stage.store.latest_gone_runners(100):
        assert record.life.phase == "GONE"
        if record.life.vm == "gone":
            assert record.proof is not None
            assert record.proof.whole


@pytest.mark.parametrize("kind", ["died", "unavailable", "limited"])
async def test_at_every_point(kind: str, tmp_path: Path) -> None:
    make: Callable[[], BaseException] = {
        "died": Died,
        "unavailable": lambda: Unavailable("no answer"),
        "limited": lambda: RateLimited("slow down", 3.0),
    }[kind]
    points = await points_of(tmp_path, store=kind == "died")
    assert points >= (40 if kind == "died" else 15)
    for at in range(1, points + 1):
        stage = Stage(tmp_path, hosts=[Host("h1", 4), Host("h2", 2)])
        trouble = Trouble(at, make, store=kind == "died")
        trouble.set_up(stage)
        try:
            await play(stage)
            await check(stage)
        except AssertionError as error:
            raise AssertionError(f"trouble at point {at} of {points}") from error
        assert trouble.points >= at
        await stage.close()


async def test_a_look_ends_though_the_lease_keepers_cancellation_got_lost(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def keep(_lease: Lease) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        await asyncio.sleep(3600)

    monkeypatch.setattr(stage.reconciler, "_keep", keep)
    assert await asyncio.wait_for(stage.look(), 60)
