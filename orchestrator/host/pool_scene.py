"""What of this host matters to the machines that wait: which room jobs have or are about to need."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.core.machine import Capacity, MachineClass
from orchestrator.core.wire import DesiredRunner
from orchestrator.host.parts import Parts, Runner
from orchestrator.host.pool_plan import Scene
from orchestrator.host.record import Record


def scene_of(
    parts: Parts,
    classes: tuple[MachineClass, ...],
    wishes: Mapping[str, DesiredRunner],
    runners: Mapping[str, Runner],
    capacity: Capacity,
) -> Scene:
    """Without the machines that wait and the state of memory, which the pool knows itself."""
    wanted = [wish for wish in wishes.values() if wish.wish == "run"]
    coming = [wish.machine for wish in wanted if wish.id not in runners]
    starting = any(is_starting(runners[wish.id].record) for wish in wanted if wish.id in runners)
    held = [runner.record.machine for runner in runners.values() if holds_room(runner.record)]
    building = parts.templates.building
    return Scene(
        classes=classes,
        templates=parts.templates.ready(),
        waiters=(),
        taken=(*held, *coming, *((building,) if building is not None else ())),
        capacity=capacity,
        starting=bool(coming) or starting or building is not None,
    )


def is_starting(record: Record) -> bool:
    """A job's machine is on its way up, and needs what processors there are."""
    up = record.has("runner_listening") or record.has("job_hint") or record.has("runner_exited")
    return record.vm in ("absent", "making", "running") and not up and not record.has("end_begun")


def holds_room(record: Record) -> bool:
    """Processors and memory are free when the VM's process is dead; libvirt's tidying up and the proof take none."""
    return not (record.has("vm_dead") or record.has("domain_gone") or record.is_proved_gone)
