"""One whole job on a real virtual machine, by `ironcd demo`: how long to its first step, and from its end to the proof.

Beside the first stands the same guest started by hand in the same run: its kernel, initrd and disk under the same QEMU
with the same accelerator and size, to the end of cloud-init.  What IronCD adds (webhook, placement, registration, the
wall, sign-in through the gateway, binding the policy) is the rest.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.by_hand import boot_by_hand
from bench.machine import scratch
from bench.peers import end
from bench.rows import Bench, Figure, Row, row
from orchestrator.surface.timeline import MILESTONES
from orchestrator.system.process import environment

DEMO_WITHIN_S = 1800

TO_FIRST_STEP = Figure("cold_boot_to_first_step", "s")
TO_PROOF = Figure("job_end_to_proof", "s")


def measure(console: Console) -> Iterable[Row]:
    with scratch("job") as folder:
        console.print("  ironcd demo, one job")
        run = demo(folder)
        console.print(f"  the same guest by hand ({run['accelerator']})")
        by_hand = boot_by_hand(folder, accelerator=run["accelerator"])
    accelerated = f"accelerator {run['accelerator']}"
    to_step = between(run["timeline"], MILESTONES[0][0], "steps_released")
    to_proof = between(run["timeline"], "JobCompleted", "GONE")
    yield row(
        TO_FIRST_STEP,
        to_step,
        peer="the same guest by hand, to the end of cloud-init",
        peer_value=by_hand,
        note=f"one run, from the stored delivery; {accelerated}",
    )
    yield row(
        TO_PROOF,
        to_proof,
        note=f"one run, from GitHub's word that the job is completed, VM and registration; {accelerated}",
    )


def demo(folder: Path) -> dict[str, Any]:
    """What the demo recorded.  Raises RuntimeError, with the end of its output, where not everything held."""
    output, log = folder / "demo.json", folder / "demo.log"
    argv = [sys.executable, "-m", "orchestrator.surface", "demo", "--jobs", "1", "--cold", "--output", str(output)]
    began = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment())
        try:
            status = process.wait(DEMO_WITHIN_S)
        finally:
            end(process, patience_s=90)  # it takes its machines and namespaces away when it is told to end
    if status != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        raise RuntimeError(f"the demo ended with status {status} after {time.monotonic() - began:.0f} s:\n{tail}")
    run: dict[str, Any] = json.loads(output.read_bytes())
    return run


def between(timeline: Sequence[Mapping[str, Any]], first: str, last: str) -> float:
    """Seconds from one milestone (by its name) to another.  Raises RuntimeError where the run didn't pass both, in this order."""
    titles = dict(MILESTONES)
    passed = {span["phase"]: float(span["at"]) for span in timeline}
    missing = [name for name in (first, last) if titles[name] not in passed]
    if missing:
        raise RuntimeError(f"the run has no {', '.join(missing)}")
    seconds = passed[titles[last]] - passed[titles[first]]
    if seconds < 0:
        raise RuntimeError(f"the run passed {last} before {first}")
    return seconds


BENCH = Bench((TO_FIRST_STEP, TO_PROOF), measure)
