"""The machines that wait on this host: made, watched, handed over to jobs, and ended.

`orchestrator.host.pool_plan` says what should be; here it is done, each step on a thread of the pool's own, so that no
job's step waits for one.  Every machine has a record in ``<state>/waiting``, written before anything of it is made, and
is known by its name to the sweep besides.  An agent that starts again ends what waited before it: nothing is lost by
that but some time, and nobody has to find out how far each one had come.

A machine that gets a job leaves the pool: it is a runner from then on, under the same names (`claim`).
"""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Callable, Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import msgspec
import structlog
from ulid import ULID

from orchestrator.core.errors import HostError, IronCDError
from orchestrator.core.machine import Capacity, MachineClass
from orchestrator.core.wire import ObservedWarm
from orchestrator.host import pool_plan, pressure
from orchestrator.host.end import end
from orchestrator.host.parts import Cancelled, Parts, Runner
from orchestrator.host.pool_plan import Memory, Scene, Waiter, WaiterState
from orchestrator.host.pool_scene import holds_room
from orchestrator.host.record import Record, Records
from orchestrator.host.templates import Cold
from orchestrator.host.waiting import make as make_waiting

log = structlog.get_logger()

Make = Callable[[Parts, Runner], None]
"""Brings the machine of a runner up to where it waits (`orchestrator.host.waiting.make`)."""

RETRY_S = 2.0
PAUSE_S = 30.0
"""After a machine that couldn't be made, no other is tried for so long."""
MEMORY_S = 1.0
_ENDS = 4


@dataclass
class _Waiting:
    runner: Runner
    template: str
    state: WaiterState
    since: float
    """When it came into its state; this and ``not_before`` are seconds since the host's boot."""
    busy: bool = False
    not_before: float = 0.0

    def as_waiter(self) -> Waiter:
        return Waiter(self.runner.record.id, self.runner.record.machine, self.template, self.state, self.since)


class Pool:
    """``parts`` are the agent's own; what changes in them later holds here too."""

    def __init__(
        self, parts: Parts, *, make: Make = make_waiting, memory: Callable[[], Memory] = pressure.look
    ) -> None:
        self._agents_parts = parts
        parts.unwaited = self.why_none
        self._records = Records(parts.paths.waiting)
        self._make = make
        self._look_at_memory = memory
        self._memory, self._memory_at = Memory(tight=False, roomy=False), 0.0
        self._lock = threading.RLock()
        self._waiting: dict[str, _Waiting] = {}
        self._not_before = 0.0
        self._maker = ThreadPoolExecutor(1, thread_name_prefix="pool-make")
        self._ender = ThreadPoolExecutor(_ENDS, thread_name_prefix="pool-end")

    @property
    def parts(self) -> Parts:
        """With the records of those that wait in the place of runners'."""
        return dataclasses.replace(self._agents_parts, records=self._records)

    def begin(self, runners: Container[str]) -> None:
        """Take in what the last agent had waiting: all of it ends, but for what was handed over to ``runners`` before."""
        for record in self._records.load():
            if record.id in runners:
                self._records.forget(record.id)
                continue
            if record.slot >= 0:
                self.parts.slots.adopt(record.slot)
            self._waiting[record.id] = _Waiting(Runner(record), "", "ending", self.parts.uptime())

    # --- what it knows

    def ids(self) -> frozenset[str]:
        with self._lock:
            return frozenset(self._waiting)

    def observed(self) -> tuple[ObservedWarm, ...]:
        to_epoch = self.parts.clock() - self.parts.uptime()
        with self._lock:
            found = [w for w in self._waiting.values() if w.state == "waiting"]
            return tuple(
                ObservedWarm(w.runner.record.id, w.runner.record.machine.name, w.since + to_epoch) for w in found
            )

    def why_none(self, machine: MachineClass) -> str:
        """Why a job of ``machine`` is started without a machine that waits; empty where its class wants none waiting."""
        if not machine.warm or machine.start != "clone":
            return ""
        with self._lock:
            states = {w.state for w in self._waiting.values() if w.runner.record.machine.name == machine.name}
            paused = self.parts.uptime() < self._not_before
        if "waiting" in states:
            why = "what waits became ready after it was placed, or is another's"
        elif "making" in states:
            why = "one is being made"
        elif self._memory.tight:
            why = "memory is short"
        elif paused:
            why = "the last one couldn't be made"
        else:
            why = "the next one isn't made yet"
        return f"no machine waited for it: {why}"

    def clones(self) -> Counter[str]:
        """How many there are of each template."""
        with self._lock:
            living = [
                waiting.runner.record.template
                for waiting in self._waiting.values()
                if holds_room(waiting.runner.record)
            ]
        return Counter(template for template in living if template)

    def vm_ended(self, ulid: str, why: str) -> bool:
        """A machine's VM has ended by itself; False where it isn't the pool's."""
        with self._lock:
            found = self._waiting.get(ulid)
            if found is None:
                return False
            if found.state == "waiting":
                log.warning("waiting_vm_ended", runner=ulid, why=why)
                self._to_end(found, f"it ended by itself ({why})")
            elif found.state == "making":
                found.runner.cancel.set()
        return True

    def look(self, alive: Container[str]) -> None:
        """Find VMs that ended without an event; ``alive`` are the ids that libvirt has."""
        with self._lock:
            gone = [ulid for ulid, found in self._waiting.items() if found.state == "waiting" and ulid not in alive]
        for ulid in gone:
            self.vm_ended(ulid, "gone")

    # --- what is done

    def turn(self, scene: Scene, now: float) -> None:
        """Do what `plan` says of ``scene`` (whose machines and memory are filled in here), and go on with ends."""
        if now - self._memory_at >= MEMORY_S:
            self._memory, self._memory_at = self._look_at_memory(), now
        with self._lock:
            found = pool_plan.plan(self._filled(scene), now, self.parts.settings.warm_age_s)
            for ulid, why in found.end:
                self._to_end(self._waiting[ulid], why)
                self._memory_at = 0.0  # what was seen isn't so once it is dead
            for waiting in list(self._waiting.values()):
                if waiting.state == "ending" and not waiting.busy and now >= waiting.not_before:
                    self._submit_end(waiting)
            if scene.starting:  # what is made rehearses, which takes a processor that the job could have
                self._give_up_making()
            if found.make is not None and now >= self._not_before:
                self._submit_make(*found.make, now)

    def make_room(self, taken: Sequence[MachineClass], capacity: Capacity, *, beside: str = "") -> bool:
        """True where jobs' machines ``taken`` fit beside all that waits; where not, as many end as must, at once.

        ``beside``: a machine that is among ``taken`` already, since it is about to be a runner.
        """
        with self._lock:
            waiters = [
                w.as_waiter()
                for w in self._waiting.values()
                if w.runner.record.id != beside and holds_room(w.runner.record)
            ]
            if not waiters or pool_plan.fits([*taken, *(waiter.machine for waiter in waiters)], capacity):
                return True
            gone = pool_plan.make_room(taken, waiters, capacity)
            for ulid in gone:
                self._to_end(self._waiting[ulid], "a job needs its room")
            kept = [w.machine for w in waiters if w.id not in gone and w.state != "ending"]
            if not pool_plan.fits([*taken, *kept], capacity):
                self._give_up_making()
        return False

    def claim(self, ulid: str, machine: MachineClass) -> Runner | None:
        """Hand the machine ``ulid`` over to a job of ``machine``; None where there is none, or it isn't fit for that (any more).

        What isn't fit ends: as long as `ids` names it, nothing else may be made by its names.
        """
        with self._lock:
            found = self._waiting.get(ulid)
            if found is None:
                return None
            record = found.runner.record
            if found.state != "waiting" or not pool_plan.same_machine(record.machine, machine):
                if found.state == "waiting":
                    self._to_end(found, "its job asks for another machine")
                return None
            fresh = Record(id=ulid, machine=machine, slot=record.slot, template=record.template)
            runner = Runner(fresh, waited=True)
            try:
                self._agents_parts.records.save(fresh)  # first: of two records the runner's counts
            except HostError as error:
                log.warning("claim_unsaved", runner=ulid, error=error.message)
                return None
            self._records.forget(ulid)
            self.parts.reserved.pop(ulid, None)
            del self._waiting[ulid]
        return runner

    def close(self) -> None:
        with self._lock:
            for waiting in self._waiting.values():
                waiting.runner.cancel.set()
        for executor in (self._maker, self._ender):
            executor.shutdown(wait=True, cancel_futures=True)

    # --- within

    def _give_up_making(self) -> None:
        """It is cleared away as soon as its thread notices."""
        for waiting in self._waiting.values():
            if waiting.state == "making":
                waiting.runner.cancel.set()

    def _filled(self, scene: Scene) -> Scene:
        waiters = tuple(w.as_waiter() for w in self._waiting.values() if holds_room(w.runner.record))
        return msgspec.structs.replace(scene, waiters=waiters, memory=self._memory)

    def _to_end(self, waiting: _Waiting, why: str) -> None:
        if waiting.state == "ending":
            return
        waiting.state, waiting.since = "ending", self.parts.uptime()
        waiting.runner.record.end_reason = why
        log.info("waiting_vm_ends", runner=waiting.runner.record.id, why=why)
        self._submit_end(waiting)
        self.parts.changed()

    def _submit_make(self, machine: MachineClass, template: str, now: float) -> None:
        ulid = str(ULID.from_timestamp(self.parts.clock()))
        waiting = _Waiting(Runner(Record(id=ulid, machine=machine)), template, "making", now)
        self._waiting[ulid] = waiting
        self._maker.submit(self._do_make, waiting)

    def _do_make(self, waiting: _Waiting) -> None:
        runner, parts = waiting.runner, self.parts
        try:
            self._make(parts, runner)
        except Cancelled:
            with self._lock:
                self._to_end(waiting, "a job needs its room")
            return
        except Exception as error:
            known = isinstance(error, IronCDError | Cold)
            log.warning("waiting_vm_failed", runner=runner.record.id, error=str(error), exc_info=not known)
            with self._lock:
                self._not_before = parts.uptime() + PAUSE_S
                self._to_end(waiting, "it couldn't be made")
            return
        with self._lock:
            if runner.cancel.is_set():
                self._to_end(waiting, "a job needs its room")
                return
            waiting.template = runner.record.template
            waiting.state, waiting.since = "waiting", parts.uptime()
        log.info("vm_waits", runner=runner.record.id, machine_class=runner.record.machine.name)
        parts.changed()

    def _submit_end(self, waiting: _Waiting) -> None:
        if waiting.busy:
            return
        waiting.busy = True
        self._ender.submit(self._do_end, waiting)

    def _do_end(self, waiting: _Waiting) -> None:
        parts, record = self.parts, waiting.runner.record
        try:
            whole = end(parts, waiting.runner, record.end_reason or "it waited when the agent ended").whole
        except Exception as error:  # noqa: BLE001 - it is tried again until it is proved gone
            log.warning("waiting_vm_stays", runner=record.id, error=str(error))
            whole = False
        with self._lock:
            waiting.busy = False
            waiting.not_before = parts.uptime() + RETRY_S
            if whole:
                self._records.forget(record.id)
                self._waiting.pop(record.id, None)
                parts.reserved.pop(record.id, None)
        parts.changed()
