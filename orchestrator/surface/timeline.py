"""A job's life as a list of phases, each with its duration: from the delivery of its webhook to the proof of destruction.

A phase is the time between two milestones.  Milestones come from the job's story (GitHub's side), the runner's story (the
control plane's) and the marks (the host's); one that wasn't passed is left out, and its time belongs to the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class Span(msgspec.Struct, frozen=True):
    """``phase`` ended at ``at`` (seconds since the epoch) and took ``duration_s``; ``since_start_s`` counts from the first."""

    phase: str
    at: float
    duration_s: float
    since_start_s: float


MILESTONES: tuple[tuple[str, str], ...] = (
    ("queued", "GitHub's delivery verified and stored"),
    ("WANTED", "class matched, runner wanted"),
    ("Placed", "placed on a host"),
    ("Registered", "JIT configuration from GitHub"),
    ("accepted", "host agent read the wish"),
    ("seed_made", "seed with the JIT configuration made"),
    ("disk_made", "disk made"),
    ("domain_started", "VM made by libvirt, paused"),
    ("cloned", "template's memory and device state taken over"),
    ("chain_installed", "tap, L2 pins and sealed chain in force; VM resumed"),
    ("guest_hello", "guest booted"),
    ("gate_opened", "guest has a clock, an identity and randomness of its own"),
    ("jit_taken", "cloud-init wrote the JIT configuration"),
    ("seed_gone", "seed ejected and deleted"),
    ("runner_started", "runner's process started"),
    ("runner_listening", "runner signed in through the gateway"),
    ("job_hint", "job handed to the runner; hook waits"),
    ("JobStarted", "GitHub said in_progress"),
    ("policy_bound", "the job's policy in force"),
    ("steps_released", "first step released"),
    ("JobCompleted", "steps ran, GitHub said completed"),
    ("runner_exited", "runner ended"),
    ("end_begun", "destruction begun"),
    ("vm_dead", "VM's process dead, its room free"),
    ("domain_gone", "VM gone from libvirt"),
    ("all_gone", "everything looked for, nothing found"),
    ("GONE", "registration gone too; proof on record"),
)


def timeline(milestones: Mapping[str, float]) -> list[Span]:
    """The phases between ``milestones`` (name to seconds since the epoch), in the order in which they were passed."""
    titles = dict(MILESTONES)
    order = {name: number for number, (name, _) in enumerate(MILESTONES)}
    passed = sorted(((at, order[name], name) for name, at in milestones.items() if name in titles))
    spans = []
    start = before = passed[0][0] if passed else 0.0
    for at, _, name in passed:
        spans.append(Span(titles[name], at, round(at - before, 3), round(at - start, 3)))
        before = at
    return spans


def milestones_of(job: Mapping[str, Any]) -> dict[str, float]:
    """Milestones out of a job as the admin API tells its story, without those of runners that it had before its last.

    The first time of each counts, and a mark is the host's own time.
    """
    found: dict[str, float] = {}
    last = job.get("runner")
    for moment in sorted(job.get("story", []), key=lambda moment: float(moment["at"])):
        if moment["who"] in ("job", last):
            found.setdefault(str(moment["what"]), float(moment["at"]))
    for runner in job.get("made_for_it", []):
        if runner["id"] == last:
            found |= {str(mark): float(at) for mark, at in runner["marks"].items()}
    return found
