"""A clone alone: from its request to running vCPUs through libvirt, eight at once, a hundred in a row, and what one takes.

Beside it, in the same run: the same QEMU command by hand, and libvirt's own restore of a saved guest.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
from rich.console import Console

from bench.machine import scratch
from bench.rows import Bench, Figure, Row, middle, percentile, row
from bench.start_host import Host, host_of
from bench.start_memory import MIB, private_mib
from bench.start_peers import arguments_of, by_hand, restore, save
from orchestrator.core.machine import MachineClass
from orchestrator.surface.demo import scenario
from orchestrator.surface.demo.image import ensure_image
from orchestrator.surface.demo.lab import CACHE

CLONES, BY_HAND, RESTORES, AT_ONCE, IN_A_ROW, ENDS_OF_ROW = 30, 10, 5, 8, 100, 20
IDLE_S = 5.0

TO_VCPUS = [Figure(f"clone_to_vcpus_p{percent}", "s", "<= 0.35" if percent == 50 else "") for percent in (50, 95, 99)]
BESIDE_HAND = Figure("clone_to_vcpus_beside_qemu_by_hand", "s")
BESIDE_RESTORE = Figure("clone_to_vcpus_beside_libvirt_restore", "s", "<= 1.0")
EIGHT = Figure("clones_8_at_once_to_vcpus", "s")
EIGHT_GATES = Figure("clones_8_at_once_past_the_gate", "s")
DRIFT = Figure("clones_100_in_a_row_drift", "s", "<= 1.25")
DESCRIPTORS = Figure("clones_100_in_a_row_descriptors_left", "count", "<= 0")
FILES = Figure("clones_100_in_a_row_files_left", "count", "<= 0")
RESIDENT = Figure("clones_100_in_a_row_memory_left", "MiB", "<= 32")
IDLE_MEMORY = Figure("clone_idle_unique_memory", "MiB", "<= 0.5")
DISK = Figure("clone_idle_disk", "MiB")


def measure(console: Console) -> Iterable[Row]:
    ensure_image(CACHE, lambda _step: None)
    machine = msgspec.convert({"name": "ironcd", **scenario.CLASS, "start": "clone"}, MachineClass)
    with scratch("clone") as folder:
        folder.chmod(0o711)
        console.print("  a template")
        with host_of(machine, CACHE) as host:
            console.print(f"  {CLONES} clones, {BY_HAND} by hand, {RESTORES} restored")
            yield from _one_at_a_time(host, folder)
            console.print(f"  {AT_ONCE} at once")
            yield from _at_once(host)
            console.print(f"  {IN_A_ROW} in a row")
            yield from _in_a_row(host)


def _one_at_a_time(host: Host, folder: Path) -> Iterator[Row]:
    times, steps, hands, arguments = [], [], [], []
    idle = disk = 0.0
    for number in range(CLONES):
        vm = host.clone()
        times.append(sum(vm.took.values()))
        steps.append(vm.took)
        if number == 0:
            arguments = arguments_of(vm)
            time.sleep(IDLE_S)
            idle, disk = private_mib(vm.domain), host.overlay(vm).stat().st_blocks * 512 / MIB
        host.end(vm)
        if number < BY_HAND:
            hands.append(by_hand(arguments, host, folder))
        host.settle()
    yield from (
        row(figure, percentile(times, percent), note=_steps(steps))
        for figure, percent in zip(TO_VCPUS, (50, 95, 99), strict=True)
    )
    yield row(
        BESIDE_HAND,
        middle(times),
        peer="the same QEMU command without libvirt",
        peer_value=middle(hands),
        note=f"{BY_HAND} by hand",
    )
    booted = host.boot()
    alone = private_mib(booted.domain)
    file = save(booted, folder)
    restores = [restore(booted, file, host) for _ in range(RESTORES)]
    host.end(booted)
    yield row(
        BESIDE_RESTORE,
        middle(times),
        peer="virsh restore of a guest saved at its gate",
        peer_value=middle(restores),
        note=f"{RESTORES} restored",
    )
    yield row(IDLE_MEMORY, idle, peer="the same machine booted", peer_value=alone, note="private pages, at the gate")
    yield row(
        DISK,
        disk,
        peer="the image's disk",
        peer_value=host.image.disk.stat().st_blocks * 512 / MIB,
        note="blocks of the overlay, at the gate",
    )


def _at_once(host: Host) -> Iterator[Row]:
    began = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as threads:
        vms = list(threads.map(lambda _number: host.clone(), range(AT_ONCE)))
        took = time.perf_counter() - began
        list(threads.map(host.open_gate, vms))
        past = time.perf_counter() - began
    alone = [sum(vm.took.values()) for vm in vms]
    for vm in vms:
        host.end(vm)
    host.settle()
    yield row(EIGHT, took, note=f"each of them {min(alone):.2f} to {max(alone):.2f} s, on {os.cpu_count()} cores")
    yield row(EIGHT_GATES, past, note="from the first request until the last guest is a machine of its own")


def _in_a_row(host: Host) -> Iterator[Row]:
    folder = Path(host.parts.settings.state_dir).parent
    before, times = None, []
    for number in range(IN_A_ROW):
        vm = host.clone()
        times.append(sum(vm.took.values()))
        host.open_gate(vm)
        host.end(vm)
        if number == ENDS_OF_ROW - 1:  # whatever is loaded and cached once is there by now
            host.settle()
            before = Holdings.of(folder)
    host.settle()
    after = Holdings.of(folder)
    assert before is not None
    first, last = times[:ENDS_OF_ROW], times[-ENDS_OF_ROW:]
    yield row(
        DRIFT,
        middle(last),
        peer=f"the first {ENDS_OF_ROW} of the row",
        peer_value=middle(first),
        note=f"median of the last {ENDS_OF_ROW}",
    )
    yield row(
        DESCRIPTORS,
        after.descriptors - before.descriptors,
        note=f"{before.descriptors} before, this process and libvirtd",
    )
    yield row(FILES, after.files - before.files, note=f"{before.files} before")
    yield row(
        RESIDENT,
        after.resident_mib - before.resident_mib,
        note=f"{before.resident_mib:.0f} before, this process and libvirtd",
    )


class Holdings(msgspec.Struct, frozen=True):
    """What this process and libvirtd hold, and how many files lie in a folder."""

    descriptors: int
    resident_mib: float
    files: int

    @classmethod
    def of(cls, folder: Path) -> Holdings:
        pids = [os.getpid(), *_libvirtd()]
        return cls(
            descriptors=sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids),
            resident_mib=sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / MIB for pid in pids),
            files=sum(path.is_file() for path in folder.rglob("*")),
        )


def _libvirtd() -> list[int]:
    try:
        return [int(Path("/run/libvirtd.pid").read_text())]
    except (OSError, ValueError):
        return []


def _steps(steps: Sequence[dict[str, float]]) -> str:
    told = ", ".join(f"{name} {1000 * middle([step[name] for step in steps]):.0f}" for name in steps[0])
    return f"{len(steps)} clones, ms: {told}"


BENCH = Bench(
    (
        *(*TO_VCPUS, BESIDE_HAND, BESIDE_RESTORE, EIGHT, EIGHT_GATES),
        *(DRIFT, DESCRIPTORS, FILES, RESIDENT, IDLE_MEMORY, DISK),
    ),
    measure,
)
