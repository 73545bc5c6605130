"""What the control plane remembers of jobs, runners and hosts, beside what core's own types hold.

All of it can be found again: from GitHub (jobs, registrations) and from the hosts (machines, marks, proof).
"""

from __future__ import annotations

import msgspec

from orchestrator.core.clocks import Reckoned
from orchestrator.core.decided import Drain
from orchestrator.core.flow import Identity
from orchestrator.core.inbox import Delivery
from orchestrator.core.job import Job, Moment
from orchestrator.core.listening import Listening
from orchestrator.core.loss import Rerun
from orchestrator.core.names import names_of
from orchestrator.core.quarantine import Ward
from orchestrator.core.runner import Runner
from orchestrator.core.runner_release import Releases
from orchestrator.core.wire import Failure, Observed, Proof, Start

STORY_LIMIT = 100


class JobRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    job: Job
    runners: tuple[str, ...] = ()
    """ULIDs of all runners that were made for it or had it, oldest first."""
    not_before: float = 0.0
    """No runner is made for it earlier."""
    checked_at: float = 0.0
    """When GitHub was last asked about it, or told of it; 0 where it should be asked at once."""
    refusal: str = ""
    """What its commit status ought to say of its policy; empty where nothing is wrong with it."""
    status: str = ""
    """What its commit status says."""
    over_at: float = 0.0
    loss: str = ""
    """What became of its machine while GitHub still thought it running; for a person to read."""
    lost_at: float = 0.0
    loss_said: str = ""
    """What its commit was told of that."""
    quiet_at: float = 0.0
    """When its runner ended in order, GitHub not having said that the job has."""
    rerun: Rerun | None = None
    approved: bool = False
    """GitHub said that nobody's approval of its environment is waited for."""
    wait: str = ""
    """What it waits for, in one word (`quota`, `room`, `turn`...); `Job.reason` has the words for people."""
    told: str = ""
    """The kind of wait that its story tells of now; empty where that has ended."""
    permanent: str = ""
    """Why no runner is made for it any more, ever; for a person to read."""


class RunnerRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    life: Runner
    identity: Identity
    policy: str
    """Digest of the policy that its host is told to have in force."""
    generation: int = 1
    bound: bool = False
    """The policy is its job's; its host is told so."""
    refused: str = ""
    """Why its job gets no policy; the guest fails the job with it."""
    marks: dict[str, float] = {}
    failure: Failure | None = None
    proof: Proof | None = None
    exit_code: int | None = None
    start: Start = ""
    """How its host started its VM."""
    cold_because: str = ""
    """Why it didn't start as its class wants: cold in place of a clone, or a clone where machines should wait."""
    tries: int = 0
    """At GitHub, for the order that it is owed; 0 once one succeeded."""
    not_before: float = 0.0
    checked_at: float = 0.0
    looked_for_at: float = 0.0
    """When GitHub was last asked whether it still knows the runner."""
    unreachable_since: float = 0.0
    """Since when its registration is out of reach; 0 where it isn't."""
    missing_since: float = 0.0
    """Since when it doesn't; 0 where it does."""
    image: str = ""
    """Digest of the image that its host had when it was told to boot it."""
    boot_by: float = 0.0
    end_by: float = 0.0
    waiting: str = ""
    """What it waits for, for a person to read."""
    story: tuple[Moment, ...] = ()

    @property
    def id(self) -> str:
        return self.life.id

    @property
    def name(self) -> str:
        """Of the runner at GitHub."""
        return names_of(self.life.id).runner

    def tell(self, at: float, what: str, detail: str = "") -> RunnerRecord:
        """With one more line in its story; a line that says the same as the one before it is left out."""
        if self.story and (self.story[-1].what, self.story[-1].detail) == (what, detail):
            return self
        return msgspec.structs.replace(self, story=(*self.story, Moment(at, what, detail))[-STORY_LIMIT:])


class Sighting(msgspec.Struct, frozen=True):
    """What a host reported, and when we heard it by our own clock."""

    at: float
    observed: Observed


class Entry(msgspec.Struct, frozen=True):
    """One entry of the inbox; it stays there until its effects are recorded."""

    id: str
    delivery: Delivery | None
    """None where it can't be read: written by another version, or damaged."""


class Sum(msgspec.Struct, frozen=True):
    """Which `Desired` a host has: its generation, and a digest of all else in it."""

    generation: int
    digest: str


class Snapshot(msgspec.Struct, frozen=True):
    """Everything that one look starts from, read at one moment."""

    jobs: dict[int, JobRecord]
    """Not over, or over with a runner not yet gone."""
    runners: dict[str, RunnerRecord]
    """Not GONE."""
    sightings: dict[str, Sighting]
    sums: dict[str, Sum]
    inbox: tuple[Entry, ...]
    known: bool
    """False in an empty Redis: what was there must be found again."""
    cordoned: dict[str, str] = {}
    """Hosts that an admin cordoned, and why."""
    draining: dict[str, Drain] = {}
    """Hosts that are to be empty."""
    decided: dict[str, float] = {}
    """When it was last decided of a host whether it is cordoned or drained: see `orchestrator.control.host_decisions`."""
    templates_since: dict[str, float] = {}
    """Hosts to when an admin wanted their templates made anew."""
    templates_removed: dict[str, dict[str, float]] = {}
    """Hosts to the keys of templates that an admin removed, and when."""
    served: dict[str, float] = {}
    """Repository (in lower case) to when a runner was last made for a job of it."""
    outage_since: float = 0.0
    """When GitHub stopped answering; 0 where no outage goes on."""
    releases: Releases = Releases()
    listening: Listening | None = None
    """Since when hosts can be heard; None where no API has said."""
    clock: Reckoned | None = None
    """The worker's clock as it was; None where none has noted it."""
    ward: Ward = Ward()
    lifted: dict[str, float] = {}
    """Quarantines that an admin ended, and when."""


class Tried(msgspec.Struct, frozen=True):
    """How often GitHub was asked to deliver an event again, and when last."""

    times: int
    at: float
    given_up: bool = False


class Swept(msgspec.Struct, frozen=True):
    """What the redelivery sweep remembers."""

    cursor: int = 0
    """Every delivery up to this id arrived, was given up, or is too old."""
    tried: dict[str, Tried] = {}
    """By guid."""


class Finished(msgspec.Struct, frozen=True):
    """One line of the archive: a job that is over, with the runners that it had."""

    job: JobRecord
    runners: tuple[RunnerRecord, ...]
