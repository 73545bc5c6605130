"""Ending one VM, and the proof: what was looked for afterwards, and not found.

The VM goes first and its wall last: as long as the domain might run, its rules stay.  Its process is killed before libvirt
is asked to tidy up after it, and the room that it had is free from then on: the next VM waits for neither libvirt nor the
proof.  Each step does nothing where there is nothing to do, so an end that was interrupted is simply done again.  The proof never rests on what was just deleted:
it asks libvirt, the kernel, the file system and the gateway anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from orchestrator.core.errors import HostError, IronCDError
from orchestrator.core.link import GatewayRequest
from orchestrator.core.wire import Proof
from orchestrator.host import console
from orchestrator.host.disk import delete
from orchestrator.host.erase import erase
from orchestrator.host.gateway import GatewayAway
from orchestrator.host.parts import Parts, Runner
from orchestrator.host.paths import VmPaths
from orchestrator.host.slots import slot_at

log = structlog.get_logger()

_TIDY_S = 5.0


def end(parts: Parts, runner: Runner, reason: str) -> Proof:
    """Destroy what there is of ``runner`` and look.  Raises HostError while the VM itself can't be ended."""
    record, names = runner.record, runner.names
    with runner.lock:
        record.end_reason = record.end_reason or reason
    runner.mark(parts, "end_begun")
    parts.talk.close(record.id)
    take_down(parts, names.domain, lambda: runner.mark(parts, "vm_dead"))
    runner.mark(parts, "domain_gone")
    _clear(parts, runner)
    proof = look(parts, runner)
    with runner.lock:
        record.proof = proof
        if proof.whole:
            if record.vm in ("making", "running"):
                record.vm = "absent"
            runner.secret = ""
    if proof.whole:
        runner.mark(parts, "all_gone")
    runner.save(parts)
    return proof


def take_down(parts: Parts, domain: str, seen_dead: Callable[[], None] = lambda: None) -> None:
    """Kill the VM ``domain`` and wait until libvirt has tidied up.  Raises HostError where it doesn't get there.

    ``seen_dead`` is called where its process was seen to die.  A killed VM's domain goes by itself, as soon as libvirt has
    seen that its QEMU was reaped.
    """
    if parts.hypervisor.kill(domain):
        seen_dead()
    parts.hypervisor.destroy(domain)
    deadline = time.monotonic() + _TIDY_S
    while parts.hypervisor.state(domain) is not None:
        if time.monotonic() >= deadline:
            raise HostError(
                f"{domain} is still there after it was destroyed",
                code="domain-stays",
                remedy="See libvirtd's log; the host tries again by itself.",
            )
        time.sleep(0.05)


def _clear(parts: Parts, runner: Runner) -> None:
    """Everything but the domain.  What fails is logged: the proof shows it, and the next turn does it again."""
    names, files, slot = runner.names, runner.paths(parts), runner.record.slot
    steps: list[tuple[str, Callable[[], object]]] = [
        ("link file", lambda: delete(files.link)),
        ("gateway", lambda: _drop(parts, names.tap)),
        ("rules", lambda: parts.wall.remove(names.tap)),
        ("tap", lambda: parts.wires.delete(names.tap)),
        ("flows", lambda: _forget_flows(parts, slot)),
        ("disk", lambda: erase(files.disk, parts.settings.disk_erase)),
        ("boot", lambda: delete(files.boot)),
        ("seed", lambda: delete(files.seed)),
        ("channel", lambda: delete(files.channel)),
        ("console", lambda: _delete_console(files)),
    ]
    for what, step in steps:
        try:
            step()
        except (IronCDError, OSError) as error:
            log.warning("clear_failed", runner=names.ulid, what=what, error=str(error))
    with runner.lock:
        if slot >= 0 and runner.record.slot == slot:
            parts.slots.release(slot, parts.uptime())
            runner.record.slot = -1


def _delete_console(files: VmPaths) -> None:
    for part in console.parts(files.console):
        delete(part)


def _forget_flows(parts: Parts, slot: int) -> None:
    if slot >= 0:
        parts.wires.forget_flows(slot_at(parts.settings.links_range, slot).guest_ip)


def _drop(parts: Parts, tap: str) -> bool:
    """True where the gateway has no flow of ``tap``: it said so, or there is none that could have one."""
    try:
        return parts.gateway.ask(GatewayRequest("drop", tap)).ok
    except GatewayAway:
        return True


def look(parts: Parts, runner: Runner) -> Proof:
    """Look for each thing that a runner has.  What can't be looked at counts as still there."""
    names, files = runner.names, runner.paths(parts)
    try:
        rules = parts.wall.present()
        taps = parts.wires.present()
        return Proof(
            domain=parts.hypervisor.state(names.domain) is None,
            disk=not files.disk.exists() and not files.boot.exists(),
            seed=not files.seed.exists(),
            channel=not files.channel.exists(),
            tap=names.tap not in taps,
            chain=names.tap not in rules.chains,
            l2_chain=names.tap not in rules.l2_chains,
            map_entry=names.tap not in rules.map_entries and names.tap not in rules.ranges,
            gateway=not files.link.exists() and _drop(parts, names.tap),
            looked_at=parts.clock(),
        )
    except (IronCDError, OSError) as error:
        log.warning("look_failed", runner=names.ulid, error=str(error))
        return Proof(
            domain=False,
            disk=False,
            seed=False,
            channel=False,
            tap=False,
            chain=False,
            l2_chain=False,
            map_entry=False,
            gateway=False,
            looked_at=parts.clock(),
        )
