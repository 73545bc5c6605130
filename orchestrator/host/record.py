"""What this host remembers of one runner, and where: ``<state>/runners/<name>.json``.

Written before the step that must not be done twice: a VM is resumed once (``released``), since its JIT configuration
is good for one runner.  No secret is in it.  Libvirt, nftables and the folders remain the truth about what exists; the
record only holds what can't be seen there: when things happened, and why.

When something happened stands there twice: by the time of day, which is told to others and which somebody may set, and by
the clock since the host's boot, which the host itself reckons with.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import structlog

from orchestrator.core.errors import HostError
from orchestrator.core.machine import MachineClass
from orchestrator.core.names import names_of, ulid_of
from orchestrator.core.wire import Failure, GuestClaim, Mark, ObservedRunner, Proof, Scope, Start, VmState
from orchestrator.system.files import write_atomic

log = structlog.get_logger()


class Record(msgspec.Struct):
    id: str
    machine: MachineClass
    vm: VmState = "absent"
    slot: int = -1
    """Index of its link; -1 where it has none."""
    released: bool = False
    """The VM was resumed, or is about to be: it is never made a second time."""
    marks: dict[str, float] = {}
    """When each first became true, in seconds since the epoch."""
    ups: dict[str, float] = {}
    """The same in seconds since the host's boot."""
    policy: str = ""
    generation: int = 0
    bound: bool = False
    """The policy in force is the job's."""
    claim: GuestClaim | None = None
    exit_code: int | None = None
    failure: Failure | None = None
    proof: Proof | None = None
    end_reason: str = ""
    start: Start = ""
    """How its VM was started."""
    cold_because: str = ""
    template: str = ""
    """Key of the template that it is a clone of."""
    heard_up: float = 0.0
    """When its guest last said anything, in seconds since the host's boot; 0 where it never did."""
    scope: Scope | None = None
    """Where it is registered, as the control plane said."""
    idled: str = ""
    """Why it was told to stop as a runner without a job; empty where it wasn't."""

    def mark(self, mark: Mark, now: float, up: float) -> bool:
        """Note when ``mark`` first became true, by both clocks; False where it was already."""
        if mark in self.marks:
            return False
        self.marks[mark] = now
        self.ups[mark] = up
        return True

    def unmark(self, mark: Mark) -> None:
        self.marks.pop(mark, None)
        self.ups.pop(mark, None)

    def taken_over(self, up: float) -> None:
        """An agent has read it at ``up``.  An older one noted less, and one of another boot (none of whose VMs lives) other times."""
        self.ups = {mark: min(up, self.ups.get(mark, up)) for mark in self.marks}
        self.heard_up = up  # what its guest said while nobody listened isn't known

    def has(self, mark: Mark) -> bool:
        return mark in self.marks

    @property
    def is_proved_gone(self) -> bool:
        return self.proof is not None and self.proof.whole

    def observed(self, now: float, up: float) -> ObservedRunner:
        """What is told of it at ``now``, which is ``up`` by the clock since the host's boot."""
        return ObservedRunner(
            id=self.id,
            vm=self.vm,
            start=self.start,
            cold_because=self.cold_because,
            marks=dict(self.marks),
            policy=self.policy,
            generation=self.generation,
            claim=self.claim,
            exit_code=self.exit_code,
            failure=self.failure,
            proof=self.proof,
            heard_at=now - (up - self.heard_up) if self.heard_up else 0.0,
            scope=self.scope,
        )


class Records:
    """The folder of records.  A record that can't be read is left out: the sweep finds what belonged to it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.unwritable: HostError | None = None
        """Why the last write failed; None where it didn't."""

    def save(self, record: Record) -> None:
        """Raises HostError (``state-unwritable``) where it can't be kept."""
        self.write(self._path(record.id), msgspec.json.encode(record))

    def write(self, path: Path, data: bytes) -> None:
        """Anything of the agent's state.  Raises HostError (``state-unwritable``)."""
        try:
            self._write(path, data)
        except OSError as error:
            self.unwritable = HostError(
                f"can't keep what is known of VMs: {error}",
                code="state-unwritable",
                remedy="Make room on the disk of host.state_dir; VMs that run go on, and none is started until then.",
            )
            raise self.unwritable from error
        self.unwritable = None

    def _write(self, path: Path, data: bytes) -> None:
        write_atomic(path, data)

    def forget(self, ulid: str) -> None:
        self._path(ulid).unlink(missing_ok=True)

    def load(self) -> Iterator[Record]:
        for name in sorted(os.listdir(self._folder)):
            ulid = ulid_of(name.removesuffix(".json"))
            if ulid is None or not name.endswith(".json"):
                continue
            try:
                yield msgspec.json.decode((self._folder / name).read_bytes(), type=Record)
            except (OSError, msgspec.MsgspecError) as error:
                log.warning("record_unreadable", runner=ulid, error=str(error))
                self.forget(ulid)

    def _path(self, ulid: str) -> Path:
        return self._folder / f"{names_of(ulid).domain}.json"
