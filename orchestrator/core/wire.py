"""What the control plane and a host agent say to each other: `Desired` down, `Observed` up, both whole and repeatable.

Neither side sends orders or deltas.  The control plane states which runners a host should have and under which policy;
the agent states what it sees.  A lost or doubled message changes nothing, and either side may restart at any moment.
JSON over HTTP: ``GET /host/v1/desired?generation=N&wait=S`` (200 with `Desired`, or 204 when nothing newer came within
``wait`` seconds) and ``POST /host/v1/observed`` (204), each with ``Authorization: Bearer`` the host's token.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from orchestrator.core.decided import Decided
from orchestrator.core.flow import Identity
from orchestrator.core.machine import Capacity, MachineClass
from orchestrator.core.policy import Policy

Wish = Literal["run", "gone"]
VmState = Literal["absent", "making", "running", "stopped", "crashed", "failed"]
Start = Literal["", "cold", "clone", "warm"]
TemplateState = Literal["building", "ready", "failed"]

Mark = Literal[
    "accepted",  # the agent has read the wish
    "chain_installed",  # nftables chain, map entry and L2 chain read back; the link still down
    "disk_made",
    "seed_made",
    "domain_started",  # libvirt has made the VM, paused
    "cloned",  # its template's device state is loaded
    "guest_hello",  # the guest's agent spoke on the channel
    "gate_opened",  # the guest has a clock, an identity and randomness of its own, and cloud-init goes on
    "jit_taken",  # the guest holds the JIT configuration
    "seed_gone",  # seed ejected and deleted, looked at by the agent
    "runner_started",  # the runner's process runs
    "runner_listening",  # the runner said that it listens for jobs
    "job_hint",  # the guest says that a job started: a claim, see `GuestClaim`
    "policy_bound",  # the gateway has acknowledged the job's policy
    "steps_released",  # the hook was told to go on
    "job_completed",  # the runner said that its job has ended
    "runner_exited",
    "end_begun",  # the agent began to destroy
    "vm_dead",  # the VM's process is dead: its processors and memory are free, whatever libvirt still tidies up
    "domain_gone",
    "all_gone",  # everything looked for and not found: see `Proof`
]


class GuestClaim(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the job-started hook says of its job.  The guest is hostile: a reason to ask GitHub, never an answer."""

    repository: str = ""
    run_id: int = 0
    run_attempt: int = 0
    job: str = ""
    runner_name: str = ""


class Proof(msgspec.Struct, frozen=True):
    """What the agent found when it looked for what a runner had, after destroying it.  True: looked for, not there."""

    domain: bool
    disk: bool
    seed: bool
    channel: bool
    tap: bool
    chain: bool
    l2_chain: bool
    map_entry: bool
    gateway: bool
    looked_at: float

    @property
    def whole(self) -> bool:
        return all(
            (self.domain, self.disk, self.seed, self.channel, self.tap)
            + (self.chain, self.l2_chain, self.map_entry, self.gateway)
        )


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why the agent couldn't do what was wished, for a person to read."""

    code: str
    message: str
    remedy: str = ""
    console: str = ""
    """The last lines of the serial console (at most 4 KiB), with every secret taken out."""
    domain: str = ""
    """What libvirt said of the VM at that moment."""
    over: bool = False
    """Of a host: shown to people, and keeps nothing from being started any more."""


class Scope(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a runner is registered at GitHub: with the organisation where it names one, else with the repository."""

    org: str = ""
    repo: str = ""
    """``owner/name``"""


class DesiredRunner(msgspec.Struct, frozen=True, omit_defaults=True):
    id: str
    """ULID"""
    wish: Wish
    machine: MachineClass
    identity: Identity
    policy: Policy
    """Sealed: the baseline.  Bound: the job's."""
    generation: int
    """Grows when the policy or identity changes."""
    bound: bool = False
    reason: str = ""
    """Why it should be gone."""
    refused: str = ""
    """Why its job gets no policy: the guest's hook is told and fails the job, for its user to read."""
    jit: str = ""
    """The encoded JIT configuration.  Present until `jit_taken` was observed, and never logged."""
    boot_by: float = 0.0
    """Seconds since the epoch: not listening by then, the agent gives up."""
    end_by: float = 0.0
    """Seconds since the epoch: the agent ends the VM by itself then, also with the control plane away."""
    idle_s: float = 0.0
    """Its runner has listened for so long without a job, by the host's own clock: the agent ends the VM by itself.
    0: no limit, since it has a job or GitHub can't be heard.
    """
    scope: Scope | None = None
    """Where it is registered.  The host keeps it and says it again: a control plane that has lost its memory asks there."""

    def __repr__(self) -> str:
        return f"DesiredRunner(id={self.id!r}, wish={self.wish!r}, bound={self.bound}, generation={self.generation})"


class Desired(msgspec.Struct, frozen=True):
    host: str
    generation: int
    runners: tuple[DesiredRunner, ...]
    classes: tuple[MachineClass, ...] = ()
    """Classes that the host should have templates for, and machines waiting."""
    templates_since: float = 0.0
    """Templates that were made before are to be made anew; seconds since the epoch."""
    templates_removed: dict[str, float] = {}
    """Key of a template to when it was removed: one that was made before goes, and comes again where a class or a job wants it."""
    decided: Decided = Decided()
    """Of the host itself.  It keeps this, and says it again."""
    at: float = 0.0
    """When this was said, by the control plane's clock: what its deadlines are reckoned from.  0 where an older one doesn't tell."""


class Image(msgspec.Struct, frozen=True, omit_defaults=True):
    """An image that the host has, and what was read off the package managers in it when it was built."""

    name: str
    digest: str
    runner_version: str
    presets: dict[str, tuple[str, ...]] = {}
    """Preset name (``apt``, ``node``, ``pypi``) to host names."""
    created: float = 0.0
    """When it was built; 0 where that isn't known."""


class ObservedTemplate(msgspec.Struct, frozen=True, omit_defaults=True):
    """A booted machine that clones start from.  ``key`` covers all that its memory depends on."""

    key: str
    classes: tuple[str, ...]
    """Names of the classes that start from it; empty where none does any more."""
    image: str
    """Digest of the image that it has booted."""
    state: TemplateState
    since: float
    """When it came into its state, seconds since the epoch."""
    disk_bytes: int = 0
    """What its files take on the disk."""
    clones: int = 0
    """Machines that run from it now."""
    reason: str = ""
    """Why its building failed."""


class ObservedWarm(msgspec.Struct, frozen=True, omit_defaults=True):
    """A machine that waits at the gate, with neither registration nor policy nor network."""

    id: str
    """ULID; a runner's own one takes its place when it gets a job."""
    machine_class: str
    since: float


class ObservedRunner(msgspec.Struct, frozen=True, omit_defaults=True):
    id: str
    vm: VmState
    start: Start = ""
    """How its VM was started."""
    cold_because: str = ""
    """Why it didn't start as its class wants: cold in place of a clone, or a clone where machines should wait."""
    marks: dict[str, float] = {}
    """`Mark` to the time at which it was first true."""
    policy: str = ""
    """Digest of the policy that the gateway has in force for it."""
    generation: int = 0
    claim: GuestClaim | None = None
    exit_code: int | None = None
    failure: Failure | None = None
    proof: Proof | None = None
    heard_at: float = 0.0
    """When its guest last said anything, by the host's clock: `Observed.at` minus this is its silence."""
    scope: Scope | None = None
    """Where it is registered, as the control plane said; None where an older one didn't."""


class Observed(msgspec.Struct, frozen=True, omit_defaults=True):
    host: str
    boot: str
    """Changes when the host was rebooted."""
    at: float
    capacity: Capacity
    accelerator: str
    """``kvm`` or ``tcg``"""
    generation: int
    """Of the `Desired` that it has read."""
    runners: tuple[ObservedRunner, ...] = ()
    images: tuple[Image, ...] = ()
    problems: tuple[Failure, ...] = ()
    """Of the host itself: no image, libvirt away, table missing."""
    cordoned: bool = False
    version: str = ""
    templates: tuple[ObservedTemplate, ...] = ()
    warm: tuple[ObservedWarm, ...] = ()
    took_s: float = 0.0
    """How long the report before this one took to be answered; 0 where it isn't known."""
    unshipped: int = 0
    """Lines of its ledger that are on its disk and that the control plane hasn't acknowledged."""
    unshipped_s: float = 0.0
    """For how long there have been such lines without a break."""
    swept: dict[str, int] = {}
    """What its agent found that belonged to no runner, and removed, since it started: ``runner`` or ``link`` to how often."""
    decided: Decided | None = None
    """What it was told last; None where its agent, of an older version, keeps none."""


class LedgerBatch(msgspec.Struct, frozen=True):
    """``POST /host/v1/ledger``: lines of the host's ledger as they are, in order.  Answer: `LedgerAck`.

    ``lines`` may be empty where only ``checkpoints`` are new.
    """

    host: str
    first_seq: int
    lines: tuple[str, ...]
    checkpoints: tuple[str, ...] = ()
    """Signed notes, as the host made them, smallest tree first."""
    public_key: str = ""
    """What verifies them, in the form of C2SP's signed-note: ``name+hash+base64``.  The first one that comes is pinned."""


class LedgerAck(msgspec.Struct, frozen=True, omit_defaults=True):
    next_seq: int
    """The sequence number that the control plane wants next; the agent goes on from there."""
    checkpoint: int | None = None
    """Size of the tree of the newest checkpoint kept, 0 where there is none; None: checkpoints aren't taken."""
