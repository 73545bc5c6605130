"""A quiet city for one story: nobody makes trouble in it but the test, which declares it as an admin does, in a file's words.

Each story is played in a fork of its own, since it changes what time is (`tests.chaos.clockwork`); what it asserts comes
back as the error of the test.
"""

from __future__ import annotations

import asyncio
import functools
import re
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from orchestrator.control.records import JobRecord, RunnerRecord
from orchestrator.control.settings import ControlSettings
from orchestrator.core.machine import Capacity, MachineClass
from orchestrator.simulator.github.catalogue import fault_set
from orchestrator.simulator.github.fault_file import read_faults
from orchestrator.simulator.github.state import Job
from tests.chaos import city as city_module
from tests.chaos.city import City
from tests.chaos.clockwork import Loop, install
from tests.chaos.forks import in_a_fork
from tests.chaos.lot import Lot
from tests.chaos.oracle import Oracle
from tests.chaos.plane import PREFIX
from tests.chaos.run import prepare

JIT = r"/.*/actions/runners/generate-jitconfig"
RUNNER = r"/.*/actions/runners/\d+"
PATIENCE_S = 7200.0


class Call(NamedTuple):
    at: float
    method: str
    path: str
    status: int


class Town:
    def __init__(self, city: City, oracle: Oracle, lines: list[str]) -> None:
        self.city = city
        self.oracle = oracle
        self.store = oracle.store
        self._lines = lines

    def goes_wrong(self, fault: str, **more: str) -> None:
        """As the file says it: ``for``, ``count``, ``by`` and so on."""
        lines = [f"  - fault: {fault}", *(f"    {key.rstrip('_')}: {value}" for key, value in more.items())]
        for order in read_faults("\n".join(("faults:", *lines, "")), source="story.yml"):
            self.city.github.faults.declare(fault_set(order))

    def happened(self, fault: str) -> int:
        return self.city.github.faults.used[fault]

    def jobs(self, number: int = 1, *, lasts_s: float = 10.0, environment: str = "", repo: str = "app") -> list[Job]:
        """Jobs of one run that has just begun."""
        spec: dict[str, Any] = {"runs-on": "ironcd", "steps": [{"run": "true"}]}
        if environment:
            spec["environment"] = environment
        run = self.city.github.create_run(repo, {"jobs": {f"job{n}": spec for n in range(number)}})
        for job in run.jobs:
            self.city.lengths[job.id] = lasts_s
        return list(run.jobs)

    async def passes(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def until(self, is_so: Callable[[], Any], within_s: float = 600.0) -> float:
        """Wait until something is so; how long that took.  Fails where it takes longer than ``within_s``."""
        began = self.city.loop.time()
        while True:
            found = is_so()
            if isinstance(found, Awaitable):
                found = await found
            waited = self.city.loop.time() - began
            if found:
                return waited
            assert waited <= within_s, "\n".join(self._lines[-60:])
            assert not self.city.journal.faults, self.city.journal.faults
            await asyncio.sleep(0.5)

    async def known(self, job: Job) -> JobRecord:
        record = await self.store.job(job.id)
        assert record is not None, f"nothing is known of job {job.id}"
        return record

    async def reason(self, job: Job) -> str:
        record = await self.store.job(job.id)
        return record.job.reason if record is not None else ""

    async def runners_of(self, job: Job) -> list[RunnerRecord]:
        """All that were made for it or had it, those that are gone too."""
        found = [await self.store.runner(runner) for runner in (await self.known(job)).runners]
        return [record for record in found if record is not None]

    async def phase(self, job: Job) -> str:
        """Of the runner that was made for it last; empty where there is none."""
        live = [record for record in await self.store.live_runners() if record.life.meant_for == job.id]
        return live[-1].life.phase if live else ""

    async def is_ready(self, job: Job) -> bool:
        return await self.phase(job) == "READY"

    def calls(self, method: str, path: str, *, since: float = 0.0) -> list[Call]:
        """Requests to GitHub that were answered, in their order, with their time since the story began."""
        found = []
        for line in self._lines:
            match = re.fullmatch(r"([\d.]+) github (\w+) (\S+) (\d+)", line)
            if match and re.fullmatch(method, match[2]) and re.fullmatch(path, match[3]):
                found.append(Call(float(match[1]) - self._epoch, match[2], match[3], int(match[4])))
        return [call for call in found if call.at >= since]

    def lines(self) -> list[tuple[float, str]]:
        """The journal: when, since the story began, and what."""
        split = (line.split(" ", 1) for line in self._lines)
        return [(float(at) - self._epoch, what) for at, what in split]

    @property
    def _epoch(self) -> float:
        return self.city.now() - self.city.loop.time()

    @property
    def now(self) -> float:
        """Since the story began."""
        return self.city.loop.time()

    async def counted(self, name: str) -> int:
        return (await self.store.counters()).get(name, 0)

    async def comes_to_rest(self, *, within_s: float = PATIENCE_S) -> dict[str, int]:
        """Wait until all is over and nothing is left; how the jobs ended, by kind.  Fails where anything else is wrong."""
        await self.until(self.oracle.at_rest, within_s)
        kinds, wrong = await self.oracle.ends()
        left = {kind: things for kind, things in (await self.oracle.leaked()).items() if things}
        assert (wrong, left, self.oracle.foreign_gone(), self.city.journal.faults) == ([], {}, [], [])
        return dict(kinds)


Story = Callable[[Town], Awaitable[None]]


def story(*, hosts: int = 1, vcpus: int = 16, lifetime_s: int = 1800, **settings: Any) -> Callable[[Story], Any]:
    """Have a test's body played in a town of its own, with so many hosts of that size."""

    def told(play: Story) -> Any:
        @functools.wraps(play)
        def test() -> None:
            prepare()
            in_a_fork(functools.partial(_played, play, hosts, vcpus, lifetime_s, settings))

        del test.__wrapped__  # type: ignore[attr-defined]  # its parameter is no fixture
        return test

    return told


def _played(play: Story, hosts: int, vcpus: int, lifetime_s: int, settings: dict[str, Any]) -> bytes:
    def drawn(_rng: Any, state_dir: str, prefix: str) -> Lot:
        classes = {"ironcd": MachineClass("ironcd", lifetime_s=lifetime_s)}
        made = ControlSettings(app_id=424_242, state_dir=state_dir, prefix=prefix, classes=classes, **settings)
        return Lot(made, Capacity(vcpus, vcpus * 4096, 4000), ("ironcd",))

    city_module.draw = drawn  # type: ignore[assignment]
    loop = Loop()
    install(loop)
    asyncio.set_event_loop(loop)
    lines: list[str] = []

    async def begun(folder: str) -> tuple[Town, asyncio.Future[None]]:
        city = City(loop, Path(folder), 1, hosts=hosts, lines=lines)
        return Town(city, Oracle(city), lines), asyncio.ensure_future(city.clockwork())

    with tempfile.TemporaryDirectory(prefix="ironcd-story-") as folder:
        town, clockwork = loop.run_until_complete(begun(folder))
        loop.run_until_complete(asyncio.sleep(20.0))
        loop.run_until_complete(play(town))
        clockwork.cancel()
        loop.run_until_complete(town.city.close())
    return msgspec.json.encode(PREFIX)
