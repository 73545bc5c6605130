"""Who waits for a runner, in what order, and how many runners are on their way to them.

Runners aren't pinned to jobs: those of one group (installation, organisation or repository, labels) fit one another, so
what is counted is how many a group lacks.  Nobody's place is written down: it follows from what is known, and whoever wants
to show it asks again.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Iterator, Mapping

from orchestrator.control.observe import host_views, taken_by_stray
from orchestrator.control.records import JobRecord, RunnerRecord
from orchestrator.control.world import ON_ITS_WAY, World, registers_under, runner_labels
from orchestrator.core.fair_share import FairQueue, Lane, cost_of
from orchestrator.core.lifecycle import may_have_job
from orchestrator.core.machine import MachineClass, Match, match_labels
from orchestrator.core.placement import Rooms
from orchestrator.core.sharing import Quotas
from orchestrator.core.turns import Dealt, deal, used_by

Group = tuple[int, str, tuple[str, ...]]
"""Installation, organisation or repository, labels."""
SURPLUS = "surplus"


class Line:
    def __init__(self, world: World) -> None:
        self._world = world
        self._classes: dict[tuple[str, ...], Match] = {}
        self._labels: dict[tuple[str, ...], tuple[str, ...]] = {}
        self.waiting: dict[Group, list[JobRecord]] = self._waiting()
        self.coming: dict[Group, list[RunnerRecord]] = self._coming()
        self.meant = {record.life.meant_for for records in self.coming.values() for record in records}
        """Jobs that a runner is on its way for."""
        self.lane_of: dict[int, Hashable] = {}
        """By job, of those that stand in line."""
        self.rooms = Rooms(host_views(world) if self.waiting or self.coming else ())

    def class_of(self, record: JobRecord) -> Match:
        labels = record.job.labels
        if labels not in self._classes:
            self._classes[labels] = match_labels(labels, self._world.settings.classes)
        return self._classes[labels]

    def candidates(self) -> Iterator[JobRecord]:
        """The jobs that no runner is on its way for, where one may be made now."""
        for records in self.waiting.values():
            for record in records:
                if record.job.id not in self.meant and self.may_have_runner(record):
                    yield record

    def may_have_runner(self, record: JobRecord) -> bool:
        world = self._world
        begun = world.now >= record.not_before and record.job.installation not in world.away
        return begun and self.class_of(record).machine is not None

    def deal(self, warm: Mapping[str, list[str]] | None = None) -> Dealt:
        """Machines for those whose turn it is, as far as quotas and room go.  ``warm``: class to hosts where one waits."""
        if self._world.unheard or next(self.candidates(), None) is None:
            return Dealt((), {})
        long_since = self._world.now - self._world.settings.sharing.reserve_s
        return deal(self._queue(), self._short(), self._quotas(), self.rooms, long_since=long_since, warm=warm)

    def order(self) -> list[int]:
        """The jobs in line, each at its place."""
        return list(self._queue().order())

    def _waiting(self) -> dict[Group, list[JobRecord]]:
        groups: dict[Group, list[JobRecord]] = defaultdict(list)
        queued = [r for r in self._world.jobs.values() if r.job.wants_runner and not r.permanent]
        for record in sorted(queued, key=lambda record: (record.job.created_at, record.job.id)):
            groups[self._group(record)].append(record)
        return groups

    def _group(self, record: JobRecord) -> Group:
        job = record.job
        if job.labels not in self._labels:
            self._labels[job.labels] = runner_labels(job.labels)
        org = registers_under(self._world.settings, job.org)
        return job.installation, org or job.repo, self._labels[job.labels]

    def _coming(self) -> dict[Group, list[RunnerRecord]]:
        """With those that are being fenced for a fault: they are replaced when GitHub has answered, and not before."""
        groups: dict[Group, list[RunnerRecord]] = defaultdict(list)
        for record in self._world.runners.values():
            life = record.life
            if life.phase in ON_ITS_WAY and life.fencing != SURPLUS:
                groups[life.installation, life.org or life.repo, life.labels].append(record)
        return groups

    def _short(self) -> dict[Hashable, int]:
        short: dict[Hashable, int] = {}
        for group, records in self.waiting.items():
            held_back = sum(1 for r in records if r.job.id not in self.meant and not self.may_have_runner(r))
            short[group] = len(records) - len(self.coming.get(group, ())) - held_back
        return short

    def _queue(self) -> FairQueue:
        world, total = self._world, self.rooms.total
        lanes: dict[Hashable, Lane] = {}
        for record in self.candidates():
            machine = self.class_of(record).machine
            assert machine is not None
            avoid = failed_on(record)
            group, repo = self._group(record), record.job.repo
            key = (repo.lower(), group, tuple(sorted(avoid)))
            if key not in lanes:
                lanes[key] = Lane(key, repo, machine, cost_of(machine, total), deque(), group=group, avoid=avoid)
            lanes[key].jobs.append((record.job.created_at, record.job.id))
            self.lane_of[record.job.id] = key
        used = used_by((repo, cost_of(machine, total)) for repo, machine in self._holding())
        return FairQueue(lanes.values(), used, world.settings.sharing, world.now, served=world.served)

    def _quotas(self) -> Quotas:
        quotas = Quotas(self._world.settings.sharing)
        for repo, machine in (*self._holding(), *self._of_nobody_known()):
            quotas.take(repo, machine)
        return quotas

    def _holding(self) -> Iterator[tuple[str, MachineClass]]:
        """Each machine that has a job or may get one, with the repository that it counts for, where that is known."""
        jobs = self._world.jobs
        for record in self._world.runners.values():
            life = record.life
            if not may_have_job(life):
                continue
            job = jobs.get(life.job_id or life.meant_for)
            repo = job.job.repo if job is not None else record.identity.repo or life.repo
            if repo:
                yield repo, life.machine

    def _of_nobody_known(self) -> Iterator[tuple[str, MachineClass]]:
        """Machines that were found on hosts, and of which only the organisation is known: they count for its quotas, as the
        largest they may be, and not for whose turn it is.
        """
        for record in self._world.runners.values():
            life = record.life
            known = (life.job_id or life.meant_for) in self._world.jobs or record.identity.repo or life.repo
            if may_have_job(life) and not known and life.org:
                yield _some_of(life.org), life.machine
        for seen in (seen for of_host in self._world.undecided.values() for seen in of_host):
            if seen.scope is not None and seen.vm in ("making", "running"):
                yield seen.scope.repo or _some_of(seen.scope.org), taken_by_stray(self._world, seen)


def _some_of(org: str) -> str:
    """In place of the repository, where a machine is of any of ``org``: it counts for the organisation."""
    return f"{org}/" if org else ""


def failed_on(record: JobRecord) -> frozenset[str]:
    """The hosts on which runners that were made for it failed."""
    if not record.job.replacements:
        return frozenset()
    story = record.job.story
    return frozenset(m.detail.partition(":")[0] for m in story if m.what == "runner_failed") - {"no host"}
