"""``python -m bench.boot_profile``: where the time of a cold boot goes, as a table for people; no figure of `make bench`.

A job on a machine that boots cold asks its own kernel and its own systemd when what began and ended, and the host says
when it let the machine run and what it heard when.  Both are told from one zero: the moment in which the machine's processors run.

What a machine waited for is found as ``systemd-analyze critical-chain`` finds it: of the units that one is ordered after, the
last to be ready before it was started, and so on.  (The program itself asks D-Bus, which isn't there yet in our guests.)
"""

from __future__ import annotations

import os
import re
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence

import msgspec
from rich.console import Console
from rich.table import Table

from bench.machine import scratch
from bench.start_jobs import CLASSES, begin, end, policy
from orchestrator.surface.demo import scenario
from orchestrator.surface.demo.image import ensure_image
from orchestrator.surface.demo.lab import CACHE, Lab
from orchestrator.surface.timeline import milestones_of

OURS = "ironcd-guest.service"
UNIT_S, GAP_S = 0.1, 0.1
"""Units, and silences of the kernel, that are shorter aren't shown, in seconds."""
SHOWN_S = 0.005

_FIELDS = "Id,After,InactiveExitTimestampMonotonic,ActiveEnterTimestampMonotonic"
_MANAGER = "UserspaceTimestampMonotonic,GeneratorsStartTimestampMonotonic,UnitsLoadFinishTimestampMonotonic"
ASK = f"""
cat /proc/uptime; date +%s.%N; echo ==kernel; sudo dmesg; echo ==manager; sudo systemctl show --property={_MANAGER}
echo ==stages; sudo cat /run/cloud-init/status.json; echo
echo ==units; sudo systemctl show '*' --property={_FIELDS}; echo ==end
"""
_LINE_TIME = re.compile(r"^\S+Z ", re.MULTILINE)
_KERNEL = re.compile(r"^\[ *(\d+\.\d+)\] (.*)$", re.MULTILINE)
_STAGES = ("init-local", "init", "modules-config", "modules-final")
_INIT = "Run /init as init process"


class Unit(msgspec.Struct, frozen=True):
    """``began`` and ``ready`` in seconds since the kernel's zero; ``ready`` is 0 where it never was."""

    name: str
    after: tuple[str, ...]
    began: float
    ready: float


class Boot(msgspec.Struct, frozen=True):
    """``zero``: seconds since the epoch at the kernel's zero.  ``kernel``: what it printed, with its times."""

    zero: float
    kernel: tuple[tuple[float, str], ...]
    manager: dict[str, float]
    stages: dict[str, float]
    """cloud-init's, by when each began."""
    units: dict[str, Unit]


class Span(msgspec.Struct, frozen=True):
    """``at``: seconds since the kernel's zero when it began."""

    at: float
    took: float
    what: str


def read(log: str) -> Boot:
    """What a job's log says of its machine's boot.  Raises ValueError where it isn't in there."""
    text = _LINE_TIME.sub("", log.replace("\r", ""))
    parts = re.split(r"^==(?:kernel|manager|stages|units|end)\n", text, flags=re.MULTILINE)
    if len(parts) != 6:
        raise ValueError("the job's log doesn't hold what its machine was asked for")
    uptime, now = parts[0].splitlines()[-2:]
    kernel = tuple((float(at), said) for at, said in _KERNEL.findall(parts[1]))
    manager = {name: int(value) / 1e6 for name, value in _properties(parts[2]).items()}
    told = msgspec.json.decode(parts[3])["v1"]
    stages = {name: float(told[name]["start"]) for name in _STAGES}  # cloud-init takes them off /proc/uptime
    units = [_unit(_properties(block)) for block in parts[4].split("\n\n") if block.strip()]
    return Boot(float(now) - float(uptime.split()[0]), kernel, manager, stages, {unit.name: unit for unit in units})


def _properties(block: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in block.strip().splitlines())


def _unit(found: Mapping[str, str]) -> Unit:
    began, ready = (int(found.get(f"{name}TimestampMonotonic") or 0) / 1e6 for name in ("InactiveExit", "ActiveEnter"))
    return Unit(found["Id"], tuple(found.get("After", "").split()), began, ready)


def critical_chain(units: Mapping[str, Unit], last: str) -> list[Unit]:
    """What ``last`` waited for, one behind the other, the first first; ``last`` is its end."""
    chain = [units[last]]
    while True:
        later = chain[0]
        waited = [
            units[name]
            for name in later.after
            if name in units and 0 < units[name].ready <= later.began and units[name] not in chain
        ]
        if not waited:
            return chain
        chain.insert(0, max(waited, key=lambda unit: unit.ready))


def spans(boot: Boot, host: Mapping[str, float]) -> Iterator[Span]:
    """From the moment in which the processors run to the runner's process, one behind the other; ``host``: its milestones."""
    on = host["chain_installed"] - boot.zero
    init = next((at for at, said in boot.kernel if said.startswith(_INIT)), 0.0)
    userspace = boot.manager["UserspaceTimestampMonotonic"]
    loaded = boot.manager["UnitsLoadFinishTimestampMonotonic"]
    chain = critical_chain(boot.units, OURS)
    marks = [
        (on, "QEMU loads kernel and initrd, and the kernel unpacks itself"),
        (0.0, "kernel"),
        (init, "initrd: six modules, and the root file system is mounted"),
        (userspace, "systemd: its own start and its generators"),
        (loaded, "systemd: from its units' files to the first of the chain"),
        *((unit.began, unit.name) for unit in chain if unit.began > loaded),
        (host["guest_hello"] - boot.zero, "the gate: clock, randomness and ids"),
        (host["gate_opened"] - boot.zero, "cloud-init's process comes up, and hears of it"),
        *((at, f"cloud-init: {stage}") for stage, at in boot.stages.items()),
        (host["jit_taken"] - boot.zero, "the seed goes, the runner's process is started"),
    ]
    ends = [at for at, _ in marks[1:]] + [host["runner_started"] - boot.zero]
    for (at, what), until in zip(marks, ends, strict=True):
        if until - at >= SHOWN_S:
            yield Span(at, until - at, what)


def silences(boot: Boot) -> list[Span]:
    """Where the kernel said nothing for a while on its way to the initrd, with what it said next: that took the time, mostly."""
    found = []
    for (at, _), (until, said) in zip(boot.kernel, boot.kernel[1:], strict=False):
        if until - at >= GAP_S:
            found.append(Span(at, until - at, said))
        if said.startswith(_INIT):
            break
    return found


def slow_units(boot: Boot) -> list[Span]:
    """Units by the time from their start until they were ready, the longest first; not what only waits for ours."""
    took = [Span(unit.began, unit.ready - unit.began, unit.name) for unit in boot.units.values() if unit.began]
    return sorted((span for span in took if span.took >= UNIT_S), key=lambda span: -span.took)


def _show(console: Console, title: str, found: Sequence[Span]) -> None:
    table = Table(title=title, title_justify="left")
    for name in ("at, s", "took, s"):
        table.add_column(name, justify="right")
    table.add_column("what")
    for span in found:
        table.add_row(f"{span.at:.2f}", f"{span.took:.2f}", span.what)
    console.print(table)


def measure() -> tuple[Boot, dict[str, float]]:
    """Boot a machine cold, under a job that asks it."""
    ensure_image(CACHE, lambda _step: None)
    with scratch("boot") as folder:
        name, classes = f"icd-demo-{secrets.token_hex(3)}", {"cold": CLASSES["cold"]}
        with Lab(name, logs=folder / "logs", classes=classes) as lab:
            lab.start_stack()
            scenario.accelerator_of(lab)
            policy(lab)
            job = end(lab, "cold", begin(lab, "cold", run=ASK))
            return read(str(lab.simulated("GET", f"jobs/{job['id']}/log"))), milestones_of(job)


def main() -> int:
    busy = os.getloadavg()[0]
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    boot, host = measure()
    _show(
        console, "From running processors to the runner's process (0: the kernel's first line)", list(spans(boot, host))
    )
    _show(console, f"Of the kernel: where it was silent for {GAP_S} s and more, and what it said then", silences(boot))
    _show(console, f"Units that took {UNIT_S} s and more, on the way or beside it", slow_units(boot))
    console.print(f"Load of this machine before that: {busy:.1f}, on {os.cpu_count()} cores.", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
