"""The three tiers of one run, how the jobs are shared among them, and the one report that is made of theirs.

======  =======================================================================================  =======================
tier    what is real                                                                             replays
======  =======================================================================================  =======================
crowd   nothing: the product's code in one process, in virtual time                              exactly
real    the product's processes, `kill -9`, Redis, nftables; libvirt's in-memory driver          its plan
vms     all of it: a virtual machine for each job                                                its plan
======  =======================================================================================  =======================

Each is a process of its own: the first one changes what time is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from tests.chaos import real_city, real_run, trouble, vm_plan, vm_run

TIERS = ("crowd", "real", "vms")
JOBS = 200
MOST_REAL, MOST_VMS = 24, 3
BEAT_S = 15.0
ROOT = Path(__file__).resolve().parents[2]


class BadShares(ValueError):
    """The numbers of jobs don't fit together."""


def shares(jobs: int | None, named: Mapping[str, int | None]) -> dict[str, int]:
    """Jobs for each tier that has any.  ``jobs``: of all together; ``named``: of single tiers, None where it isn't said.

    With neither `JOBS` are shared out; with tiers alone there are only those.  Raises `BadShares`.
    """
    if jobs is None and all(named.get(tier) is None for tier in TIERS):
        jobs = JOBS
    if jobs is None:
        given = {tier: named.get(tier) or 0 for tier in TIERS}
    else:
        usual = {"real": min(MOST_REAL, jobs // 8), "vms": min(MOST_VMS, jobs // 20)}
        given = {tier: wanted if (wanted := named.get(tier)) is not None else usual[tier] for tier in ("real", "vms")}
        rest = jobs - sum(given.values())
        crowd = named.get("crowd")
        if rest < 0 or crowd not in (None, rest):
            raise BadShares(f"{jobs} jobs in all are fewer or more than the tiers' own: {dict(named)}")
        given = {"crowd": rest, **given}
    if min(given.values()) < 0 or not any(given.values()):
        raise BadShares("there is no job to run")
    return {tier: number for tier, number in given.items() if number}


def why_not(wanted: Mapping[str, int]) -> str:
    """Why a tier that is wanted can't run here; empty where all can."""
    found = [real_city.may_run() if "real" in wanted else "", vm_run.may_run() if "vms" in wanted else ""]
    return "; ".join(dict.fromkeys(why for why in found if why))


def plans(wanted: Mapping[str, int], seed: int) -> dict[str, Any]:
    """What will be done and when, by tier: it comes from the seed and the number of jobs, and from nothing else."""
    made: dict[str, Any] = {}
    for tier, jobs in wanted.items():
        if tier == "crowd":
            span_s = trouble.span_s(jobs)
            steps = [(round(at, 3), "run", str(size)) for at, size in trouble.work_plan(jobs, seed, span_s)]
            steps += [(round(at, 3), "fault", kind) for at, kind in trouble.trouble_plan(seed, span_s)]
            made[tier] = sorted(steps)
        elif tier == "real":
            made[tier] = [(round(at, 3), what, which) for at, what, which in real_run.plan(jobs, seed)]
        else:
            made[tier] = vm_plan.plan(jobs, seed)
    return made


def run_all(
    wanted: Mapping[str, int], seed: int, say: Callable[[str], None], *, journal: Path | None = None, sabotage: str = ""
) -> dict[str, Any]:
    """Each tier's report, by its name, one tier after the other; one that broke has an ``error``."""
    found = {}
    for tier, jobs in wanted.items():
        say(f"{tier}: {jobs} jobs, seed {seed}")
        began = time.monotonic()
        report = found[tier] = _run(tier, jobs, seed, say, journal, sabotage)
        verdict = "ok" if report["ok"] else report.get("error") or "FAILED"
        say(f"{tier}: {verdict}, {report['kills']} killed, {time.monotonic() - began:.0f} s")
    return found


def _run(
    tier: str, jobs: int, seed: int, say: Callable[[str], None], journal: Path | None, sabotage: str
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="ironcd-tier-") as folder:
        output = Path(folder) / "report.json"
        # Where this one is killed outright the tier takes away what it made, in place of going on unseen.
        command = ["setpriv", "--pdeathsig", "TERM", "--"]
        command += [sys.executable, "-m", "tests.chaos.tier", tier, "--jobs", str(jobs), "--seed", str(seed)]
        command += ["--output", str(output), "--sabotage", sabotage]
        command += ["--then", "all"] if tier == "vms" and not sabotage else []
        command += ["--journal", str(journal / tier)] if journal is not None else []
        # The order of a set is part of what happens: it must be the same in each run.
        env = {**os.environ, "PYTHONHASHSEED": "0"}
        with subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as child:
            try:
                status = _wait(child, tier, say)
            except BaseException:
                child.terminate()  # it takes away what it made
                raise
        if not output.exists():
            return {"jobs": jobs, "ok": False, "kills": 0, "error": f"it broke: status {status}"}
        report: dict[str, Any] = json.loads(output.read_bytes())
        return report


def _wait(child: subprocess.Popen[bytes], tier: str, say: Callable[[str], None]) -> int:
    began = time.monotonic()
    while True:
        try:
            return child.wait(BEAT_S)
        except subprocess.TimeoutExpired:
            if tier == "crowd":  # it has no time of its own to tell by
                say(f"{tier}: still at it after {time.monotonic() - began:.0f} s")


def together(reports: Mapping[str, Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """The report of the whole: sums over the tiers, each of which is under ``tiers``."""
    counts = {
        key: sum(int(report.get(key, 0)) for report in reports.values())
        for key in ("jobs", "served", "lost", "served_twice", "unreasoned", "starved")
    }
    sums = {}
    for key in ("leaked", "faults"):
        total: Counter[str] = Counter()
        for report in reports.values():
            total.update(report.get(key, {}))
        sums[key] = dict(sorted(total.items()))
    return {
        **counts,
        **sums,
        "kills": sum(int(report["kills"]) for report in reports.values()),
        "seed": seed,
        "ok": bool(reports) and all(bool(report["ok"]) for report in reports.values()),
        "tiers": dict(reports),
    }


def as_json(content: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"
