"""Whether anybody was made to wait behind a flood: read when all is over, from what was decided and from GitHub's own truth.

A runner's story says when a machine was placed, and for which job; GitHub says whose job that is, since when it was queued
and when it began.  For each machine that a party got while it had others, every job is looked at that waited then and
could have had that machine: known for a while, small enough, within its quotas, and no runner on its way that could serve it.
None of those may have come first by what is configured: the higher priority, then the organisation with the smaller part
by its weight, then the repository.  What the scheduler thought of it is never asked.

Where the order within one pass can't be known, it is taken as if the scheduler had been right.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from orchestrator.control.line import failed_on
from orchestrator.control.records import JobRecord, RunnerRecord
from orchestrator.control.world import registers_under, runner_labels
from orchestrator.core.machine import MachineClass
from orchestrator.core.sharing import Share, owner_of
from orchestrator.simulator.github.state import Job
from tests.chaos import stories
from tests.chaos.chronicle import Era

if TYPE_CHECKING:
    from tests.chaos.city import City

KNOWN_S = 30.0
"""A job that is known for less may have been missed by the pass that placed a machine."""
IN_LINE = ("", "waits_for_room", "waits_for_turn", "waits_for_quota")
"""What a job's story says where nothing but its place in the line holds it back."""
ALL = 1_000_000
RENAMED = "-renamed"
"""What the simulator adds to the name of a repository."""


class Span(msgspec.Struct, frozen=True):
    """A machine that counts for somebody: from the moment that it was wanted until it was to end."""

    runner: str
    repo: str
    machine: MachineClass
    since: float
    until: float


class Given(msgspec.Struct, frozen=True):
    """A machine that was newly placed for a job."""

    at: float
    host: str
    job: Job
    machine: MachineClass


class Waits(msgspec.Struct, frozen=True):
    record: JobRecord
    job: Job
    machine: MachineClass
    repo: str
    since: float
    until: float
    lines: list[stories.Line]


class Found(msgspec.Struct):
    starved: dict[int, list[str]]
    """Job to the machines that others got in front of it, in words."""
    overtook: int = 0
    """Machines that were placed for somebody with fewer, while older jobs of somebody with more waited."""

    def words(self) -> list[str]:
        return [
            f"job {job} was starved: {len(given)} machines went to others before it, the first one {given[0]}"
            for job, given in sorted(self.starved.items())
        ]


def judged(city: City) -> Found:
    found = Found({})
    for era in city.chronicle.eras():
        Judge(city, era).judge(found)
    return found


class Judge:
    def __init__(self, city: City, era: Era) -> None:
        self._city = city
        self._sharing = city.lot.settings.sharing
        self._jobs = city.github.state.jobs
        self._era = era
        self._spans = [span for runner in era.runners.values() for span in self._spans_of(runner)]
        self._coming = [it for runner in era.runners.values() for it in _coming(runner)]
        self._waits = [it for record in era.jobs.values() if (it := self._wait_of(record)) is not None]
        self._given = sorted(self._all_given(), key=lambda given: (given.at, given.job.id))

    def judge(self, found: Found) -> None:
        by_pass: dict[tuple[float, str], list[Given]] = defaultdict(list)
        for given in self._given:
            by_pass[given.at, given.job.run.repository.full_name.lower()].append(given)
        for (at, repo), all_given in by_pass.items():
            for waits in self._waits:
                if RENAMED in waits.repo + repo:
                    continue  # what is configured goes by name, and it had two
                if waits.repo == repo or not waits.since + KNOWN_S <= at < waits.until:
                    continue
                if self._was_passed_over(waits, repo, all_given):
                    words = (
                        f"at {at:.0f} on {all_given[-1].host} for {repo}, which had {self._used(repo, at):.0f} vCPUs"
                    )
                    found.starved.setdefault(waits.job.id, []).append(words)
                elif self._was_overtaken(waits, repo, at):
                    found.overtook += 1

    # One machine, one job that waited

    def _was_passed_over(self, waits: Waits, repo: str, given: list[Given]) -> bool:
        """Whether ``waits`` came before the last of ``given``, which all went to ``repo`` in one pass."""
        fits = [
            one
            for one in given
            if waits.machine.vcpus <= one.machine.vcpus
            and waits.machine.memory_mib <= one.machine.memory_mib
            and one.host not in failed_on(waits.record)
        ]
        return bool(fits) and self._comes_first(waits, repo, fits) and self._could_be_served(waits, fits[0].at)

    def _comes_first(self, waits: Waits, repo: str, given: list[Given]) -> bool:
        at, before = given[0].at, sum(one.machine.vcpus for one in given[:-1])
        has = self._used(repo, at) + before
        if not has:
            return False  # it has none, and may have aged
        ours = self._sharing.priority_of(waits.repo, waits.machine.name)
        theirs = max(self._sharing.priority_of(repo, one.machine.name) for one in given)
        if ours != theirs:
            return ours > theirs
        mine, other = owner_of(waits.repo), owner_of(repo)
        if mine != other:
            share, theirs_share = self._sharing.of_organisation(mine), self._sharing.of_organisation(other)
            used = self._used(mine, at, after=True) / share.weight
            return used < (self._used(other, at) + before) / theirs_share.weight
        used = self._used(waits.repo, at, after=True) / self._sharing.of_repository(waits.repo).weight
        return used < has / self._sharing.of_repository(repo).weight

    def _was_overtaken(self, waits: Waits, repo: str, at: float) -> bool:
        """Whether ``waits`` is older than what ``repo`` got, and its party had more."""
        newer = all(one.job.created_at > waits.job.created_at for one in self._given if one.at == at)
        return newer and self._used(waits.repo, at) > self._used(repo, at)

    def _could_be_served(self, waits: Waits, at: float) -> bool:
        return (
            self._says(waits, at) in IN_LINE
            and not any(
                coming.meant_for == waits.job.id for coming in self._coming if coming.since <= at < coming.until
            )
            and not self._spare_ones(waits, at)
            and not self._quota_is_used_up(waits, at)
        )

    def _says(self, waits: Waits, at: float) -> str:
        """What its story says at that time; empty where nothing."""
        reason: stories.Reason | None = None
        for line in waits.lines:
            if line.at <= at:
                reason = stories.reason_after(reason, line)
        return reason.what if reason is not None else ""

    def _spare_ones(self, waits: Waits, at: float) -> bool:
        """A runner of its kind is on its way whose own job waits no more: it may be for this one."""
        queued = {other.job.id for other in self._waits if other.since <= at < other.until}
        group = self._group(waits.job)
        return any(
            coming.group == group and coming.meant_for not in queued
            for coming in self._coming
            if coming.since <= at < coming.until
        )

    def _quota_is_used_up(self, waits: Waits, at: float) -> bool:
        repo, owner, label = waits.repo, owner_of(waits.repo), waits.machine.name
        parties = (
            (self._sharing.of_repository(repo), [one for one in self._spans if one.repo == repo]),
            (self._sharing.of_organisation(owner), [one for one in self._spans if owner_of(one.repo) == owner]),
            (self._sharing.of_class(label), [one for one in self._spans if one.machine.name == label]),
        )
        return any(_is_used_up(share, spans, waits.machine, at) for share, spans in parties)

    # Who has what

    def _used(self, party: str, at: float, *, after: bool = False) -> float:
        """How many vCPUs a repository or an owner had before the pass at ``at``, or with what it gave."""
        return float(
            sum(
                span.machine.vcpus
                for span in self._spans
                if party in (span.repo, owner_of(span.repo))
                and (span.since <= at if after else span.since < at)
                and (at < span.until or (after and at == span.until))
            )
        )

    def _spans_of(self, runner: RunnerRecord) -> Iterator[Span]:
        """It counts for the job that it is made for, and from the start of one for that one."""
        begun, until, machine = _begun(runner), _ended(runner), runner.life.machine
        since, job = begun, self._jobs.get(runner.life.meant_for)
        for moment in runner.story:
            if moment.what == "JobStarted":
                yield Span(runner.id, _repo(job, runner), machine, since, moment.at)
                since, job = moment.at, self._jobs.get(int(moment.detail.split()[0]))
        yield Span(runner.id, _repo(job, runner), machine, since, until)

    def _all_given(self) -> Iterator[Given]:
        for runner in self._era.runners.values():
            job = self._jobs.get(runner.life.meant_for)
            wanted = [moment.at for moment in runner.story if moment.what == "WANTED"]
            placed = [moment for moment in runner.story if moment.what == "Placed"]
            if job is not None and wanted and placed and placed[0].at == wanted[0]:
                yield Given(placed[0].at, placed[0].detail, job, runner.life.machine)

    def _wait_of(self, record: JobRecord) -> Waits | None:
        """None where it can't be told by GitHub alone since when a job was to be served: an environment held it back."""
        job = self._jobs.get(record.job.id)
        if job is None or job.spec.environment or not record.job.story:
            return None
        machine = self._city.lot.settings.classes.get(job.spec.labels[0])
        if machine is None:
            return None
        known = max(record.job.story[0].at, job.created_at)
        repo = job.run.repository.full_name.lower()
        until = min(stories.end_of_wait(job), self._era.until)
        return Waits(record, job, machine, repo, known, until, stories.story(record, self._era))

    def _group(self, job: Job) -> tuple[str, tuple[str, ...]]:
        repo = job.run.repository
        org = registers_under(self._city.lot.settings, repo.owner.login if repo.owner.type == "Organization" else "")
        return (org or repo.full_name).lower(), runner_labels(job.spec.labels)


class Coming(msgspec.Struct, frozen=True):
    """A runner on its way, and the kind of job that it can serve."""

    meant_for: int
    group: tuple[str, tuple[str, ...]]
    since: float
    until: float


def _coming(runner: RunnerRecord) -> Iterator[Coming]:
    life = runner.life
    began = [moment.at for moment in runner.story if moment.what == "JobStarted"]
    until = min([*began, _ended(runner)])
    yield Coming(life.meant_for, ((life.org or life.repo).lower(), life.labels), _begun(runner), until)


def _begun(runner: RunnerRecord) -> float:
    return min(moment.at for moment in runner.story if moment.what in ("WANTED", "taken_back"))


def _ended(runner: RunnerRecord) -> float:
    ends = [moment.at for moment in runner.story if moment.what in ("DESTROYING", "GONE")]
    return min(ends, default=float("inf"))


def _repo(job: Job | None, runner: RunnerRecord) -> str:
    return (job.run.repository.full_name if job is not None else runner.life.repo).lower()


def _is_used_up(share: Share, spans: list[Span], machine: MachineClass, at: float) -> bool:
    sizes = [span.machine.vcpus for span in spans if span.since <= at <= span.until]
    return len(sizes) + 1 > (share.runners or ALL) or sum(sizes) + machine.vcpus > (share.vcpus or ALL)
