"""All that the control plane ever had on record: what Redis has at the end, and had each time before it was emptied.

Read past every client, so whoever judges neither dies nor changes what happens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from orchestrator.control.changes import Names
from orchestrator.control.records import JobRecord, RunnerRecord

if TYPE_CHECKING:
    from tests.chaos.city import City

TICK_S = 2.0


class Era(msgspec.Struct):
    """From one emptying of Redis to the next, seconds since the epoch."""

    since: float
    until: float
    jobs: dict[int, JobRecord]
    runners: dict[str, RunnerRecord]


class Window(msgspec.Struct):
    since: float
    until: float


class Chronicle:
    def __init__(self, city: City, prefix: str) -> None:
        self._city = city
        self._names = Names(prefix)
        self._since = city.now()
        self._past: list[Era] = []
        self.blind: list[Window] = []
        """When nobody could put anything on record: the worker was dead, or Redis was away."""
        self.deaf: list[Window] = []
        """When GitHub answered nothing to whoever asked."""

    def emptied(self) -> None:
        """Redis is about to be."""
        era = self._era()
        self._past.append(era)
        self._since = era.until

    def eras(self) -> list[Era]:
        return [*self._past, self._era()]

    def tick(self) -> None:
        """Each `TICK_S`: who can't do anything now."""
        city = self._city
        if not city.worker.running or city.memory.away:
            self._extend(self.blind)
        if city.github_is_away():
            self._extend(self.deaf)

    def _extend(self, windows: list[Window]) -> None:
        now = self._city.now()
        if windows and now - windows[-1].until <= 2 * TICK_S:
            windows[-1].until = now
        else:
            windows.append(Window(now - TICK_S, now))

    def _era(self) -> Era:
        names = self._names
        jobs = [
            record
            for key in (names.unserved, names.done, names.jobs)
            for record in self._city.memory.values_of(key, JobRecord)
        ]
        runners = [
            record for key in (names.gone, names.runners) for record in self._city.memory.values_of(key, RunnerRecord)
        ]
        return Era(self._since, self._city.now(), {one.job.id: one for one in jobs}, {one.id: one for one in runners})


def longest_outside_s(windows: list[Window], since: float, until: float) -> float:
    """The longest stretch between ``since`` and ``until`` that none of ``windows`` falls into."""
    longest, at = 0.0, since
    for one in sorted(windows, key=lambda window: window.since):
        longest, at = max(longest, min(one.since, until) - at), max(at, one.until)
    return max(longest, until - at)


def overlap_s(windows: list[Window], since: float, until: float) -> float:
    """How much of the time between ``since`` and ``until`` falls into ``windows``."""
    return sum(max(0.0, min(one.until, until) - max(one.since, since)) for one in windows)
