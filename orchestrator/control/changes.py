"""What a look wants written, gathered and then written at once: either all of it stands in Redis, or nothing does.

An inbox entry is taken out in the very write that records its effects, so a crash at any moment loses no delivery and
repeats none that isn't harmless.
"""

from __future__ import annotations

import msgspec

from orchestrator.control.records import JobRecord, RunnerRecord, Sum, Swept
from orchestrator.core.clocks import Reckoned
from orchestrator.core.inbox import Keys
from orchestrator.core.policy import Policy
from orchestrator.core.quarantine import Ward
from orchestrator.core.runner_release import Releases
from orchestrator.core.wire import Desired

Part = str | bytes | int | float
FOREIGN_FOR_S = 3600
RUN_LASTS_S = 35 * 86400
"""GitHub's own limit of a run."""
PHASE_BUCKETS_S = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)

_encode = msgspec.json.Encoder().encode


class Names(Keys, frozen=True):
    """Names in Redis that only the control plane uses."""

    @property
    def jobs(self) -> str:
        return self.prefix + "jobs"

    def said(self, job_id: int) -> str:
        """There for a while once its commit was told what the job was kept from."""
        return f"{self.prefix}jobs:said:{job_id}"

    @property
    def done(self) -> str:
        return self.prefix + "jobs:done"

    @property
    def done_at(self) -> str:
        return self.prefix + "jobs:done:at"

    @property
    def unserved(self) -> str:
        """Hash of jobs that aren't ours to serve, by id, kept for a while to say why."""
        return self.prefix + "jobs:unserved"

    @property
    def unserved_at(self) -> str:
        return self.prefix + "jobs:unserved:at"

    @property
    def runners(self) -> str:
        return self.prefix + "runners"

    @property
    def gone(self) -> str:
        return self.prefix + "runners:gone"

    @property
    def gone_at(self) -> str:
        return self.prefix + "runners:gone:at"

    @property
    def sightings(self) -> str:
        return self.prefix + "sightings"

    @property
    def desired(self) -> str:
        return self.prefix + "desired"

    @property
    def sums(self) -> str:
        return self.prefix + "desired:sums"

    @property
    def wake(self) -> str:
        """Channel; a message is the name of a host with a new `Desired`."""
        return self.prefix + "wake"

    @property
    def policies(self) -> str:
        return self.prefix + "policies"

    @property
    def questions(self) -> str:
        """List of what the API asks the worker."""
        return self.prefix + "questions"

    def answer(self, question: str) -> str:
        """List with the one answer to a question."""
        return f"{self.prefix}answer:{question}"

    @property
    def jit(self) -> str:
        return self.prefix + "jit:"

    @property
    def lease(self) -> str:
        return self.prefix + "lease"

    @property
    def fence(self) -> str:
        return self.prefix + "fence"

    @property
    def cordoned(self) -> str:
        """Hash of hosts that an admin cordoned to the reason that was given.  The admin API alone writes it."""
        return self.prefix + "hosts:cordoned"

    @property
    def templates_since(self) -> str:
        """Hash of hosts to when an admin wanted their templates made anew.  The admin API alone writes it."""
        return self.prefix + "hosts:templates"

    @property
    def templates_removed(self) -> str:
        """Hash of ``KEY HOST`` to when an admin removed that template.  The admin API alone writes it."""
        return self.prefix + "hosts:templates:removed"

    @property
    def ward(self) -> str:
        """What is remembered of failed starts, and the hosts and images in quarantine."""
        return self.prefix + "quarantine"

    @property
    def lifted(self) -> str:
        """Hash of subjects whose quarantine an admin ended, to when.  The admin API writes it, the worker forgets."""
        return self.prefix + "quarantine:lifted"

    @property
    def listening(self) -> str:
        """Since when hosts' reports are taken in.  The API alone writes it."""
        return self.prefix + "listening"

    @property
    def clock(self) -> str:
        """The worker's clock, held against the one since its machine's boot."""
        return self.prefix + "clock"

    @property
    def releases(self) -> str:
        """GitHub's releases of its runner, and the images in use."""
        return self.prefix + "releases"

    def reruns(self, run_id: int) -> str:
        """How often a run was run again for a loss."""
        return f"{self.prefix}reruns:{run_id}"

    @property
    def draining(self) -> str:
        """Hash of hosts that are to be empty to a `Drain`.  Only the APIs write it."""
        return self.prefix + "hosts:draining"

    @property
    def decided(self) -> str:
        """Hash of when it was last decided of a host whether it is cordoned or drained."""
        return self.prefix + "hosts:decided"

    @property
    def outage(self) -> str:
        """When GitHub stopped answering; there while it doesn't."""
        return self.prefix + "outage"

    @property
    def active(self) -> str:
        """Sorted set of ``installation owner/name`` by when a job of ours there last changed."""
        return self.prefix + "repos:active"

    @property
    def served(self) -> str:
        """Sorted set of repositories by when a runner was last made for a job of theirs."""
        return self.prefix + "repos:served"

    @property
    def searched(self) -> str:
        """When all repositories were last asked for their jobs."""
        return self.prefix + "repos:searched"

    @property
    def redelivery(self) -> str:
        """How far deliveries were swept, and what was asked for again."""
        return self.prefix + "redelivery"

    @property
    def known(self) -> str:
        return self.prefix + "known"


class Changes:
    """Writes to come.  ``operations`` are Redis commands, in order."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self.operations: list[tuple[Part, ...]] = []

    def __bool__(self) -> bool:
        return bool(self.operations)

    def put_job(self, record: JobRecord) -> None:
        self._add("HSET", self._names.jobs, record.job.id, _encode(record))

    def finish_job(self, record: JobRecord) -> None:
        self._add("HDEL", self._names.jobs, record.job.id)
        self._add("HSET", self._names.done, record.job.id, _encode(record))
        self._add("ZADD", self._names.done_at, record.over_at, record.job.id)

    def put_unserved(self, record: JobRecord, at: float) -> None:
        """A job that we don't serve: its record says why."""
        self._add("HDEL", self._names.jobs, record.job.id)
        self._add("HSET", self._names.unserved, record.job.id, _encode(record))
        self._add("ZADD", self._names.unserved_at, at, record.job.id)

    def drop_unserved(self, job_id: int) -> None:
        self._add("HDEL", self._names.unserved, job_id)
        self._add("ZREM", self._names.unserved_at, job_id)

    def put_runner(self, record: RunnerRecord) -> None:
        self._add("HSET", self._names.runners, record.id, _encode(record))

    def finish_runner(self, record: RunnerRecord) -> None:
        self._add("HDEL", self._names.runners, record.id)
        self._add("HSET", self._names.gone, record.id, _encode(record))
        self._add("ZADD", self._names.gone_at, record.life.since, record.id)
        self.drop_jit(record.id)

    def put_policy(self, policy: Policy) -> None:
        self._add("HSET", self._names.policies, policy.digest, _encode(policy))

    def put_jit(self, runner: str, sealed: bytes, lasts_s: int) -> None:
        self._add("SET", self._names.jit + runner, sealed, "EX", lasts_s)

    def drop_jit(self, runner: str) -> None:
        self._add("DEL", self._names.jit + runner)

    def put_desired(self, desired: Desired, digest: str) -> None:
        self._add("HSET", self._names.desired, desired.host, _encode(desired))
        self._add("HSET", self._names.sums, desired.host, _encode(Sum(desired.generation, digest)))
        self._add("PUBLISH", self._names.wake, desired.host)

    def take_out(self, entry: str) -> None:
        self._add("XDEL", self._names.inbox, entry)

    def put_foreign(self, installation: int) -> None:
        self._add("SET", f"{self._names.foreign}{installation}", 1, "EX", FOREIGN_FOR_S)

    def forget_foreign(self, installation: int) -> None:
        self._add("DEL", f"{self._names.foreign}{installation}")

    def count(self, counter: str, by: int = 1) -> None:
        self._add("HINCRBY", self._names.counters, counter, by)

    def observe_phase(self, phase: str, seconds: float) -> None:
        """Into the histogram of phase durations, kept in the counters so that it outlives the process.

        Only the smallest bucket that holds it is counted; whoever shows the histogram adds up those below.
        """
        bucket = next((bucket for bucket in PHASE_BUCKETS_S if seconds <= bucket), None)
        if bucket is not None:
            self.count(f"phase_seconds_in{{phase={phase},le={bucket}}}")
        self.count(f"phase_seconds_count{{phase={phase}}}")
        self._add("HINCRBYFLOAT", self._names.counters, f"phase_seconds_sum{{phase={phase}}}", f"{seconds:.3f}")

    def put_outage(self, since: float) -> None:
        """0: none goes on."""
        self._add(*(("SET", self._names.outage, since) if since else ("DEL", self._names.outage)))

    def put_clock(self, clock: Reckoned) -> None:
        self._add("SET", self._names.clock, _encode(clock))

    def put_releases(self, releases: Releases) -> None:
        self._add("SET", self._names.releases, _encode(releases))

    def spend_rerun(self, run_id: int) -> None:
        self._add("INCR", self._names.reruns(run_id))
        self._add("EXPIRE", self._names.reruns(run_id), RUN_LASTS_S)

    def put_ward(self, ward: Ward) -> None:
        self._add(*(("SET", self._names.ward, _encode(ward)) if ward != Ward() else ("DEL", self._names.ward)))

    def forget_lifted(self, subject: str) -> None:
        self._add("HDEL", self._names.lifted, subject)

    def note_active(self, installation: int, repo: str, at: float) -> None:
        self._add("ZADD", self._names.active, at, f"{installation} {repo}")

    def note_served(self, repo: str, at: float) -> None:
        self._add("ZADD", self._names.served, at, repo)

    def note_searched(self, at: float, forget_before: float) -> None:
        """All repositories were asked; forget the activity of those that had none since ``forget_before``."""
        self._add("SET", self._names.searched, at)
        self._add("ZREMRANGEBYSCORE", self._names.active, "-inf", forget_before)

    def put_swept(self, swept: Swept) -> None:
        self._add("SET", self._names.redelivery, _encode(swept))

    def set_known(self) -> None:
        self._add("SET", self._names.known, 1)

    def _add(self, *operation: Part) -> None:
        self.operations.append(operation)
