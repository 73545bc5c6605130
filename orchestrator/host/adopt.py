"""What an agent does first: take over the VMs that the last one left running, and clear away what it hadn't finished.

A VM that runs and has its link keeps it: the wall is made to hold exactly these VMs, in one transaction that changes
nothing where nothing is missing.  A VM that was never resumed is cleared away, to be made from the beginning.  Adopting
twice is adopting once: where libvirt isn't there yet, the agent just tries again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
import structlog

from orchestrator.core.link import Link
from orchestrator.core.wire import DesiredRunner, Failure
from orchestrator.host.converge import Step
from orchestrator.host.parts import Parts, Runner, link_of, rules_of
from orchestrator.host.record import Record
from orchestrator.host.slots import slot_at
from orchestrator.host.steps import carry_out, fail

AWAY = "gone while the agent was away"
"""How a VM ended that nobody saw end: the host was started anew, or all that ran on it was ended."""

log = structlog.get_logger()


def adopt(
    parts: Parts,
    runners: Mapping[str, Runner],
    wishes: Mapping[str, DesiredRunner],
    ended: Callable[[str, str], None],
) -> None:
    """Adopt ``runners``, as their records have them; ``ended`` is told of VMs that are no more.  Raises HostError."""
    states = {domain.ulid: domain.state for domain in parts.hypervisor.ours()}
    taps = parts.wires.in_namespace()
    kept: dict[str, Link] = {}
    for ulid, runner in runners.items():
        if runner.record.vm != "running":
            continue
        link = _link_on_file(parts, runner, wishes.get(ulid))
        if ulid not in states:
            ended(runner.names.domain, AWAY)
        elif link is not None and link.tap in taps:
            kept[ulid] = link
        else:
            fail(parts, runner, Failure("link-lost", "the VM's link was gone when the agent started again"))
    parts.wall.ensure_base([rules_of(link) for link in kept.values()])
    for ulid, link in kept.items():
        log.info("vm_adopted", runner=ulid)
        _go_on(parts, runners[ulid], link, paused=states[ulid] == "paused")
    for runner in runners.values():
        if runner.record.vm == "making" or _was_claimed(runner.record):
            _unmake(parts, runner)


def _go_on(parts: Parts, runner: Runner, link: Link, *, paused: bool) -> None:
    """See that its link is up, and resume it where the last agent was killed between the record and the call."""
    parts.wires.up(link.tap, slot_at(parts.settings.links_range, runner.record.slot))
    if paused:
        parts.talk.ensure(runner.record.id, runner.paths(parts).channel)
        parts.hypervisor.resume(runner.names.domain)


def _was_claimed(record: Record) -> bool:
    """A machine that waited was handed over to it, and no more had come of that."""
    return record.vm == "absent" and record.slot >= 0


def _unmake(parts: Parts, runner: Runner) -> None:
    record = runner.record
    carry_out(parts, runner, None, Step("end", "the agent restarted while it was being made"))
    if record.is_proved_gone:
        with runner.lock:
            runner.record = Record(id=record.id, machine=record.machine)
            parts.records.save(runner.record)


def _link_on_file(parts: Parts, runner: Runner, want: DesiredRunner | None) -> Link | None:
    """The link as the gateway was told of it; where that file is gone, as it is wished."""
    try:
        return msgspec.json.decode(runner.paths(parts).link.read_bytes(), type=Link)
    except (OSError, msgspec.MsgspecError):
        if want is None or runner.record.slot < 0:
            return None
        return link_of(want, slot_at(parts.settings.links_range, runner.record.slot))
