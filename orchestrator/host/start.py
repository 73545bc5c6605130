"""Making one VM, in an order in which it can never reach anything that its policy doesn't allow.

The tap is down and the VM is paused until its rules stand in the kernel and were read back, and the gateway has
acknowledged its policy; only then does the link come up, and after it the VM runs.  A step that fails leaves the rest to
`orchestrator.host.end`, which clears away whatever there is.
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import structlog

from orchestrator.core.errors import HostError
from orchestrator.core.link import GatewayRequest, Link
from orchestrator.core.wire import DesiredRunner
from orchestrator.host.gateway import GatewayAway
from orchestrator.host.guest import opening
from orchestrator.host.images import find_image
from orchestrator.host.parts import Cancelled, Parts, Runner, link_of, rules_of
from orchestrator.host.ruleset import VmRules
from orchestrator.host.seed import make_seed
from orchestrator.host.slots import Slot
from orchestrator.host.templates import Cold
from orchestrator.host.vm import Plan, boot_paused, clone_paused, connect, make_boot_files, make_clone_files, unmake
from orchestrator.host.wall import DISTURBED
from orchestrator.system.files import write_atomic

log = structlog.get_logger()

_GATEWAY_PATIENCE_S = 15.0
_WALL_PATIENCE_S = 10.0
"""The watch restores a wall within a second; one that is changed for so long isn't restored in time for this VM."""
_WALL_AGAIN_S = 0.2


def start(parts: Parts, runner: Runner, want: DesiredRunner) -> None:
    """Make the VM of ``want`` and let it run.  Raises HostError where that fails, `Cancelled` where it isn't wished any more."""
    record, names, files = runner.record, runner.names, runner.paths(parts)
    with runner.lock:
        record.vm = "making"
        runner.secret = want.jit
        slot = parts.slots.take(parts.uptime())
        record.slot = slot.index
    runner.mark(parts, "accepted")
    image = find_image(parts.paths.images, want.machine.image)
    parts.wires.make(names.tap)
    go_on(runner)
    make_seed(files.seed, names, slot, jit=want.jit, cas=authorities_of(parts.settings.guest_ca_files))
    runner.mark(parts, "seed_made")
    go_on(runner)
    plan = Plan(want.id, want.machine, image, files, slot)
    if not _cloned(parts, runner, plan):
        _booted(parts, runner, plan)
    go_on(runner)
    wire_up(parts, runner, want, slot)
    go_on(runner)
    release(parts, runner)
    parts.hypervisor.resume(names.domain)
    if record.start == "clone":  # it waits at the gate; a machine that boots says when it is there
        parts.talk.send(want.id, opening())
    parts.changed()


def _cloned(parts: Parts, runner: Runner, plan: Plan) -> bool:
    """Wake the VM from its template.  False where it must boot; the record says why."""
    record = runner.record
    try:
        lease = parts.templates.lease(plan.machine, plan.image)
    except Cold as cold:
        record.cold_because = str(cold)
        return False
    record.template = lease.template.key
    try:
        make_clone_files(plan, lease)
        runner.mark(parts, "disk_made")
        clone_paused(parts, plan, lease, lambda: go_on(runner))
    except (HostError, OSError) as error:
        log.warning("clone_failed", runner=plan.ulid, template=record.template[:12], error=str(error))
        parts.templates.doubt(record.template, str(error))
        unmake(parts, plan.ulid, plan.files)
        record.cold_because, record.template = f"its clone failed: {error}"[:500], ""
        record.unmark("disk_made")
        return False
    record.start = "clone"
    record.cold_because = record.cold_because or parts.unwaited(plan.machine)
    runner.mark(parts, "domain_started")
    runner.mark(parts, "cloned")
    return True


def _booted(parts: Parts, runner: Runner, plan: Plan) -> None:
    make_boot_files(plan)
    runner.mark(parts, "disk_made")
    runner.record.start = "cold"
    boot_paused(parts, plan)
    runner.mark(parts, "domain_started")


def wire_up(parts: Parts, runner: Runner, want: DesiredRunner, slot: Slot) -> None:
    """From a tap that is down in the host's namespace to a link that is up behind its rules."""
    tap = runner.names.tap
    link = link_of(want, slot)
    parts.wires.move(tap)
    _install(parts, runner, rules_of(link))
    runner.mark(parts, "chain_installed")
    put_in_force(parts, runner, link)
    parts.wires.up(tap, slot)
    connect(parts, runner.record.id, runner.paths(parts).channel, lambda: go_on(runner))


def _install(parts: Parts, runner: Runner, rules: VmRules) -> None:
    """Have ``rules`` in force.  Where another program changes the wall just then, wait for the watch to restore it and try again:
    the link is down and the VM doesn't run.
    """
    deadline = time.monotonic() + _WALL_PATIENCE_S
    while True:
        try:
            parts.wall.install(rules)
        except HostError as error:
            if error.code != DISTURBED or time.monotonic() > deadline:
                raise
            log.warning("start_disturbed", runner=runner.record.id, error=error.message)
        else:
            return
        go_on(runner)
        time.sleep(_WALL_AGAIN_S)


def release(parts: Parts, runner: Runner) -> None:
    """Note that the VM may run, before it does: from here on it is never made a second time."""
    with runner.lock:
        runner.record.released = True
        runner.record.vm = "running"
        parts.records.save(runner.record)


def put_in_force(parts: Parts, runner: Runner, link: Link) -> None:
    """Have the gateway apply ``link``, and see that it is that policy which it has in force."""
    write_atomic(runner.paths(parts).link, msgspec.json.encode(link))
    _apply(parts, runner, link)
    with runner.lock:
        runner.record.policy = link.policy.digest
        runner.record.generation = link.generation
        runner.record.bound = link.bound
        runner.applied = True
        parts.records.save(runner.record)
    parts.changed()


def _apply(parts: Parts, runner: Runner, link: Link) -> None:
    deadline = time.monotonic() + _GATEWAY_PATIENCE_S
    while True:
        try:
            reply = parts.gateway.ask(GatewayRequest("apply", link.tap))
            break
        except GatewayAway:
            if time.monotonic() > deadline:
                raise
            go_on(runner)
            time.sleep(0.1)
    if not reply.ok or (reply.policy, reply.generation) != (link.policy.digest, link.generation):
        why = reply.error or f"it has {reply.policy or 'none'}, generation {reply.generation}"
        raise HostError(
            f"the gateway doesn't have the policy in force: {why}",
            code="policy-not-in-force",
            remedy="See the gateway's log; the VM gets nothing through until then.",
        )


def authorities_of(paths: tuple[str, ...]) -> tuple[str, ...]:
    """The PEM texts of the authorities that guests trust."""
    try:
        return tuple(Path(path).read_text() for path in paths)
    except OSError as error:
        raise HostError(
            f"can't read the authority {error.filename}: {error.strerror}",
            code="ca-missing",
            remedy="Correct host.guest_ca_files.",
        ) from error


def go_on(runner: Runner) -> None:
    if runner.cancel.is_set():
        raise Cancelled
