"""Whole systems under random faults and deaths, one a seed: no job lost, none served twice, nothing left behind.

`seeds.txt` has the seeds that failed once, each with what it showed; they are run always.  Beside them ten are run in each
`make test`; `make chaos CROWD=200 SEED=n` runs any.  Each is a process of its own, since it changes what time is.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
KEPT = Path(__file__).with_name("seeds.txt")
TEN = tuple(range(101, 111))
JOBS = 30
AT_ONCE = 2
WITHIN_S = 300


def play(seed: int, jobs: int = JOBS, *, hashes: str = "0") -> dict[str, Any]:
    """One run's report.  ``hashes``: what orders sets in the process that starts it; the run itself has its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--crowd", str(jobs), "--seed", str(seed)],
        cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": hashes}, capture_output=True, timeout=WITHIN_S, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr.decode()[-3000:]
    report: dict[str, Any] = json.loads(done.stdout)["tiers"]["crowd"]
    assert done.returncode == (0 if report["ok"] else 1)
    return report


def kept() -> list[tuple[int, int]]:
    """Jobs and seed of each line."""
    lines = (line.partition("#")[0].split() for line in KEPT.read_text().splitlines())
    return [(int(words[0]), int(words[1])) for words in lines if words]


@pytest.fixture(scope="module")
def reports() -> dict[tuple[int, int], dict[str, Any]]:
    wanted = [(JOBS, seed) for seed in TEN] + [one for one in kept() if one not in {(JOBS, seed) for seed in TEN}]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(wanted, pool.map(lambda one: play(one[1], one[0]), wanted), strict=True))


def wrong(report: dict[str, Any]) -> str:
    return f"make chaos CROWD={report['jobs']} SEED={report['seed']} shows it again:\n" + "\n".join(
        report["wrong"][:10]
    )


def test_each_job_was_served_once_or_ended_by_a_declared_rule(reports) -> None:
    for report in reports.values():
        assert (report["lost"], report["served_twice"]) == (0, 0), wrong(report)
        assert sum(report["ends"].values()) == report["jobs"], wrong(report)
    served, jobs = (sum(report[key] for report in reports.values()) for key in ("served", "jobs"))
    assert served >= jobs / 2, "runs in which little is served show little"


def test_nothing_is_left_and_nobody_elses_was_touched(reports) -> None:
    for report in reports.values():
        assert not any(report["leaked"].values()), wrong(report)
        assert report["foreign_gone"] == [], wrong(report)


def test_nobody_broke_and_no_job_waited_without_a_reason(reports) -> None:
    for report in reports.values():
        assert report["wrong"] == [], wrong(report)
        assert report["ok"]


def test_the_trouble_was_real(reports) -> None:
    """Over the ten: every kind of fault that there is happened, and processes died often."""
    from orchestrator.simulator.github.catalogue import CATALOGUE
    from tests.chaos.trouble import HOST_FAULTS

    seen = {kind for report in reports.values() for kind in report["faults"]}
    assert (set(CATALOGUE) | set(HOST_FAULTS)) - seen == set()
    assert sum(report["kills"] for report in reports.values()) >= 10 * len(TEN)


def test_a_seed_is_played_again_exactly() -> None:
    first, second = play(7, 10, hashes="1"), play(7, 10, hashes="2")
    assert first == second
    assert first["digest"] != play(8, 10)["digest"]


def test_the_oracle_sees_what_is_wrong() -> None:
    """A system in which a job is let down, and one in which a disk is left behind, is found out."""
    for sabotage, sign in (("lose-a-job", "lost"), ("leave-a-disk", "disks"), ("touch-a-stranger", "their-runner")):
        done = subprocess.run(
            [sys.executable, "-m", "tests.chaos", "--crowd", "3", "--seed", "3", "--sabotage", sabotage],
            cwd=ROOT, capture_output=True, timeout=WITHIN_S, check=False,
        )  # fmt: skip
        assert done.returncode == 1, sabotage
        report = json.loads(done.stdout)["tiers"]["crowd"]
        assert not report["ok"]
        assert re.search(sign, json.dumps([report["wrong"], report["foreign_gone"]])), sabotage
