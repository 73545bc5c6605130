"""Whose turn it is when more jobs wait than there is room for.

The order, first difference wins:

1. The higher priority.  A repository that waits and has no machine at all goes up by one for each ``ageing_s`` that its
   oldest such job has waited since the repository last got a machine, up to the highest: so low ones age in.  One that has
   a machine doesn't age, however long its other jobs wait: a flood would else grow old together and push whoever comes new
   aside.
2. The organisation that has the smaller part of what there is, divided by its weight.
3. The repository that has the smaller part, divided by its weight.
4. The job that waits longest.

What one has is the sum of its runners' costs.  Each machine that is given counts at once, so one look deals out machine by
machine, as weighted max-min fairness asks.  Jobs that are alike stand in one *lane*: where one of them can't be served for
want of room or quota, none behind it in its lane can, and the lane is left out as a whole.  That keeps ten thousand waiting
jobs cheap.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from orchestrator.core.machine import Capacity, MachineClass
from orchestrator.core.sharing import PRIORITIES, Sharing, owner_of


class Lane(msgspec.Struct):
    """Jobs of one repository that are alike in all that decides whether they can be served, oldest first."""

    key: Hashable
    repo: str
    machine: MachineClass
    cost: float
    """Of one of its runners: see `cost_of`."""
    jobs: deque[tuple[float, int]]
    """Since when each waits (seconds since the epoch), and its id."""
    group: Hashable = None
    """Lanes of one group are served by the same runners."""
    avoid: frozenset[str] = frozenset()
    """Hosts on which its jobs failed before."""
    owner: str = ""
    level: int = 0
    """The priority by which it stands in the line now."""

    @property
    def shape(self) -> tuple[MachineClass, frozenset[str]]:
        """What decides whether a host has room for its jobs."""
        return self.machine, self.avoid


def cost_of(machine: MachineClass, total: Capacity) -> float:
    """The part of ``total`` that a machine takes, of whatever it takes most of: above 0, at most 1 where it fits."""
    parts = (
        (machine.vcpus, total.vcpus),
        (machine.memory_mib, total.memory_mib),
        (machine.gpus, total.gpus),
    )
    return max(1e-6, *(needed / has for needed, has in parts if has > 0), 0.0)


class FairQueue:
    """Deals out turns.  `next` tells whose turn it is; the caller answers with `give`, or `leave_out` for the whole lane."""

    def __init__(
        self,
        lanes: Iterable[Lane],
        used: Mapping[str, float],
        sharing: Sharing,
        now: float,
        *,
        served: Mapping[str, float] | None = None,
    ) -> None:
        """By repository (in lower case): ``used`` is the sum of its runners' costs, ``served`` when it last got a machine."""
        self._served = served or {}
        self._sharing = sharing
        self._now = now
        self._repo_used: dict[str, float] = defaultdict(float, used)
        self._owner_used: dict[str, float] = defaultdict(float)
        for repo, cost in used.items():
            self._owner_used[owner_of(repo)] += cost
        self._weights: dict[str, float] = {}
        self._levels: dict[int, _Level] = {}
        for lane in lanes:
            if lane.jobs:
                lane.owner = owner_of(lane.repo)
                self._enter(lane)
        self.shapes = {lane.shape for lane in self.rest()}

    def next(self) -> Lane | None:
        """The lane whose first job has its turn; None where nobody is left."""
        while self._levels:
            level = max(self._levels)
            lane = self._levels[level].top()
            if lane is None:
                del self._levels[level]
            elif self._level_of(lane) != level:
                self._levels[level].remove(lane)
                self._enter(lane)
            else:
                return lane
        return None

    def give(self, lane: Lane) -> int:
        """The first job of ``lane`` gets a machine: its id."""
        _, job = lane.jobs.popleft()
        self._repo_used[lane.repo.lower()] += lane.cost
        self._owner_used[lane.owner] += lane.cost
        if not lane.jobs:
            self._levels[lane.level].remove(lane)
        return job

    def leave_out(self, lane: Lane) -> None:
        """No job of ``lane`` can be served this time."""
        self._levels[lane.level].remove(lane)

    def rest(self) -> Iterator[Lane]:
        """The lanes that are neither served nor left out yet, in no order."""
        for level in self._levels.values():
            yield from level.lanes()

    def order(self) -> Iterator[int]:
        """Everybody, as if there were room for one after another: a job's place in it is its place in the line."""
        while (lane := self.next()) is not None:
            yield self.give(lane)

    def _enter(self, lane: Lane) -> None:
        lane.level = self._level_of(lane)
        if lane.level not in self._levels:
            self._levels[lane.level] = _Level(self._owner_share, self._repo_share)
        self._levels[lane.level].add(lane)

    def _level_of(self, lane: Lane) -> int:
        base = self._sharing.priority_of(lane.repo, lane.machine.name)
        if self._repo_used.get(lane.repo.lower(), 0.0) > 0 or self._sharing.ageing_s <= 0:
            return base
        since = max(lane.jobs[0][0], self._served.get(lane.repo.lower(), 0.0))
        aged = int(max(0.0, self._now - since) // self._sharing.ageing_s)
        return min(PRIORITIES, base + aged)

    def _owner_share(self, owner: str) -> float:
        return self._owner_used[owner] / self._weight(owner, self._sharing.of_organisation(owner).weight)

    def _repo_share(self, repo: str) -> float:
        return self._repo_used[repo.lower()] / self._weight(repo, self._sharing.of_repository(repo).weight)

    def _weight(self, name: str, weight: float) -> float:
        return self._weights.setdefault(name, max(1e-6, weight))


class _Level:
    """The lanes of one priority: organisations by share, in each its repositories by share, in each its lanes by age."""

    def __init__(self, owner_share: Callable[[str], float], repo_share: Callable[[str], float]) -> None:
        self._lanes: dict[str, _Line] = {}
        self._repos: dict[str, _Line] = {}
        self._owner_share = owner_share
        self._repo_share = repo_share
        self._owners = _Line(self._owner_key)
        self._by_key: dict[Hashable, Lane] = {}

    def add(self, lane: Lane) -> None:
        self._by_key[lane.key] = lane
        if lane.repo not in self._lanes:
            self._lanes[lane.repo] = _Line(self._lane_key)
        self._lanes[lane.repo].push(lane.key)
        if lane.owner not in self._repos:
            self._repos[lane.owner] = _Line(self._repo_key)
        self._repos[lane.owner].push(lane.repo)
        self._owners.push(lane.owner)

    def remove(self, lane: Lane) -> None:
        del self._by_key[lane.key]

    def lanes(self) -> Iterable[Lane]:
        return self._by_key.values()

    def top(self) -> Lane | None:
        owner = self._owners.top()
        if owner is None:
            return None
        return self._by_key[self._lanes[self._repos[owner].top()].top()]

    def _lane_key(self, key: Hashable) -> Any:
        lane = self._by_key.get(key)
        return None if lane is None else lane.jobs[0]

    def _repo_key(self, repo: str) -> Any:
        first = self._lanes[repo].top_key()
        return None if first is None else (self._repo_share(repo), first)

    def _owner_key(self, owner: str) -> Any:
        first = self._repos[owner].top_key()
        return None if first is None else (self._owner_share(owner), first)


class _Line:
    """A heap of names whose keys may grow behind its back: whoever comes up is asked again.  A key of None is out."""

    def __init__(self, key: Callable[[Any], Any]) -> None:
        self._key = key
        self._heap: list[tuple[Any, Any]] = []
        self._known: dict[Any, Any] = {}
        """The key by which each stands in the heap; an entry with another one is superseded."""

    def push(self, name: Any) -> None:
        """Again, too, where its key became smaller."""
        key = self._key(name)
        if name not in self._known or key < self._known[name]:
            self._known[name] = key
            heapq.heappush(self._heap, (key, name))

    def top(self) -> Any:
        return self._heap[0][1] if self._settle() else None

    def top_key(self) -> Any:
        return self._heap[0][0] if self._settle() else None

    def _settle(self) -> bool:
        heap = self._heap
        while heap:
            known, name = heap[0]
            if self._known.get(name) != known:
                heapq.heappop(heap)
                continue
            key = self._key(name)
            if key is None:
                heapq.heappop(heap)
                del self._known[name]
            elif key > known:
                self._known[name] = key
                heapq.heapreplace(heap, (key, name))
            else:
                return True
        return False
