"""Carrying out one step of a runner (`orchestrator.host.converge.Step`).  Runs on a worker thread; may take seconds."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from orchestrator.core.errors import HostError, IronCDError
from orchestrator.core.wire import DesiredRunner, Failure
from orchestrator.host import console, guest
from orchestrator.host.converge import IDLE, Step
from orchestrator.host.disk import delete
from orchestrator.host.end import end
from orchestrator.host.erase import keeps_name
from orchestrator.host.parts import Cancelled, Parts, Runner, link_of, rules_of
from orchestrator.host.record import Record
from orchestrator.host.slots import slot_at
from orchestrator.host.start import put_in_force, start
from orchestrator.host.waiting import claim
from orchestrator.host.wall import DISTURBED

log = structlog.get_logger()

RETRY_S = 2.0


def carry_out(parts: Parts, runner: Runner, want: DesiredRunner | None, step: Step) -> None:
    """Do ``step``.  Never raises for what a host can be short of: the record says what failed, or a later turn tries again."""
    try:
        if step.verb == "end":
            _end(parts, runner, step)
        elif step.verb == "fail":
            fail(parts, runner, Failure(code=step.code, message=step.reason))
        elif want is not None:
            _WITH_WISH[step.verb](parts, runner, want, step)
    except Cancelled:
        log.info("start_cancelled", runner=runner.record.id)
        with runner.lock:
            runner.record.vm = "failed"
            runner.record.end_reason = "not wished any more while it was being made"
    except IronCDError as error:
        _failed(parts, runner, step, error)
    parts.changed()


def fail(parts: Parts, runner: Runner, failure: Failure) -> None:
    """Note why ``runner`` failed, with its console's last lines; the next turn clears it away."""
    secrets = (runner.secret,) if runner.secret else ()
    text = console.tail(runner.paths(parts).console, secrets)
    domain = _domain_state(parts, runner)
    if failure.code != DISTURBED:
        doubt_template(parts, runner, failure.message)
    with runner.lock:
        record = runner.record
        record.failure = record.failure or Failure(failure.code, failure.message, failure.remedy, text, domain)
        record.vm = "failed"
    log.warning("vm_failed", runner=runner.record.id, code=failure.code, message=failure.message)
    runner.save(parts)


def doubt_template(parts: Parts, runner: Runner, why: str) -> None:
    """A clone that didn't come through the gate is its template's fault until that is found whole."""
    record = runner.record
    if record.template and record.has("domain_started") and not record.has("gate_opened"):
        parts.templates.doubt(record.template, why)


def _domain_state(parts: Parts, runner: Runner) -> str:
    try:
        return parts.hypervisor.state(runner.names.domain) or "not there"
    except HostError as error:
        return error.code


def _failed(parts: Parts, runner: Runner, step: Step, error: IronCDError) -> None:
    if step.verb == "start":
        fail(parts, runner, Failure(error.code, error.message, error.remedy))
        return
    runner.not_before = parts.uptime() + RETRY_S
    log.warning("step_failed", runner=runner.record.id, step=step.verb, code=error.code, error=error.message)


def _end(parts: Parts, runner: Runner, step: Step) -> None:
    proof = end(parts, runner, step.reason)
    if proof.whole:
        log.info("vm_proved_gone", runner=runner.record.id, reason=step.reason)
    else:
        runner.not_before = parts.uptime() + RETRY_S
        log.warning("not_all_gone", runner=runner.record.id, proof=repr(proof))


def _start(parts: Parts, runner: Runner, want: DesiredRunner, _step: Step) -> None:
    if not (runner.waited and _claimed(parts, runner, want)):
        start(parts, runner, want)
    if not keeps_name(parts.settings.disk_erase):
        delete(runner.paths(parts).disk)  # QEMU has it open; the blocks are free again when it dies
    log.info("vm_running", runner=want.id, took=round(parts.uptime() - runner.record.ups["accepted"], 3))


def _claimed(parts: Parts, runner: Runner, want: DesiredRunner) -> bool:
    """Let the machine that waits have the job.  False where it can't, and nothing of it is left: another is started.

    The gate was closed all the time: the job's configuration has reached nobody.
    """
    runner.waited = False
    why = ""
    try:
        claim(parts, runner, want)
    except (HostError, OSError) as error:
        why = f"the machine that waited couldn't take it over: {error}"[:500]
        log.warning("claim_failed", runner=want.id, error=str(error))
    else:
        return True
    if not end(parts, runner, "it couldn't take over its job").whole:
        raise HostError(
            "what is left of the machine that waited can't be cleared away",
            code="domain-stays",
            remedy="See the agent's log; the host tries again by itself.",
        )
    with runner.lock:
        runner.record = Record(id=want.id, machine=want.machine, cold_because=why)
        parts.records.save(runner.record)
    return False


def _stop(parts: Parts, runner: Runner, _want: DesiredRunner, step: Step) -> None:
    if step.code == IDLE:
        with runner.lock:
            runner.record.idled = step.reason
        runner.save(parts)  # before the guest can act on it: whoever sees its end must know why
    runner.stop_told = True
    parts.talk.send(runner.record.id, guest.Stop())


def _refuse(parts: Parts, runner: Runner, _want: DesiredRunner, step: Step) -> None:
    runner.refused_at = parts.uptime()
    parts.talk.send(runner.record.id, guest.Refused(step.reason[:1000]))


def _unseed(parts: Parts, runner: Runner, _want: DesiredRunner, _step: Step) -> None:
    """Eject the seed, delete it, and look; only then may the guest start its runner."""
    runner.seed_tried_at = parts.uptime()
    seed = runner.paths(parts).seed
    ejected = parts.hypervisor.eject_seed(runner.names.domain)
    delete(seed)
    if not ejected or seed.exists():
        raise HostError(
            f"the seed of {runner.names.domain} is still there",
            code="seed-stays",
            remedy="See libvirtd's log; the runner isn't started until it is gone.",
        )
    with runner.lock:
        runner.secret = ""
    runner.mark(parts, "seed_gone")
    parts.talk.send(runner.record.id, guest.SeedGone())


def _apply(parts: Parts, runner: Runner, want: DesiredRunner, step: Step) -> None:
    """Put the wished policy in force: the gateway first, which judges every connection, then the kernel's ranges."""
    link = link_of(want, slot_at(parts.settings.links_range, runner.record.slot))
    put_in_force(parts, runner, link)
    parts.wall.change(rules_of(link))
    if link.bound:
        runner.mark(parts, "policy_bound")
        _release(parts, runner, want, step)


def _release(parts: Parts, runner: Runner, want: DesiredRunner, _step: Step) -> None:
    """Tell the guest that the job's policy is in force.  The mark is for a job that waits; the guest keeps the word."""
    if not parts.talk.send(runner.record.id, bound_order(want)):
        raise HostError("the guest's channel is closed", code="channel-failed", remedy="It is opened again by itself.")
    if runner.record.has("job_hint"):
        runner.mark(parts, "steps_released")


def bound_order(want: DesiredRunner) -> guest.Bound:
    return guest.Bound(want.policy.digest, want.policy.mode, len(want.policy.rules))


_WITH_WISH: dict[str, Callable[[Parts, Runner, DesiredRunner, Step], None]] = {
    "start": _start,
    "stop": _stop,
    "refuse": _refuse,
    "unseed": _unseed,
    "apply": _apply,
    "release": _release,
}
