"""The life of one runner: the only module that assigns a phase.

A runner is our one-job machine together with its registration at GitHub.  The rules:

1. The phases are lived through in their order, and none is visited twice::

       WANTED      it should exist; a host and a registration are being found for it
       BOOTING     registered, and a host has been told to run its VM
       READY       its runner listens at GitHub for a job
       RUNNING     GitHub said that it has a job
       DESTROYING  it ends; VM and registration are being removed
       GONE        both are proved gone

2. Only proof leaves DESTROYING: what the host looked for and didn't find, and GitHub's word that the registration isn't
   there, or that the App may not ask any more.  Time never does; it raises an alarm and the orders are given again.
3. Every phase but GONE has a deadline.
4. Why a runner ends is a reason, never a phase: the first reason stays.
5. A registered runner without a job is never destroyed on our word alone: a job may be on its way to it.  It is
   *fenced* first: GitHub is asked to delete the registration, and its answer tells whether a job got in before.
6. Events come twice, late and out of order.  One that means nothing any more is ignored, with a note, and never raises.
7. A runner isn't pinned to the job that it was made for: ``meant_for`` is a wish, ``job_id`` is what GitHub said.

`advance` is pure and total.  What it returns beside the runner are the orders that are *owed* in its state, all of them,
each time: whoever carries them out must be able to do so twice, and after a crash `owed` gives them again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from orchestrator.core.loss import HOLD_S
from orchestrator.core.machine import MachineClass
from orchestrator.core.runner import (
    NOTICE_S,
    PHASES,
    Alarm,
    Bind,
    Boot,
    ClockSet,
    Deadlines,
    Deregister,
    Destroy,
    Effect,
    Event,
    Fence,
    Fenced,
    HostLost,
    JobCompleted,
    JobStarted,
    LifetimeCut,
    OutagePassed,
    Phase,
    Place,
    Placed,
    PolicyBound,
    Register,
    Registered,
    RegistrationAsked,
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


class Step(msgspec.Struct, frozen=True):
    """``effects`` are all orders owed now; ``ignored`` says why the event changed nothing (empty where it did)."""

    runner: Runner
    effects: tuple[Effect, ...]
    ignored: str = ""


MOVES: tuple[tuple[Phase, str, Phase], ...] = (
    ("WANTED", "Registered", "BOOTING"),
    ("WANTED", "RegistrationRefused", "DESTROYING"),
    ("WANTED", "Withdrawn", "DESTROYING"),
    ("WANTED", "Ticked", "DESTROYING"),
    ("BOOTING", "RunnerListened", "READY"),
    ("BOOTING", "JobStarted", "RUNNING"),
    ("BOOTING", "JobCompleted", "DESTROYING"),
    ("BOOTING", "RunnerExited", "DESTROYING"),
    ("BOOTING", "VmFailed", "DESTROYING"),
    ("BOOTING", "HostLost", "DESTROYING"),
    ("BOOTING", "Fenced", "DESTROYING"),
    ("BOOTING", "RegistrationOutOfReach", "DESTROYING"),
    ("READY", "JobStarted", "RUNNING"),
    ("READY", "JobCompleted", "DESTROYING"),
    ("READY", "RunnerExited", "DESTROYING"),
    ("READY", "VmFailed", "DESTROYING"),
    ("READY", "HostLost", "DESTROYING"),
    ("READY", "Fenced", "DESTROYING"),
    ("READY", "RegistrationOutOfReach", "DESTROYING"),
    ("RUNNING", "JobCompleted", "DESTROYING"),
    ("RUNNING", "RunnerExited", "DESTROYING"),
    ("RUNNING", "VmFailed", "DESTROYING"),
    ("RUNNING", "HostLost", "DESTROYING"),
    ("RUNNING", "Ticked", "DESTROYING"),
    ("DESTROYING", "Fenced", "GONE"),
    ("DESTROYING", "VmProvedGone", "GONE"),
    ("DESTROYING", "RegistrationProvedGone", "GONE"),
    ("DESTROYING", "RegistrationOutOfReach", "GONE"),
)
"""Every change of phase there is.  The diagram in ARCHITECTURE.md is made from it; a test walks `advance` to hold it."""


def wanted(  # the one place where a runner comes into being
    ulid: str,
    machine: MachineClass,
    *,
    installation: int,
    org: str,
    repo: str,
    labels: tuple[str, ...],
    meant_for: int,
    now: float,
    deadlines: Deadlines,
) -> Runner:
    """A runner in its first phase, for the job ``meant_for``."""
    return Runner(
        id=ulid,
        machine=machine,
        installation=installation,
        org=org,
        repo=repo,
        labels=labels,
        meant_for=meant_for,
        created_at=now,
        phase="WANTED",
        since=now,
        deadline=now + deadlines.wanted_s,
    )


def advance(runner: Runner, event: Event, now: float, deadlines: Deadlines) -> Step:
    """What ``event``, at ``now`` (seconds since the epoch), makes of ``runner``, and the orders owed after it."""
    handler = _HANDLERS.get((runner.phase, type(event)))
    if handler is None:
        return Step(runner, owed(runner), ignored=f"{type(event).__name__} means nothing in {runner.phase}")
    after = handler(_At(runner, now, deadlines), event)
    if isinstance(after, str):
        return Step(runner, owed(runner), ignored=after)
    alarm: tuple[Effect, ...] = (Alarm(_missing(after)),) if after.alarms > runner.alarms else ()
    return Step(after, owed(after) + alarm)


def owed(runner: Runner) -> tuple[Effect, ...]:
    """Every order that the state of ``runner`` calls for, whoever asks and however often."""
    match runner.phase:
        case "WANTED":
            return (Register(),) if runner.host else (Place(),)
        case "BOOTING" | "READY":
            boot = (Boot(runner.host),)
            return (*boot, Fence(runner.github_id)) if runner.fencing else boot
        case "RUNNING":
            boot = (Boot(runner.host),)
            return boot if runner.bound else (*boot, Bind(runner.job_id))
        case "DESTROYING":
            destroy = (Destroy(runner.host),) if runner.vm == "asked" else ()
            return (*destroy, Deregister(runner.github_id)) if may_be_registered(runner) else destroy
        case "GONE":
            return ()


def may_be_registered(runner: Runner) -> bool:
    """True where GitHub may know a runner of this name."""
    return runner.registration in ("asked", "held")


def may_have_job(runner: Runner) -> bool:
    """True where the runner has a job, or may be given one: it counts for what its owner uses."""
    return runner.phase in ("WANTED", "BOOTING", "READY", "RUNNING")


def _is_held_for_its_job(runner: Runner) -> bool:
    """Its machine is gone; GitHub deletes no runner that has a job in its eyes, and takes minutes to notice a loss."""
    lost = runner.job_id != 0 and runner.reason != "job_completed"
    return lost and runner.vm != "asked" and may_be_registered(runner)


def _missing(runner: Runner) -> tuple[str, ...]:
    missing = ("proof of the VM's destruction",) if runner.vm == "asked" else ()
    return (*missing, "the registration's removal") if may_be_registered(runner) else missing


class _At(msgspec.Struct, frozen=True):
    """A runner at a moment, with the few ways in which it can change."""

    runner: Runner
    now: float
    deadlines: Deadlines

    def enter(self, phase: Phase, lasts_s: float, **changes: object) -> Runner:
        return msgspec.structs.replace(self.runner, phase=phase, since=self.now, deadline=self.now + lasts_s, **changes)

    def keep(self, **changes: object) -> Runner:
        return msgspec.structs.replace(self.runner, **changes)

    def end(self, reason: str, detail: str = "", **changes: object) -> Runner:
        """Into DESTROYING, or straight on to GONE where there is nothing to destroy."""
        first = {"reason": self.runner.reason or reason, "detail": self.runner.detail or detail, "fencing": ""}
        ending = self.enter("DESTROYING", self.deadlines.destroying_s, **{**first, **changes})
        return _At(ending, self.now, self.deadlines).settle()

    def settle(self) -> Runner:
        runner = self.runner
        if _is_held_for_its_job(runner):
            until = runner.since + HOLD_S + self.deadlines.destroying_s
            return msgspec.structs.replace(runner, deadline=max(runner.deadline, until))
        if runner.vm == "asked" or may_be_registered(runner):
            return runner
        return msgspec.structs.replace(runner, phase="GONE", since=self.now, deadline=0.0)


_E = TypeVar("_E", bound=msgspec.Struct)
_Handler = Callable[[_At, Any], "Runner | str"]
_HANDLERS: dict[tuple[Phase, type], _Handler] = {}

_LIVE: tuple[Phase, ...] = ("BOOTING", "READY", "RUNNING")
_IDLE: tuple[Phase, ...] = ("BOOTING", "READY")


def _on(
    event: type[_E], *phases: Phase
) -> Callable[[Callable[[_At, _E], Runner | str]], Callable[[_At, _E], Runner | str]]:
    """Register what ``event`` does in ``phases``; a handler returns the new runner, or why it ignores the event."""

    def register(handler: Callable[[_At, _E], Runner | str]) -> Callable[[_At, _E], Runner | str]:
        for phase in phases:
            _HANDLERS[phase, event] = handler
        return handler

    return register


@_on(Placed, "WANTED")
def _placed(at: _At, event: Placed) -> Runner | str:
    return "it has a host already" if at.runner.host else at.keep(host=event.host)


@_on(RegistrationAsked, "WANTED")
def _asked(at: _At, _event: RegistrationAsked) -> Runner | str:
    return at.keep(registration="asked") if at.runner.registration == "none" else "it was noted already"


@_on(Registered, "WANTED")
def _registered(at: _At, event: Registered) -> Runner | str:
    if not at.runner.host:
        return "it has no host"
    return at.enter("BOOTING", at.deadlines.booting_s, registration="held", github_id=event.github_id, vm="asked")


@_on(Registered, "DESTROYING")
def _registered_late(at: _At, event: Registered) -> Runner | str:
    if at.runner.registration in ("gone", "unreachable"):
        return "nothing is asked about the registration any more"
    return at.keep(registration="held", github_id=event.github_id)


@_on(RegistrationRefused, "WANTED")
def _registration_refused(at: _At, event: RegistrationRefused) -> Runner | str:
    return at.end("registration_refused", event.detail, registration="none")


@_on(RunnerListened, "BOOTING")
def _listened(at: _At, _event: RunnerListened) -> Runner | str:
    return at.enter("READY", at.deadlines.ready_s)


@_on(JobStarted, "BOOTING", "READY")
def _job_started(at: _At, event: JobStarted) -> Runner | str:
    return at.enter("RUNNING", at.runner.machine.lifetime_s, job_id=event.job_id, fencing="")


@_on(JobStarted, "RUNNING")
def _job_started_again(at: _At, event: JobStarted) -> Runner | str:
    same = event.job_id == at.runner.job_id
    return "known" if same else f"it has job {at.runner.job_id} already, and a runner has one job"


@_on(JobStarted, "DESTROYING")
def _job_started_late(at: _At, event: JobStarted) -> Runner | str:
    return "known" if at.runner.job_id else at.keep(job_id=event.job_id)


@_on(PolicyBound, "RUNNING")
def _policy_bound(at: _At, event: PolicyBound) -> Runner | str:
    return "known" if at.runner.bound == event.digest else at.keep(bound=event.digest)


@_on(JobCompleted, *_LIVE)
def _job_completed(at: _At, event: JobCompleted) -> Runner | str:
    if at.runner.job_id not in (0, event.job_id):
        return f"it has job {at.runner.job_id}"
    return at.end("job_completed", event.conclusion, job_id=event.job_id)


@_on(RunnerExited, *_LIVE)
def _runner_exited(at: _At, event: RunnerExited) -> Runner | str:
    told = at.runner.cut and at.runner.phase == "RUNNING" and at.now >= at.runner.deadline - NOTICE_S
    return at.end(at.runner.cut if told else event.reason, f"exit status {event.code}")


@_on(VmFailed, *_LIVE)
def _vm_failed(at: _At, event: VmFailed) -> Runner | str:
    return at.end(event.reason, event.detail)


@_on(HostLost, "WANTED")
def _host_lost_before_boot(at: _At, _event: HostLost) -> Runner | str:
    return at.keep(host="") if at.runner.host else "it has no host"


@_on(HostLost, *_LIVE)
def _host_lost(at: _At, _event: HostLost) -> Runner | str:
    return at.end("host_lost", at.runner.host)


@_on(Withdrawn, "WANTED")
def _withdrawn_before_registration(at: _At, event: Withdrawn) -> Runner | str:
    return at.end(event.reason)


@_on(Withdrawn, *_IDLE)
def _withdrawn(at: _At, event: Withdrawn) -> Runner | str:
    return "it is being fenced" if at.runner.fencing else at.keep(fencing=event.reason)


@_on(Withdrawn, "RUNNING")
def _withdrawn_too_late(_at: _At, _event: Withdrawn) -> Runner | str:
    return "it has a job"


@_on(Fenced, *_IDLE)
def _fenced(at: _At, event: Fenced) -> Runner | str:
    if event.answer == "busy":
        lasts = at.deadlines.booting_s if at.runner.phase == "BOOTING" else at.deadlines.ready_s
        return at.keep(fencing="", deadline=at.now + lasts)
    return at.end(at.runner.fencing or "fenced", registration="gone")


@_on(Fenced, "DESTROYING")
def _fenced_late(at: _At, event: Fenced) -> Runner | str:
    return "it ends all the same" if event.answer == "busy" else _registration_gone(at, RegistrationProvedGone())


@_on(VmProvedGone, "DESTROYING")
def _vm_gone(at: _At, _event: VmProvedGone) -> Runner | str:
    return "known" if at.runner.vm != "asked" else _At(at.keep(vm="gone"), at.now, at.deadlines).settle()


@_on(RegistrationProvedGone, "DESTROYING")
def _registration_gone(at: _At, _event: RegistrationProvedGone) -> Runner | str:
    if not may_be_registered(at.runner):
        return "known"
    return _At(at.keep(registration="gone"), at.now, at.deadlines).settle()


@_on(RegistrationOutOfReach, *_IDLE)
def _fence_out_of_reach(at: _At, _event: RegistrationOutOfReach) -> Runner | str:
    return at.end(at.runner.fencing, registration="unreachable") if at.runner.fencing else "nobody wants to end it"


@_on(RegistrationOutOfReach, "DESTROYING")
def _registration_out_of_reach(at: _At, _event: RegistrationOutOfReach) -> Runner | str:
    if not may_be_registered(at.runner):
        return "known"
    return _At(at.keep(registration="unreachable"), at.now, at.deadlines).settle()


@_on(Ticked, *PHASES[:-1])
def _ticked(at: _At, _event: Ticked) -> Runner | str:
    runner = at.runner
    if at.now < runner.deadline:
        return "in time"
    match runner.phase:
        case "WANTED":
            return at.end("wanted_too_long")
        case "BOOTING":
            return at.keep(fencing=runner.fencing or "boot_timeout", deadline=at.now + at.deadlines.booting_s)
        case "READY":
            return at.keep(fencing=runner.fencing or "idle", deadline=at.now + at.deadlines.ready_s)
        case "RUNNING":
            return at.end(runner.cut or "lifetime")
        case _:
            return at.keep(alarms=runner.alarms + 1, deadline=at.now + at.deadlines.destroying_s)


@_on(LifetimeCut, "RUNNING")
def _lifetime_cut(at: _At, event: LifetimeCut) -> Runner | str:
    whole = at.runner.since + at.runner.machine.lifetime_s
    is_cut = 0 < event.until < whole
    deadline, why = (event.until, event.why) if is_cut else (whole, "")
    same = (at.runner.deadline, at.runner.cut) == (deadline, why)
    return "known" if same else at.keep(deadline=deadline, cut=why)


@_on(OutagePassed, "WANTED", *_IDLE)
def _outage_passed(at: _At, event: OutagePassed) -> Runner | str:
    return at.keep(deadline=at.runner.deadline + max(0.0, event.seconds))


@_on(ClockSet, *PHASES[:-1])
def _clock_set(at: _At, event: ClockSet) -> Runner | str:
    return at.keep(since=at.runner.since + event.seconds, deadline=at.runner.deadline + event.seconds)


def mermaid() -> str:
    """The phases and what moves a runner between them, as a Mermaid state diagram."""
    together: dict[tuple[Phase, Phase], list[str]] = {}
    for source, event, target in MOVES:
        together.setdefault((source, target), []).append(event)
    arrows = [f"    {source} --> {target}: {', '.join(events)}" for (source, target), events in together.items()]
    return "\n".join(["stateDiagram-v2", "    [*] --> WANTED", *arrows, "    GONE --> [*]"]) + "\n"
