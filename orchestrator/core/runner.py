"""A runner as it is recorded, what can happen to it, and what can be ordered for it.

Events are past tense, effects are orders.  What an event makes of a runner stands in `orchestrator.core.lifecycle`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from orchestrator.core.machine import MachineClass

Phase = Literal["WANTED", "BOOTING", "READY", "RUNNING", "DESTROYING", "GONE"]
PHASES: tuple[Phase, ...] = ("WANTED", "BOOTING", "READY", "RUNNING", "DESTROYING", "GONE")


SESSION_CONFLICT = 5
"""A runner exits with this where another session is open under its name: its JIT configuration was used twice."""
NOTICE_S = 60.0
"""The runner is told to end its job (SIGTERM) so long before its machine is ended."""
TOO_OLD = (3, 4, 7)
"""... with these where GitHub wants another version of it."""


class Deadlines(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long a phase may last, in seconds.  RUNNING lasts as long as the class's ``lifetime_s`` lets it."""

    wanted_s: float = 24 * 3600.0
    booting_s: float = 300.0
    ready_s: float = 300.0
    destroying_s: float = 60.0


class Runner(msgspec.Struct, frozen=True, omit_defaults=True):
    id: str
    """ULID; every name derives from it (`orchestrator.core.names`)."""
    machine: MachineClass
    installation: int
    org: str
    repo: str
    """``owner/name`` of the job that it was made for; the registration's scope where the account is no organisation."""
    labels: tuple[str, ...]
    meant_for: int
    created_at: float
    phase: Phase
    since: float
    """When it entered its phase, seconds since the epoch."""
    deadline: float
    host: str = ""
    registration: Literal["none", "asked", "held", "gone", "unreachable"] = "none"
    """``asked`` is written before GitHub is: from then on there may be a registration under the runner's name.
    ``unreachable``: there may be one, and the App may not remove it any more.
    """
    github_id: int = 0
    vm: Literal["none", "asked", "gone"] = "none"
    job_id: int = 0
    bound: str = ""
    """Digest of the job's policy, once the gateway has it in force."""
    cut: str = ""
    """Why its time is shorter than its class gives it; empty where it isn't."""
    fencing: str = ""
    """Why GitHub is being asked to give the registration back; empty where it isn't."""
    reason: str = ""
    """Why it ends, one word; the first one stays."""
    detail: str = ""
    alarms: int = 0
    """Times that a deadline passed in DESTROYING."""


# Events: what happened, in the past tense.


class Placed(msgspec.Struct, frozen=True, tag=True):
    host: str


class RegistrationAsked(msgspec.Struct, frozen=True, tag=True):
    """Recorded before the request is sent: what may exist must be removed."""


class Registered(msgspec.Struct, frozen=True, tag=True):
    github_id: int


class RegistrationRefused(msgspec.Struct, frozen=True, tag=True):
    """GitHub won't ever register it.  What may still succeed is no event: the order stays owed."""

    detail: str


class RunnerListened(msgspec.Struct, frozen=True, tag=True):
    pass


class JobStarted(msgspec.Struct, frozen=True, tag=True):
    """GitHub said so (webhook or API); the guest's word is none."""

    job_id: int


class PolicyBound(msgspec.Struct, frozen=True, tag=True):
    digest: str


class JobCompleted(msgspec.Struct, frozen=True, tag=True):
    job_id: int
    conclusion: str


class RunnerExited(msgspec.Struct, frozen=True, tag=True):
    """The runner's process ended, with this exit status; what each means stands in docs/operations/runner.md."""

    code: int

    @property
    def reason(self) -> str:
        if self.code == SESSION_CONFLICT:
            return "session_conflict"
        return "runner_too_old" if self.code in TOO_OLD else "runner_exited"


class VmFailed(msgspec.Struct, frozen=True, tag=True):
    """The VM couldn't be made, or ended by itself."""

    reason: str
    detail: str


class HostLost(msgspec.Struct, frozen=True, tag=True):
    pass


class Withdrawn(msgspec.Struct, frozen=True, tag=True):
    """Nobody needs it any more: its job was cancelled or served by another."""

    reason: str


class Fenced(msgspec.Struct, frozen=True, tag=True):
    """GitHub's answer to the fence: ``free`` (deleted), ``busy`` (has a job), ``absent`` (there was none)."""

    answer: Literal["free", "busy", "absent"]


class VmProvedGone(msgspec.Struct, frozen=True, tag=True):
    pass


class RegistrationProvedGone(msgspec.Struct, frozen=True, tag=True):
    pass


class RegistrationOutOfReach(msgspec.Struct, frozen=True, tag=True):
    """The App is suspended there or was removed: GitHub lets nobody of ours ask for the registration, or remove it."""

    why: str


class Ticked(msgspec.Struct, frozen=True, tag=True):
    """Time passed."""


class LifetimeCut(msgspec.Struct, frozen=True, tag=True):
    """Its job must be over by ``until`` (seconds since the epoch); 0: it has its whole time again."""

    until: float
    why: str = ""


class OutagePassed(msgspec.Struct, frozen=True, tag=True):
    """GitHub was away for ``seconds``: whoever waits for it gets them back."""

    seconds: float


class ClockSet(msgspec.Struct, frozen=True, tag=True):
    """Our clock was set ahead by ``seconds`` (negative: back): what was reckoned by it moves along."""

    seconds: float


Event = (
    Placed
    | RegistrationAsked
    | Registered
    | RegistrationRefused
    | RunnerListened
    | JobStarted
    | PolicyBound
    | JobCompleted
    | RunnerExited
    | VmFailed
    | HostLost
    | Withdrawn
    | Fenced
    | VmProvedGone
    | RegistrationProvedGone
    | RegistrationOutOfReach
    | Ticked
    | OutagePassed
    | ClockSet
    | LifetimeCut
)


# Effects: orders.


class Place(msgspec.Struct, frozen=True, tag=True):
    """Find a host with room."""


class Register(msgspec.Struct, frozen=True, tag=True):
    """Ask GitHub for a just-in-time configuration, under the runner's name."""


class Boot(msgspec.Struct, frozen=True, tag=True):
    """Have the host run the VM."""

    host: str


class Bind(msgspec.Struct, frozen=True, tag=True):
    """Put the policy of the job's repository in force."""

    job_id: int


class Fence(msgspec.Struct, frozen=True, tag=True):
    """Delete the registration unless a job got in first, and tell which."""

    github_id: int


class Destroy(msgspec.Struct, frozen=True, tag=True):
    """Have the host remove the VM and all that belongs to it, and look whether it is gone."""

    host: str


class Deregister(msgspec.Struct, frozen=True, tag=True):
    """Remove the registration from GitHub, and look whether it is gone.  ``github_id`` 0: find it by name."""

    github_id: int


class Alarm(msgspec.Struct, frozen=True, tag=True):
    """Tell a person: destruction takes longer than it may."""

    waiting_for: tuple[str, ...]


Effect = Place | Register | Boot | Bind | Fence | Destroy | Deregister | Alarm
