"""The product's own processes under faults and ``kill -9``, judged as the other tier is: one small run of `make chaos REAL=n`.

When things happen is decided by a seed; what comes of it depends on the machine too, so a failure may need several
runs of its seed to be seen again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.real_city import may_run
from tests.chaos.real_run import plan

ROOT = Path(__file__).resolve().parents[2]
JOBS, SEED = 6, 4
WITHIN_S = 480
KINDS = {"redis", "control", "worker", "agent", "gateway"}

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(may_run()), reason=may_run() or "it can run"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run for all tests here; a disk is left behind after it, and the end judged once more."""
    output = tmp_path_factory.mktemp("real") / "report.json"
    command = [sys.executable, "-m", "tests.chaos.tier", "real", "--jobs", str(JOBS), "--seed", str(SEED)]
    command += ["--output", str(output), "--then", "leave-a-disk"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=WITHIN_S, check=False)
    assert output.exists(), done.stderr.decode()[-3000:]
    made: dict[str, Any] = json.loads(output.read_bytes())
    return made


def test_processes_that_die_lose_no_job_and_leave_nothing(report: dict[str, Any]) -> None:
    shown = f"make chaos REAL={JOBS} SEED={SEED}:\n" + "\n".join(report["wrong"][:10])
    assert (report["ok"], report["wrong"]) == (True, []), shown
    assert (report["tier"], report["replays_exactly"]) == ("real", False)
    assert (report["lost"], report["served_twice"], report["foreign_gone"]) == (0, 0, []), shown
    assert not any(report["leaked"].values()), shown
    assert sum(report["ends"].values()) == JOBS
    assert report["served"], "a run in which nothing is served shows nothing"
    assert set(report["killed"]) == KINDS


def test_the_oracle_sees_a_disk_that_real_processes_left(report: dict[str, Any]) -> None:
    spoiled = report["spoiled"]
    assert not spoiled["ok"]
    assert spoiled["leaked"] == {**report["leaked"], "disks": 1}


def test_the_seed_decides_when_what_is_killed() -> None:
    assert plan(24, 3) == plan(24, 3) != plan(24, 4)
    for seed in range(20):
        assert {which.partition("-")[0] for _, what, which in plan(4, seed) if what == "kill"} == KINDS
