"""Whole jobs, one after the other, on machines that are booted, cloned or waiting; when each passed which milestone.

One installation serves all three kinds: a class for each, of the same size and image.  Kinds take turns, so that whatever
else the machine does falls on all of them alike.  A job is a single step that does nothing.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from orchestrator.surface.demo import scenario
from orchestrator.surface.demo.image import ensure_image
from orchestrator.surface.demo.lab import CACHE, Deadline, Lab
from orchestrator.surface.demo.workflow import POLICY, POLICY_PATH
from orchestrator.surface.timeline import MILESTONES, milestones_of

Kind = Literal["cold", "clone", "warm"]
KINDS: tuple[Kind, ...] = ("cold", "clone", "warm")
CLASSES: dict[str, dict[str, object]] = {
    "cold": {**scenario.CLASS, "start": "cold"},
    "clone": {**scenario.CLASS, "start": "clone"},
    "warm": {**scenario.CLASS, "start": "clone", "warm": 1},
}
TEMPLATE_WITHIN_S = 300.0
WARM_WITHIN_S = 120.0
JOB_WITHIN_S = 300.0
LOOKS_EVERY_S = 1.0
"""Each look takes processor time from what is measured; when something happened stands in the job's story."""


@contextmanager
def lab_of_three(logs: Path) -> Iterator[Lab]:
    """An installation with the three classes, whose host has its template."""
    ensure_image(CACHE, lambda _step: None)
    with Lab(f"icd-demo-{secrets.token_hex(3)}", logs=logs, classes=CLASSES) as lab:
        lab.start_stack()
        scenario.accelerator_of(lab)
        policy(lab)
        deadline = Deadline(time.monotonic() + TEMPLATE_WITHIN_S, "the host has no template")
        while not _has_template(lab):
            deadline.pause(0.5)
        yield lab


def policy(lab: Lab) -> None:
    """Put the policy into the repository whose jobs these are."""
    lab.simulated("PUT", f"repositories/acme/app/files/{POLICY_PATH}", content=POLICY.encode())


def order_of(counts: Mapping[Kind, int]) -> list[Kind]:
    """Kinds in turns, as evenly spread as their counts allow."""
    total = sum(counts.values())
    placed = [((number + 0.5) / count, kind) for kind, count in counts.items() for number in range(count)]
    assert len(placed) == total
    return [kind for _, kind in sorted(placed, key=lambda item: (item[0], KINDS.index(item[1])))]


def start(lab: Lab, kind: Kind) -> dict[str, float]:
    """The milestones of one job on a machine of ``kind``.  Raises RuntimeError where it ran on one of another kind, or failed."""
    if kind == "warm":
        deadline = Deadline(time.monotonic() + WARM_WITHIN_S, "no machine waits")
        while not any(machine["machine_class"] == "ironcd-warm" for machine in _host(lab).get("warm", ())):
            deadline.pause(LOOKS_EVERY_S)
    return milestones_of(end(lab, kind, begin(lab, kind)))


def begin(lab: Lab, kind: Kind, *, run: str = "true") -> int:
    """Start a job whose only step is the shell's command ``run``; its id."""
    workflow = {
        "name": "CI",
        "jobs": {"job": {"runs-on": [f"ironcd-{kind}"], "steps": [{"name": "step", "run": run}]}},
    }
    asked = {"repository": "app", "workflow": workflow, "event": "push"}
    return int(lab.simulated("POST", "runs", json=asked)["jobs"][0]["id"])


def end(lab: Lab, kind: Kind, job_id: int) -> scenario.Job:
    """The job, once it is over.  Raises RuntimeError where it failed, or its machine was of another kind."""
    deadline = Deadline(time.monotonic() + JOB_WITHIN_S, f"the {kind} job {job_id} didn't end")
    while not scenario.is_over(job := scenario.job_of(lab, job_id)):
        deadline.pause(LOOKS_EVERY_S)
    runner = next(found for found in job["made_for_it"] if found["id"] == job["runner"])
    if job.get("conclusion") != "success" or len(job["made_for_it"]) != 1:
        raise RuntimeError(f"the {kind} job {job_id} ended with {job.get('conclusion')}: {job['reason']}")
    if runner["start"] != kind:
        raise RuntimeError(
            f"a {kind} start became {runner['start'] or 'none'}: {runner['cold_because'] or 'no reason told'}"
        )
    return job


def span(milestones: Mapping[str, float], first: str, last: str) -> float:
    """Seconds between two milestones.  Raises RuntimeError where one wasn't passed."""
    missing = [name for name in (first, last) if name not in milestones]
    if missing:
        raise RuntimeError(f"a start has no {', '.join(missing)}")
    return milestones[last] - milestones[first]


def phases(starts: Sequence[Mapping[str, float]], last: str) -> str:
    """Where the time of ``starts`` went up to ``last``: the middle one of each phase, in the order of the milestones' middles."""
    zero = MILESTONES[0][0]
    passed = {
        name: sorted(found[name] - found[zero] for found in starts if name in found)
        for name, _ in MILESTONES
        if all(name in found for found in starts)
    }
    middles = sorted((times[len(times) // 2], name) for name, times in passed.items())
    told, before = [], 0.0
    for at, name in middles:
        if name != zero and at >= 0:
            told.append(f"{name} {1000 * (at - before):.0f}")
            before = at
        if name == last:
            break
    return "ms to each phase: " + ", ".join(told)


def _host(lab: Lab) -> dict[str, Any]:
    hosts: list[dict[str, Any]] = lab.stack.api("hosts")["hosts"]
    return hosts[0] if hosts else {}


def _has_template(lab: Lab) -> bool:
    found = _host(lab).get("templates", ())
    failed = [template for template in found if template["state"] == "failed"]
    if failed:
        raise RuntimeError(f"the template failed: {failed[0].get('reason', '')}")
    ready = {name for template in found if template["state"] == "ready" for name in template["classes"]}
    return {"ironcd-clone", "ironcd-warm"} <= ready
