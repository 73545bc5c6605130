"""Somebody sets the clock of the control plane's machine while a job runs."""

from __future__ import annotations

import msgspec
import pytest

from orchestrator.control.clock_set import reckoned
from orchestrator.core.clocks import SET_S, Reckoned, is_news, was_set
from orchestrator.core.wire import Desired, DesiredRunner

from .stage import Stage

HOUR = 3600.0
LIFE_S = 6 * HOUR


class Clocked:
    """A stage with a second clock, which nobody sets."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.ahead, self.boot = stage, 0.0, "boot-1"
        self.begun = stage.now
        self.work_anew()

    def work_anew(self) -> None:
        """A worker that knows nothing of the one before."""
        self.stage.reconciler = self.stage.fresh()
        self.stage.reconciler._reckon = lambda: Reckoned(self.boot, self.begun + self.ahead)

    def set_clock(self, by: float) -> None:
        self.stage.now += by
        self.ahead += by

    async def turn(self, seconds: float = 10.0) -> None:
        await self.stage.store.note_listening(self.stage.now)
        await self.stage.hosts_move()
        await self.stage.look()
        self.stage.now += seconds

    async def phase(self) -> str:
        return ",".join([record.life.phase for record in await self.stage.runners()])

    async def wish(self) -> DesiredRunner:
        _, raw = await self.stage.store.desired("h1")
        assert raw is not None
        (wish,) = msgspec.json.decode(raw, type=Desired).runners
        return wish


@pytest.fixture
async def running(stage: Stage) -> Clocked:
    """A job runs, of a class that may live six hours; an hour of them has passed."""
    clocked = Clocked(stage)
    await stage.deliver(stage.job(1))
    for _ in range(3):
        await clocked.turn()
    for job in stage.github_assigns():
        await stage.deliver(job)
    await clocked.turn()
    await clocked.turn()
    assert await clocked.phase() == "RUNNING"
    return clocked


@pytest.mark.parametrize("anew", [False, True], ids=["this-worker", "the-next"])
@pytest.mark.parametrize("by", [HOUR, 7 * HOUR, -HOUR, -30 * HOUR], ids=lambda by: f"{by / HOUR:+.0f}h")
async def test_nothing_ends_by_it_and_nothing_lives_longer(running: Clocked, by: float, anew: bool) -> None:
    left = (await running.wish()).end_by - running.stage.now
    running.set_clock(by)
    if anew:
        running.work_anew()
    await running.stage.look()  # before any host or API has said a word by the new clock
    assert await running.phase() == "RUNNING"
    wish = await running.wish()
    assert (wish.wish, round(wish.end_by - running.stage.now)) == ("run", round(left))
    for _ in range(30):
        await running.turn(seconds=15.0)
    assert await running.phase() == "RUNNING"
    left = (await running.wish()).end_by - running.stage.now
    running.stage.now += left - 30
    await running.turn()
    assert await running.phase() == "RUNNING"
    running.stage.now += 30
    await running.turn()
    assert "RUNNING" not in await running.phase()


async def test_it_moves_once(running: Clocked) -> None:
    running.set_clock(HOUR)
    await running.turn()
    end_by = (await running.wish()).end_by
    running.work_anew()
    await running.turn()
    assert (await running.wish()).end_by == end_by


async def test_a_runner_that_only_boots_isnt_late_by_it(stage: Stage) -> None:
    clocked = Clocked(stage)
    stage.hosts["h1"].steps_per_move = 0
    await stage.deliver(stage.job(1))
    await clocked.turn()
    await clocked.turn()
    assert await clocked.phase() == "BOOTING"
    left = (await clocked.wish()).boot_by - stage.now
    clocked.set_clock(HOUR)
    await clocked.turn(seconds=0)
    (record,) = await stage.runners()
    assert (record.life.phase, record.life.fencing) == ("BOOTING", "")
    assert (await clocked.wish()).boot_by - stage.now == left


async def test_a_host_that_died_just_before_is_found_out_all_the_same(running: Clocked) -> None:
    running.stage.hosts["h1"].silent = True
    await running.turn()
    running.set_clock(-HOUR)
    for _ in range(30):
        await running.turn(seconds=15.0)
    assert "RUNNING" not in await running.phase()


async def test_after_a_reboot_nobody_can_tell(running: Clocked) -> None:
    """What a wrong clock said before may be all there is: nothing is moved on a guess."""
    end_by = (await running.wish()).end_by
    running.boot = "boot-2"
    running.set_clock(HOUR)
    running.work_anew()
    await running.turn()
    assert (await running.wish()).end_by == end_by


def test_what_counts_as_set() -> None:
    known = Reckoned("a", 1000.0)
    assert was_set(None, known) == was_set(known, Reckoned("b", 9000.0)) == was_set(known, known) == 0.0
    assert was_set(known, Reckoned("a", 1000.0 + SET_S - 1)) == 0.0
    assert was_set(known, Reckoned("a", 1000.0 - SET_S)) == -SET_S
    assert is_news(None, known)
    assert not is_news(known, known)
    assert is_news(known, Reckoned("a", 1002.0)), "a drift is followed, and never adds up to a jump"


def test_this_machines_clock_stands_still_against_its_boot() -> None:
    assert was_set(reckoned(), reckoned()) == 0.0
