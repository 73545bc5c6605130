"""The product's own processes under faults and ``kill -9``, judged as the other tier is: one small run of `make chaos REAL=1`.

When things happen is decided by a seed; what comes of it depends on the machine too, so a failure may need several
runs of its seed to be seen again.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.real_city import may_run
from tests.chaos.real_run import plan

ROOT = Path(__file__).resolve().parents[2]
JOBS, SEED = 12, 2
KINDS = {"redis", "control", "worker", "agent", "gateway"}

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(may_run()), reason=may_run() or "it can run"),
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server isn't installed (`make setup`)"),
]


def play(*more: str, jobs: int = JOBS) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--real", "--jobs", str(jobs), "--seed", str(SEED), *more],
        cwd=ROOT, capture_output=True, timeout=360, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr.decode()[-3000:]
    return done.returncode, json.loads(done.stdout)


def test_processes_that_die_lose_no_job_and_leave_nothing() -> None:
    status, report = play()
    shown = f"make chaos REAL=1 JOBS={JOBS} SEED={SEED}:\n" + "\n".join(report["wrong"][:10])
    assert (status, report["ok"], report["wrong"]) == (0, True, []), shown
    assert (report["tier"], report["replays_exactly"]) == ("real", False)
    assert (report["lost"], report["served_twice"], report["foreign_gone"]) == (0, 0, []), shown
    assert not any(report["leaked"].values()), shown
    assert sum(report["ends"].values()) == JOBS
    assert report["served"] >= JOBS / 3, "a run in which little is served shows little"
    assert set(report["killed"]) == KINDS


def test_the_oracle_sees_a_disk_that_real_processes_left() -> None:
    status, report = play("--sabotage", "leave-a-disk", jobs=1)
    assert (status, report["ok"]) == (1, False)
    assert report["leaked"]["disks"] == 1


def test_the_seed_decides_when_what_is_killed() -> None:
    assert plan(24, 3) == plan(24, 3) != plan(24, 4)
    for seed in range(20):
        assert {which.partition("-")[0] for _, what, which in plan(4, seed) if what == "kill"} == KINDS
