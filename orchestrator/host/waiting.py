"""A machine that waits: how it is made up to there, and how a job takes it over.

It is a clone that was resumed, has made itself a machine of its own (ids, keys, randomness), has run through what a job's
start runs through as far as that needs no job, and stands in front of its gate.  Its link exists, since the VM couldn't
be given one later, but it is down, in the host's own namespace, and no rule and no gateway knows it.  Its seed is a file of
zeros.

A job's claim does what a start does after the VM is made, in the same order and with the same checks: the seed is
written, the link moves behind its rules, the gateway acknowledges the policy, the link comes up.  Only then is the gate
opened, with the time of that moment and fresh randomness.
"""

from __future__ import annotations

import queue
import time

from orchestrator.core.errors import HostError
from orchestrator.core.wire import DesiredRunner
from orchestrator.host import guest
from orchestrator.host.disk import delete
from orchestrator.host.erase import keeps_name
from orchestrator.host.images import find_image
from orchestrator.host.parts import Parts, Runner
from orchestrator.host.seed import fill_seed, make_blank_seed
from orchestrator.host.slots import slot_at
from orchestrator.host.start import authorities_of, go_on, release, wire_up
from orchestrator.host.templates import Lease
from orchestrator.host.vm import Plan, clone_paused, make_clone_files

PREPARED_WITHIN_S = 150.0
"""Nobody waits for it.  The guest rehearses within 100 s (`runner_image/guest/heat.py`); on hardware it takes one or two."""
_SAID = 16


def make(parts: Parts, runner: Runner) -> None:
    """Bring the machine of ``runner`` up to where it waits.  Raises HostError, OSError, `Cold` or `Cancelled`; its parts
    are then for `orchestrator.host.end` to clear away.
    """
    record, names, files = runner.record, runner.names, runner.paths(parts)
    said: queue.Queue[guest.Message] = queue.Queue(_SAID)
    with runner.lock:
        record.vm = "making"
        record.slot = parts.slots.take(parts.uptime()).index
        parts.records.save(record)
    slot = slot_at(parts.settings.links_range, record.slot)
    image = find_image(parts.paths.images, record.machine.image)
    lease = parts.templates.lease(record.machine, image)
    record.template = lease.template.key
    parts.reserved[record.id] = lambda message: _note(said, message)
    parts.wires.make(names.tap)
    make_blank_seed(files.seed)
    plan = Plan(record.id, record.machine, image, files, slot)
    make_clone_files(plan, lease)
    go_on(runner)
    try:
        _wake(parts, runner, plan, lease, said)
    except (HostError, OSError) as error:
        parts.templates.doubt(record.template, str(error))
        raise
    parts.templates.trust(record.template)


def _wake(parts: Parts, runner: Runner, plan: Plan, lease: Lease, said: queue.Queue[guest.Message]) -> None:
    clone_paused(parts, plan, lease, lambda: go_on(runner))
    go_on(runner)
    parts.hypervisor.resume(runner.names.domain)
    # Not before: from QEMU 10 on a clone opens its disk for writing, by its name, only when it is resumed.
    if not keeps_name(parts.settings.disk_erase):
        delete(plan.files.disk)
    prepare(parts, runner, said)


def prepare(parts: Parts, runner: Runner, said: queue.Queue[guest.Message]) -> None:
    """Have the machine make itself one of its own, and wait until it has."""
    if not parts.talk.send(runner.record.id, guest.preparing()):
        raise _failed("its channel is closed")
    deadline = time.monotonic() + PREPARED_WITHIN_S
    while time.monotonic() < deadline:
        go_on(runner)
        try:
            if isinstance(said.get(timeout=0.1), guest.Prepared):
                return
        except queue.Empty:
            continue
    raise _failed("it didn't get ready")


def claim(parts: Parts, runner: Runner, want: DesiredRunner) -> None:
    """Make the machine of ``runner``, which waits, that of ``want``.  Raises HostError; its gate is closed then."""
    record, files = runner.record, runner.paths(parts)
    slot = slot_at(parts.settings.links_range, record.slot)
    with runner.lock:
        record.vm = "making"
        record.start = "warm"
        runner.secret = want.jit
    runner.mark(parts, "accepted")
    cas = authorities_of(parts.settings.guest_ca_files)
    fill_seed(files.seed, runner.names, slot, jit=want.jit, cas=cas)
    runner.mark(parts, "seed_made")
    go_on(runner)
    wire_up(parts, runner, want, slot)
    go_on(runner)
    release(parts, runner)
    if not parts.talk.send(want.id, guest.opening()):
        raise _failed("its channel is closed")
    parts.changed()


def _note(said: queue.Queue[guest.Message], message: guest.Message) -> None:
    """What comes faster than it is read is lost: nobody here needs it."""
    try:
        said.put_nowait(message)
    except queue.Full:
        return


def _failed(why: str) -> HostError:
    return HostError(
        f"the machine that was to wait for a job can't: {why}",
        code="waiting-failed",
        remedy="See the agent's log; another is made by itself, and jobs start clones until then.",
    )
