"""What fits onto this host beside what it has, and why a machine may never start here."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from orchestrator.core.errors import HostError
from orchestrator.core.machine import Capacity, MachineClass
from orchestrator.host.accelerator import Choice
from orchestrator.host.converge import Step
from orchestrator.host.images import find_image


def fits(room: Capacity, machines: Iterable[MachineClass]) -> bool:
    """Whether ``machines``, all of them, have processors and memory within ``room``."""
    asked = list(machines)
    vcpus, memory = sum(one.vcpus for one in asked), sum(one.memory_mib for one in asked)
    return vcpus <= room.vcpus and memory <= room.memory_mib


def too_small(room: Capacity, machine: MachineClass) -> Step | None:
    """A ``fail`` step where ``machine`` could never start, whatever else ends."""
    if fits(room, [machine]):
        return None
    need = f"{machine.vcpus} vCPUs and {machine.memory_mib} MiB"
    return Step("fail", f"its class needs {need}; this host has {room.vcpus} and {room.memory_mib}", "host-too-small")


def without_accelerator(choice: Choice, images: Path, machine: MachineClass) -> Step | None:
    """Why no VM starts on this host; None where that is still being found out."""
    if choice.problem is not None:
        return Step("fail", choice.problem.message, choice.problem.code)
    try:
        find_image(images, machine.image)
    except HostError as error:
        return Step("fail", error.message, error.code)
    return None  # there is an image to try KVM with, and that is being done
