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
    now = parts.uptime()
    starting = any(is_starting(runners[wish.id].record, now) for wish in wanted if wish.id in runners)
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


IDLE_S = 15.0
"""A runner that has listened for so long has no job to start, for now."""


def is_starting(record: Record, now: float) -> bool:
    """A job's machine is on its way to the first step, and needs what processors there are."""
    over = record.vm not in ("absent", "making", "running") or record.has("end_begun") or record.has("runner_exited")
    if over or record.has("steps_released"):
        return False
    listens = record.ups.get("runner_listening")
    return record.has("job_hint") or listens is None or now - listens < IDLE_S


def holds_room(record: Record) -> bool:
    """Processors and memory are free when the VM's process is dead; libvirt's tidying up and the proof take none."""
    return not (record.has("vm_dead") or record.has("domain_gone") or record.is_proved_gone)
