"""What is known during one look, and what has become of it.

Everything that decides works on this, and none of it does I/O: it reads records, has things happen to them, and what
changed is written by whoever looks (`World.take_changes`).  The clock stands still: ``now`` is that of the pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import msgspec
import structlog

from orchestrator.control.changes import Changes
from orchestrator.control.github import RunnerScope
from orchestrator.control.host_decisions import decided_of
from orchestrator.control.losses import note_end
from orchestrator.control.quarantine import Quarantines
from orchestrator.control.records import JobRecord, RunnerRecord, Sighting, Snapshot
from orchestrator.control.releases import Rollout
from orchestrator.control.settings import ControlSettings
from orchestrator.core.decided import Decided
from orchestrator.core.flow import Identity
from orchestrator.core.job import Job, tell
from orchestrator.core.lifecycle import advance, wanted
from orchestrator.core.machine import PLAIN_LABELS, MachineClass
from orchestrator.core.policy import Policy
from orchestrator.core.runner import (
    Alarm,
    Event,
    Fenced,
    HostLost,
    JobCompleted,
    JobStarted,
    LifetimeCut,
    Phase,
    Placed,
    PolicyBound,
    Registered,
    RegistrationOutOfReach,
    RegistrationProvedGone,
    RegistrationRefused,
    Runner,
    RunnerExited,
    RunnerListened,
    Ticked,
    VmFailed,
    VmProvedGone,
    Withdrawn,
)
from orchestrator.core.wire import ObservedRunner

ON_ITS_WAY: frozenset[Phase] = frozenset({"WANTED", "BOOTING", "READY"})
LIVE: frozenset[Phase] = frozenset({"BOOTING", "READY", "RUNNING"})
NO_FAILURE = frozenset({"surplus", "job_completed", "wanted_too_long", "drained"})
"""Reasons to end that say nothing against the host or the job."""
IDLED = "idle-too-long"
TOO_LATE = frozenset({"boot-timeout", IDLED})
"""A host's codes for deadlines that it kept by itself, before we did."""
GIVEN_UP = "job_given_up"
INCIDENTS = {"session_conflict": "jit_used_twice", "runner_too_old": "runner_too_old"}
"""Reasons to end that a person must hear of, and what each is called in the metrics and the log."""

log = structlog.get_logger()


class World:
    def __init__(self, snapshot: Snapshot, settings: ControlSettings, baseline: Policy, now: float) -> None:
        self.settings = settings
        self.baseline = baseline
        self.now = now
        self.jobs: dict[int, JobRecord] = dict(snapshot.jobs)
        self.runners: dict[str, RunnerRecord] = dict(snapshot.runners)
        self.sightings: dict[str, Sighting] = dict(snapshot.sightings)
        self.sums = dict(snapshot.sums)
        self.draining = snapshot.draining
        self._decided = (snapshot.cordoned, snapshot.draining, snapshot.decided)
        self.templates_since = snapshot.templates_since
        self.templates_removed = snapshot.templates_removed
        self.cordoned = {**snapshot.cordoned, **{host: drain.why for host, drain in snapshot.draining.items()}}
        self.quarantines = Quarantines(snapshot.ward, snapshot.lifted, now)
        self.served = dict(snapshot.served)
        self._served_changed: set[str] = set()
        self.rollout = Rollout(snapshot.releases, now, first=not snapshot.known)
        self.outage_since = self._outage_written = snapshot.outage_since
        """Of GitHub; 0 where it answers."""
        self.listening = snapshot.listening
        self.clock = self._clock_written = snapshot.clock
        """How the worker's clock stood to the one since its machine's boot."""
        self.undecided: dict[str, list[ObservedRunner]] = {}
        """By host, machines that we have no record of, and of which GitHub hasn't said whether they are ours."""
        self.unheard: list[str] = []
        """Hosts that may still come to say what they run (`orchestrator.control.unheard`): nothing new is made meanwhile."""
        self.away: dict[int, str] = {}
        """Installations out of reach, and why (`orchestrator.control.standing`)."""
        self.progress = False
        """True where something happened that may call for more in the next pass."""
        self._jobs_changed: set[int] = set()
        self._runners_changed: set[str] = set()
        self._policies: dict[str, Policy] = {}
        self._counts: dict[str, int] = {}
        self._durations: list[tuple[str, float]] = []
        self._reruns: list[int] = []

    # Jobs

    def put_job(self, record: JobRecord) -> None:
        if self.jobs.get(record.job.id) != record:
            self.jobs[record.job.id] = record
            self._jobs_changed.add(record.job.id)

    def change_job(self, job_id: int, **changes: Any) -> None:
        """Change fields of the job itself."""
        record = self.jobs[job_id]
        self.put_job(msgspec.structs.replace(record, job=msgspec.structs.replace(record.job, **changes)))

    def tell_job(self, job_id: int, what: str, detail: str = "") -> None:
        record = self.jobs[job_id]
        self.put_job(msgspec.structs.replace(record, job=tell(record.job, self.now, what, detail)))

    def give_up(self, job_id: int, reason: str) -> None:
        """Have no runner made for the job any more, say why, and raise an alarm: it waits at GitHub, and nobody there is told."""
        self.put_job(msgspec.structs.replace(self.jobs[job_id], permanent=reason))
        self.change_job(job_id, reason=reason)
        self.tell_job(job_id, "given_up", reason)
        self.count(f"incidents{{kind={GIVEN_UP}}}")
        log.error(GIVEN_UP, job=job_id, repo=self.jobs[job_id].job.repo, why=reason)

    # Runners

    def put_runner(self, record: RunnerRecord) -> None:
        if self.runners.get(record.id) != record:
            self.runners[record.id] = record
            self._runners_changed.add(record.id)

    def change_runner(self, runner_id: str, **changes: Any) -> None:
        self.put_runner(msgspec.structs.replace(self.runners[runner_id], **changes))

    def want(self, runner_id: str, job: Job, machine: MachineClass) -> RunnerRecord:
        """A runner comes into being, for ``job``."""
        life = wanted(
            runner_id,
            machine,
            installation=job.installation,
            org=registers_under(self.settings, job.org),
            repo=job.repo,
            labels=runner_labels(job.labels),
            meant_for=job.id,
            now=self.now,
            deadlines=self.settings.deadlines,
        )
        sealed = Identity(runner=runner_id, org=job.org, repo="" if life.org else job.repo)
        record = RunnerRecord(life=life, identity=sealed, policy=self.baseline.digest)
        self.use_policy(self.baseline)
        self.put_runner(record.tell(self.now, "WANTED", f"for job {job.id}, class {machine.name}"))
        known = self.jobs[job.id]
        self.put_job(msgspec.structs.replace(known, runners=(*known.runners, runner_id)))
        self.served[job.repo.lower()] = self.now
        self._served_changed.add(job.repo.lower())
        self.progress = True
        return self.runners[runner_id]

    def happen(self, runner_id: str, event: Event) -> bool:
        """``event`` happens to a runner; False where it means nothing any more."""
        record = self.runners[runner_id]
        before = record.life
        step = advance(before, event, self.now, self.settings.deadlines)
        for effect in step.effects:
            if isinstance(effect, Alarm):
                self.count("alarms")
                log.error("destruction_late", runner=runner_id, waiting_for=effect.waiting_for, host=before.host)
        after = step.runner
        if after == before:
            return False
        if isinstance(event, Ticked) or (isinstance(event, VmFailed) and event.reason in TOO_LATE):
            self.count(f"deadlines_missed{{phase={before.phase}}}")
        record = msgspec.structs.replace(record, life=after, tries=0, not_before=0.0, waiting="")
        what, detail = _said(event, after)
        if what:
            record = record.tell(self.now, what, detail)
        if after.phase != before.phase:
            self._durations.append((before.phase, max(0.0, self.now - before.since)))
            log.info("runner_phase", runner=runner_id, phase=after.phase, reason=after.reason, job=after.job_id)
            record = record.tell(self.now, after.phase, _why(after))
        self.put_runner(record)
        self.progress = True
        if after.phase in ("DESTROYING", "GONE"):
            note_end(self, record)
        if after.phase in ("DESTROYING", "GONE") and before.phase not in ("DESTROYING", "GONE"):
            self._blame(after)
            self.quarantines.ended(before, record, outage=bool(self.outage_since))
            self._alarm(after)
        return True

    def _alarm(self, ended: Runner) -> None:
        """Tell a person of an end that should never be."""
        incident = INCIDENTS.get(ended.reason)
        if incident is not None:
            self.count(f"incidents{{kind={incident}}}")
            log.error(incident, runner=ended.id, host=ended.host, job=ended.job_id or ended.meant_for, why=ended.detail)

    def _blame(self, ended: Runner) -> None:
        """A runner that ended before the job it was made for was served: the next one waits longer.

        GitHub is asked first whether the job still waits at all.
        """
        record = self.jobs.get(ended.meant_for)
        if record is None or not record.job.wants_runner or ended.job_id or ended.reason in NO_FAILURE:
            return
        failed = record.job.replacements + 1
        waits = self.settings.pace.replace_s
        not_before = self.now + waits[min(failed, len(waits)) - 1]
        self.put_job(msgspec.structs.replace(record, not_before=not_before, checked_at=0.0))
        self.change_job(ended.meant_for, replacements=failed)
        why = f"{ended.reason}: {ended.detail}" if ended.detail else ended.reason
        self.tell_job(ended.meant_for, "runner_failed", f"{ended.host or 'no host'}: {why}"[:500])

    # Policies and counters

    def use_policy(self, policy: Policy) -> None:
        """Have ``policy`` recorded."""
        self._policies[policy.digest] = policy

    @property
    def new_policies(self) -> tuple[Policy, ...]:
        """Those that are to be recorded with the next changes."""
        return tuple(self._policies.values())

    def spend_rerun(self, run_id: int) -> None:
        """Note that a run is run again for a loss."""
        self._reruns.append(run_id)

    def count(self, counter: str, by: int = 1) -> None:
        self._counts[counter] = self._counts.get(counter, 0) + by

    # What is written

    def take_changes(self, changes: Changes) -> None:
        """Put what changed since the last time into ``changes``."""
        for policy in self._policies.values():
            changes.put_policy(policy)
        self._put_runners(changes)
        self._put_jobs(changes)
        if self.outage_since != self._outage_written:
            changes.put_outage(self.outage_since)
            self._outage_written = self.outage_since
        if self.clock is not None and self.clock != self._clock_written:
            changes.put_clock(self.clock)
            self._clock_written = self.clock
        self._put_incidents(changes)
        for counter, by in sorted(self._counts.items()):
            changes.count(counter, by)
        for phase, seconds in self._durations:
            changes.observe_phase(phase, seconds)
        self._policies, self._counts, self._durations = {}, {}, []
        self._runners_changed, self._jobs_changed, self._served_changed = set(), set(), set()

    def _put_incidents(self, changes: Changes) -> None:
        for run_id in self._reruns:
            changes.spend_rerun(run_id)
        self._reruns = []
        if self.rollout.changed:
            changes.put_releases(self.rollout.releases)
            self.rollout.written()
        if self.quarantines.changed:
            changes.put_ward(self.quarantines.ward)
            self.quarantines.written()
        for subject in self.quarantines.stale_lifts():
            changes.forget_lifted(subject)

    def _put_jobs(self, changes: Changes) -> None:
        changed = [self.jobs[job_id] for job_id in sorted(self._jobs_changed) if job_id in self.jobs]
        for record in changed:
            changes.put_job(record)
        ours = {(r.job.installation, r.job.repo) for r in changed if r.job.served != "ignored"}
        for installation, repo in sorted(ours):
            changes.note_active(installation, repo, self.now)
        for repo in sorted(self._served_changed):
            changes.note_served(repo, self.served[repo])

    def _put_runners(self, changes: Changes) -> None:
        for runner_id in sorted(self._runners_changed):
            record = self.runners[runner_id]
            if record.life.phase == "GONE":
                changes.finish_runner(record)
            else:
                changes.put_runner(record)
            if "jit_taken" in record.marks or record.life.phase == "DESTROYING":
                changes.drop_jit(runner_id)

    def let_go_of_job(self, job_id: int) -> None:
        """It was put away elsewhere and isn't written any more."""
        self.jobs.pop(job_id, None)
        self._jobs_changed.discard(job_id)

    # Questions

    def by_host(self) -> dict[str, list[RunnerRecord]]:
        """The runners that are on a host or on their way to it, until they are proved gone."""
        found: dict[str, list[RunnerRecord]] = defaultdict(list)
        for record in self.runners.values():
            if record.life.host and record.life.phase != "GONE":
                found[record.life.host].append(record)
        return found

    def decided_of(self, host: str) -> Decided:
        """What people decided of ``host``."""
        return decided_of(host, *self._decided)

    def images_of(self, record: RunnerRecord) -> dict[str, tuple[str, ...]] | None:
        """What was read off the package managers in the runner's image; None where its host hasn't told."""
        sighting = self.sightings.get(record.life.host)
        images = sighting.observed.images if sighting is not None else ()
        return next((image.presets for image in images if image.name == record.life.machine.image), None)

    def digest_of(self, record: RunnerRecord) -> str:
        """Of the image that the runner's host has for its class; empty where the host hasn't told."""
        sighting = self.sightings.get(record.life.host)
        images = sighting.observed.images if sighting is not None else ()
        return next((image.digest for image in images if image.name == record.life.machine.image), "")


def registers_under(settings: ControlSettings, org: str) -> str:
    """The organisation that runners for jobs of ``org`` are registered with; empty where it is the repository."""
    return org if settings.registration == "organisation" else ""


def scope_of(life: Runner) -> RunnerScope:
    """Where the runner is registered."""
    return RunnerScope(life.installation, org=life.org, repo="" if life.org else life.repo)


def runner_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """What a runner for a job with ``labels`` is registered with: JIT adds none by itself, so all are named."""
    return tuple(sorted({label.lower() for label in labels} | PLAIN_LABELS))


def _why(life: Runner) -> str:
    return (
        ": ".join(part for part in (life.reason, life.detail) if part) if life.phase in ("DESTROYING", "GONE") else ""
    )


_TOLD = (
    Placed,
    Registered,
    RegistrationRefused,
    RunnerListened,
    JobStarted,
    PolicyBound,
    JobCompleted,
    RunnerExited,
    VmFailed,
    HostLost,
    LifetimeCut,
    Withdrawn,
    Fenced,
    VmProvedGone,
    RegistrationProvedGone,
    RegistrationOutOfReach,
)
"""Events that a runner's story names; of the others it tells what came of them."""


def _said(event: Event, after: Runner) -> tuple[str, str]:
    """What the runner's story says of an event, beside a change of phase."""
    if not isinstance(event, _TOLD):
        return ("fencing", after.fencing) if after.fencing else ("", "")
    fields = (getattr(event, name) for name in event.__struct_fields__)
    return type(event).__name__, " ".join(str(field) for field in fields)[:500]
