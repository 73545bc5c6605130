"""The host agent: makes what this host has into what is wished, and tells what it sees.

It is convergent and may be killed at any moment: nothing is queued, every turn compares wish and reality for each
runner (`orchestrator.host.converge`) and carries out one step for it, on a thread of its own, so that a slow end of one VM
holds nothing else up.  With the control plane away it goes on with the last wish it read, which it keeps on disk without
any JIT configuration, and so enforces lifetimes by itself.

After a restart it finds its VMs running: their links are put in force again and their channels opened.  A VM that
hadn't been resumed yet is cleared away and made anew; one that had been is never made twice.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import structlog

from orchestrator.core.errors import HostError, IronCDError
from orchestrator.core.machine import Capacity, MachineClass
from orchestrator.core.names import ulid_of
from orchestrator.core.wire import Desired, DesiredRunner, Failure, Observed
from orchestrator.host import console, desired_file, erase, guest, sweep
from orchestrator.host.accelerator import Choice, device_problem
from orchestrator.host.adopt import AWAY, adopt
from orchestrator.host.channels import is_listening
from orchestrator.host.converge import HELLO_S, Situation, Step, next_step
from orchestrator.host.deadlines import Deadlines
from orchestrator.host.decisions import Decisions
from orchestrator.host.exits import idled
from orchestrator.host.hearing import hear
from orchestrator.host.host_facts import capacity_of
from orchestrator.host.images import list_images
from orchestrator.host.parts import Parts, Runner
from orchestrator.host.pool import Pool
from orchestrator.host.pool_scene import holds_room, scene_of
from orchestrator.host.record import Record
from orchestrator.host.room import fits, too_small, without_accelerator
from orchestrator.host.ship import Lag
from orchestrator.host.steps import carry_out, doubt_template, fail
from orchestrator.host.templates import Templates
from orchestrator.host.watch import Aftermath, Watch, wall_broken
from orchestrator.system.boot import boot_id
from orchestrator.system.log import hide

log = structlog.get_logger()

TURN_S = 0.5
LOOK_S = 1.0
"""How often libvirt is asked for its domains, beside the events that it sends."""
SWEEP_S = 10.0
ORPHAN_S = 60.0
_THREADS = 32


class Agent:
    """Everything but the threads and sockets of one host's agent; `orchestrator.host.service` turns it."""

    def __init__(self, parts: Parts, choice: Choice, *, version: str = "") -> None:
        self.parts = parts
        self.choice = choice
        self.version = version
        self.wake = threading.Event()
        self.dirty = threading.Event()
        self.watch = Watch(parts.wall, parts.wires)
        self._lock = threading.RLock()
        self._runners: dict[str, Runner] = {}
        self._wishes: dict[str, DesiredRunner] = {}
        self._classes: tuple[MachineClass, ...] = ()
        self._missing_since: dict[str, float] = {}
        self._generation = -1
        self._desired = b""
        self._stated: Desired | None = None
        self._problems: dict[str, Failure] = {}
        self._orphans: dict[str, float] = {}
        self._orphan_taps: dict[str, float] = {}
        self._looked_at = self._swept_at = self._adopt_at = 0.0
        self._aftermath = Aftermath()
        self._adopted = False
        self._informed = False
        self.pool = Pool(parts)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="step")
        self._ends = ThreadPoolExecutor(_THREADS, thread_name_prefix="end")
        """Of its own: however slowly VMs are torn down, the next ones start."""
        self._capacity = Capacity(0, 0, 0)
        self._kept_mib = 0
        """Of memory, by templates; `_capacity` is less that."""
        self._erase_problem: Failure | None = None
        self._decisions = Decisions(parts.paths.decided, parts.records)
        self._boot = boot_id()
        self._deadlines = Deadlines(parts.paths.deadlines, parts.records, self._boot, parts.clock, parts.uptime)
        self._cleared = {"runner": 0, "link": 0}
        self.lag: Callable[[], Lag] = Lag
        """How far the ledger's shipping is behind."""
        parts.changed = self.changed
        parts.templates = Templates(parts)
        parts.templates.uses = self._clones
        parts.templates.memory = self._memory

    # --- what comes in

    def begin(self) -> None:
        """Read what the last process left.  The first `turn` that finds libvirt there takes the running VMs over."""
        self._deadlines.load()
        self._load_desired()
        self._decisions.load()
        for record in self.parts.records.load():
            record.taken_over(self.parts.uptime())
            self._runners[record.id] = Runner(record)
            if record.slot >= 0:
                self.parts.slots.adopt(record.slot)
        self.pool.begin(self._runners)
        self._capacity = capacity_of(self.parts.settings, self.parts.paths)
        self._erase_problem = erase.problem(self.parts.paths.disks, self.parts.settings.disk_erase)

    def wished(self, desired: Desired) -> None:
        """Take ``desired`` as the wish from now on, and keep it on disk without its secrets."""
        for wish in desired.runners:
            if wish.jit:
                hide(wish.jit)
        with self._lock:
            desired = self._stated = desired_file.with_known_orders(desired, self._stated, self.parts.clock())
            kept = desired_file.usable(desired.runners)
            changed = kept != self._wishes or desired.generation != self._generation
            self._wishes = kept
            self._deadlines.hear(kept.values(), desired.at)
            self._generation = desired.generation
            self._classes = desired.classes
            self._informed = True
            self.parts.templates.want(desired.classes, desired.templates_since, desired.templates_removed)
            if changed:
                self._desired = desired_file.as_kept(desired)
                self._keep_desired()
            changed |= self._decisions.hear(desired.decided)
        if changed:
            self.changed()
        self.wake.set()

    def heard(self, ulid: str, message: guest.Message) -> None:
        """A guest said ``message``.  Called on the channels' thread; only notes it."""
        listener = self.parts.reserved.get(ulid)
        if listener is not None:
            listener(message)
            return
        runner = self._runners.get(ulid)
        if runner is None:
            return
        hear(self.parts, runner, self._wishes.get(ulid), message)
        self.wake.set()

    def channel_lost(self, ulid: str) -> None:
        """QEMU closed a guest's channel.  Where nobody listens there any more, QEMU itself is gone, before libvirt says so."""
        runner = self._runners.get(ulid)
        if runner is not None and not is_listening(runner.paths(self.parts).channel):
            self.vm_ended(runner.names.domain, "gone")

    def vm_ended(self, name: str, why: str) -> None:
        """Libvirt says that a domain ended.  Called on a thread of the hypervisor's."""
        ulid = ulid_of(name)
        runner = self._runners.get(ulid or "")
        if runner is None and ulid is not None and self.pool.vm_ended(ulid, why):
            return
        if runner is None or runner.record.has("end_begun"):
            return
        with runner.lock:
            if runner.record.vm != "running":
                return
            orderly = why == "shutdown" or runner.record.has("runner_exited")
            runner.record.vm = "stopped" if orderly else "crashed"
            runner.record.end_reason = f"the VM ended by itself ({why})"
            runner.record.failure = runner.record.failure or idled(runner.record)
            if not orderly:
                self._note_crash(runner, why)
        log.info("vm_ended", runner=ulid, why=why)
        runner.save(self.parts)
        self.wake.set()

    def changed(self) -> None:
        self.dirty.set()
        self.wake.set()

    # --- what is done

    def turn(self) -> None:
        """One turn: look, sweep, and start the next step of each runner that isn't busy."""
        now = self.parts.uptime()
        if not self._adopted and not self._take_over(now):
            for runner in self._runners.values():  # a guest that isn't heard for a minute fails its job
                self._keep_channel(runner)
            return
        if now - self._looked_at >= LOOK_S:
            self._looked_at = now
            self._look()
        if now - self._swept_at >= SWEEP_S:
            self._swept_at = now
            self._sweep(now)
        if self.parts.templates.sealed_bytes() >> 20 != self._kept_mib:
            self._measure()
        with self._lock:
            self._take_from_pool()
            for ulid in sorted((self._wishes.keys() | self._runners.keys()) - self.pool.ids()):
                self._turn_runner(ulid, now)
            classes = self._classes if self.choice.accelerator and self._informed else ()
            self.pool.turn(scene_of(self.parts, classes, self._wishes, self._runners, self._capacity), now)
        if self.choice.accelerator:
            self.parts.templates.turn(now, self._has_room)

    def check_wall(self) -> None:
        """Compare the packet filter with what was installed; links are cut while it differs."""
        if not self._adopted:
            return
        try:
            problem = self.watch.check()
        except HostError as error:
            log.exception("wall_broken")
            self.problem(wall_broken(error))
            return
        self._clear_problem("wall-broken")
        shown = self._aftermath.of(problem, self.parts.uptime())
        if shown is not None:
            self.problem(shown)
        else:
            self._clear_problem("wall-drifted")

    def observe(self) -> Observed:
        parts = self.parts
        now, up = parts.clock(), parts.uptime()
        with self._lock:
            runners = [runner.record.observed(now, up) for runner in self._runners.values()]
            problems = tuple(self._problems.values())
            swept = dict(self._cleared)
        lag = self.lag()
        return Observed(
            host=parts.settings.name,
            boot=self._boot,
            at=now,
            capacity=self._capacity if self.choice.accelerator else Capacity(0, 0, 0),
            accelerator=self.choice.accelerator,
            generation=self._generation,
            runners=tuple(runners),
            images=list_images(parts.paths.images),
            problems=problems + self._standing_problems(),
            version=self.version,
            templates=parts.templates.observe(),
            unshipped=lag.lines,
            unshipped_s=round(lag.seconds, 1),
            swept=swept,
            decided=self._decisions.known,
            warm=self.pool.observed(),
        )

    def problem(self, failure: Failure) -> None:
        with self._lock:
            if self._problems.get(failure.code) == failure:
                return
            self._problems[failure.code] = failure
        self.changed()

    def close(self) -> None:
        """Wait for the steps in hand; VMs go on running."""
        for runner in list(self._runners.values()):
            if runner.busy == "start":
                runner.cancel.set()
        self.pool.close()
        self.parts.templates.close()
        for pool in (self._pool, self._ends):
            pool.shutdown(wait=True, cancel_futures=True)

    @property
    def generation(self) -> int:
        return self._generation

    # --- within

    def _clear_problem(self, code: str) -> None:
        with self._lock:
            gone = self._problems.pop(code, None)
        if gone is not None:
            self.changed()

    def _standing_problems(self) -> tuple[Failure, ...]:
        found = [self.choice.problem, device_problem(), self._erase_problem, self._unwritable()]
        return tuple(failure for failure in found if failure is not None)

    def _unwritable(self) -> Failure | None:
        error = self.parts.records.unwritable
        return None if error is None else Failure(error.code, error.message, error.remedy)

    def _keep_desired(self) -> None:
        """Without it a later agent wouldn't know what is wished before it hears so: no reason to end this one."""
        if not self._desired:
            return
        try:
            self.parts.records.write(self.parts.paths.desired, self._desired)
        except HostError as error:
            log.warning("desired_unsaved", error=error.message)

    def _take_from_pool(self) -> None:
        """Machines that wait and are wished for are runners from now on; one that isn't fit for that ends first."""
        for ulid in self.pool.ids() & self._wishes.keys() - self._runners.keys():
            runner = self.pool.claim(ulid, self._wishes[ulid].machine)
            if runner is not None:
                self._runners[ulid] = runner

    def _turn_runner(self, ulid: str, now: float) -> None:
        want, runner = self._wishes.get(ulid), self._runners.get(ulid)
        self._keep_scope(want, runner)
        missing_s = 0.0
        if want is None and self._informed:
            missing_s = now - self._missing_since.setdefault(ulid, now)
        else:
            self._missing_since.pop(ulid, None)
        if runner is not None and (runner.busy or now < runner.not_before):
            if (want is not None and want.wish == "gone") or missing_s > ORPHAN_S:
                runner.cancel.set()
            return
        # Whatever is to be done next: a step that tells the guest something can't be done before.
        self._keep_channel(runner)
        hello_s = HELLO_S if self.choice.accelerator == "kvm" else 0.0
        situation = self._situation(runner, missing_s, hello_s)
        step = next_step(self._deadlines.of(want), runner.record if runner else None, situation, now)
        if step.verb == "keep":
            return
        if step.verb == "forget":
            self._runners.pop(ulid, None)
            self._missing_since.pop(ulid, None)
            self.parts.records.forget(ulid)
            self.changed()
            return
        if step.verb == "start" and want is not None:
            refused = self._refusal(want)
            if refused is None:
                return
            step = refused if refused.verb == "fail" else step
        if runner is None:
            machine = want.machine if want is not None else MachineClass("unknown")
            runner = self._runners[ulid] = Runner(Record(id=ulid, machine=machine))
        self._submit(runner, want, step)

    def _keep_scope(self, want: DesiredRunner | None, runner: Runner | None) -> None:
        """On its record, which is on the disk whatever becomes of the wish."""
        if want is None or runner is None or want.scope in (None, runner.record.scope):
            return
        with runner.lock:
            runner.record.scope = want.scope
        runner.save(self.parts)

    def _situation(self, runner: Runner | None, missing_s: float, hello_s: float) -> Situation:
        if runner is None:
            return Situation(missing_s=missing_s)
        listened = runner.record.ups.get("runner_listening")
        return Situation(
            missing_s=missing_s,
            applied=runner.applied,
            stop_told=runner.stop_told,
            refused_at=runner.refused_at,
            seed_tried_at=runner.seed_tried_at,
            listening_s=0.0 if listened is None else self.parts.uptime() - listened,
            hello_s=hello_s,
        )

    def _submit(self, runner: Runner, want: DesiredRunner | None, step: Step) -> None:
        runner.busy = step.verb

        def work() -> None:
            try:
                carry_out(self.parts, runner, want, step)
            except Exception as error:
                log.exception("step_broke", runner=runner.record.id, step=step.verb)
                if step.verb == "start":
                    fail(self.parts, runner, Failure("agent-error", f"{type(error).__name__} while the VM was made"))
                runner.not_before = self.parts.uptime() + 2.0
            finally:
                runner.busy = ""
                self.wake.set()

        (self._ends if step.verb == "end" else self._pool).submit(work)

    def _refusal(self, want: DesiredRunner) -> Step | None:
        """Whether ``want`` can start: a ``start`` step; a ``fail`` step where it never can; None where it must wait."""
        if not self.choice.accelerator:
            return without_accelerator(self.choice, self.parts.paths.images, want.machine)
        never = too_small(self._capacity, want.machine)
        if never is not None:
            return never
        asked = [want.machine, *self._in_use(but=want.id)]
        if not fits(self._capacity, asked):
            return None
        building = self.parts.templates.building
        if building is not None and not fits(self._capacity, [building, *asked]):
            self.parts.templates.make_room()
        return Step("start") if self.pool.make_room(asked, self._capacity, beside=want.id) else None

    def _in_use(self, *, but: str = "") -> list[MachineClass]:
        return [r.record.machine for r in list(self._runners.values()) if holds_room(r.record) and r.record.id != but]

    def _has_room(self, machine: MachineClass) -> bool:
        """For a template: no runner starts or waits for room, and there is some left."""
        waits = any(wish.wish == "run" and wish.id not in self._runners for wish in list(self._wishes.values()))
        starts = any(runner.busy == "start" for runner in list(self._runners.values()))
        return not waits and not starts and fits(self._capacity, [machine, *self._in_use()])

    def _clones(self) -> dict[str, int]:
        """Living clones by template."""
        living = [runner.record for runner in list(self._runners.values()) if holds_room(runner.record)]
        return Counter(record.template for record in living if record.template) + self.pool.clones()

    def _keep_channel(self, runner: Runner | None) -> None:
        if runner is not None and runner.record.vm == "running":
            self.parts.talk.ensure(runner.record.id, runner.paths(self.parts).channel)

    def _note_crash(self, runner: Runner, why: str) -> None:
        if why != AWAY:
            doubt_template(self.parts, runner, why)
        secrets = (runner.secret,) if runner.secret else ()
        text = console.tail(runner.paths(self.parts).console, secrets)
        runner.record.failure = runner.record.failure or Failure(
            code="vm-crashed" if why != AWAY else "vm-vanished",
            message=f"the VM ended in the middle of its work ({why})",
            remedy="See the console's last lines; out of memory and a kernel panic both end there.",
            console=text,
            domain=why,
        )

    def _look(self) -> None:
        """Find VMs that ended without an event."""
        try:
            alive = {domain.ulid for domain in self.parts.hypervisor.ours() if domain.state != "stopped"}
        except HostError as error:
            self.problem(Failure(error.code, error.message, error.remedy))
            return
        self._clear_problem("libvirt-away")
        self._clear_problem("libvirt-failed")
        for runner in list(self._runners.values()):
            if runner.record.vm == "running" and runner.record.id not in alive and not runner.busy:
                self.vm_ended(runner.names.domain, "gone")
        self.pool.look(alive)

    def _measure(self) -> None:
        self._kept_mib = self.parts.templates.sealed_bytes() >> 20
        self._capacity = capacity_of(self.parts.settings, self.parts.paths, kept_mib=self._kept_mib)

    def _memory(self) -> tuple[int, int]:
        """`templates.HostMemory`."""
        return self._capacity.memory_mib + self._kept_mib, sum(machine.memory_mib for machine in self._in_use())

    def _sweep(self, now: float) -> None:
        self._measure()
        if self.parts.records.unwritable is not None:
            self._keep_desired()
            self.changed()
        if not self._informed:
            return
        try:
            left = sweep.find(self.parts, self._runners.keys() | self._wishes.keys() | self.pool.ids())
        except (IronCDError, OSError) as error:
            log.warning("sweep_failed", error=str(error))
            return
        self._orphans = {ulid: self._orphans.get(ulid, now) for ulid in left.ulids}
        self._orphan_taps = {tap: self._orphan_taps.get(tap, now) for tap in left.taps}
        for ulid, since in self._orphans.items():
            if now - since >= ORPHAN_S:
                log.warning("orphan_found", runner=ulid)
                with self._lock:
                    runner = self._runners.setdefault(ulid, Runner(Record(id=ulid, machine=MachineClass("unknown"))))
                    self._submit(runner, None, Step("end", "it belonged to no runner"))
                    self._cleared["runner"] += 1
        for tap, since in self._orphan_taps.items():
            if now - since >= ORPHAN_S:
                with contextlib.suppress(IronCDError):
                    sweep.clear_tap(self.parts, tap)
                    with self._lock:
                        self._cleared["link"] += 1

    def _load_desired(self) -> None:
        desired = self._stated = desired_file.read(self.parts.paths.desired)
        if desired is None:
            return
        self._wishes = desired_file.usable(desired.runners)
        self._deadlines.hear(self._wishes.values(), 0.0)  # what it was told when isn't now
        self.parts.templates.want(desired.classes, desired.templates_since, desired.templates_removed)
        self._classes = desired.classes
        self._informed = True

    def _take_over(self, now: float) -> bool:
        """Adopt what runs.  False where libvirt or nftables doesn't let us yet; tried again in a second."""
        if now < self._adopt_at:
            return False
        try:
            self.parts.hypervisor.on_end(self.vm_ended)
            adopt(self.parts, self._runners, self._wishes, self.vm_ended)
        except HostError as error:
            self._adopt_at = now + 1.0
            self.problem(Failure(error.code, error.message, error.remedy))
            return False
        self._adopted = True
        return True
