"""Whole systems under random faults and deaths, one a seed: no job lost, none served twice, nothing left behind.

Ten seeds are run in each `make test`, and beside them those of `seeds.txt`, which failed once, as long as they are of this
harness (`tests.chaos.run.HARNESS`); `make chaos CROWD=200 SEED=n` runs any.  All are played by one process that forks one
for each, since a run changes what time is.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.chaos.run import HARNESS

ROOT = Path(__file__).resolve().parents[2]
KEPT = Path(__file__).with_name("seeds.txt")
TEN = tuple(range(101, 111))
JOBS = 30
AT_ONCE = 2
WITHIN_S = 600
SABOTAGES = {
    "lose-a-job": "lost:",
    "serve-twice": "served_twice",
    "leave-a-disk": "left: disks",
    "leave-a-domain": "left: domains",
    "leave-a-seed": "left: seeds",
    "leave-a-tap": "left: taps",
    "leave-a-chain": "left: chains",
    "leave-a-record": "left: records",
    "leave-a-registration": "left: runners",
    "leave-a-key": "left: redis_keys .*of-nobody",
    "leave-a-delivery": "left: deliveries",
    "touch-a-stranger": "their-runner",
    "exceed-a-class": "class ironcd has 2 machines",
    "exceed-an-organisation": "organisation .* has 2 machines",
    "exceed-a-repository": "repository .* has 2 machines",
    "use-a-closed-host": "was placed on .*, which was closed",
    "waiting-with-a-credential": "waits and has a credential",
    "waiting-with-a-link": "waits and has a link",
    "waiting-with-rules": "waits and has rules",
    "wait-without-a-reason": "nobody knows for what",
    "drop-a-reason": "its story has no reason",
    "run-a-deployment-again": "it deploys",
    "run-a-cancelled-job-again": "a person had ended it",
    "run-a-good-job-again": "its machine wasn't lost",
}
"""What is done to a system at rest, and the word by which the judge tells of it."""
PLANTED = {
    "tell-no-waits": ("20:101", "its story has no reason"),
    "first-come-first-served": ("30:104", "was starved"),
}
"""What is wrong with the product from the beginning on, in a run of its own each."""
FOUND_NOTHING = 3
"""Kinds of which none may have found anything to befall: what holds for a moment depends on all that went before."""
SABOTAGED = "6:3"

Report = dict[str, Any]


def chaos(module: str, *words: str, hashes: str = "0") -> bytes:
    """Its standard output.  ``hashes``: what orders sets in the process that starts it; the runs themselves have their own."""
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": hashes}, capture_output=True, timeout=WITHIN_S, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr.decode()[-3000:]
    return done.stdout


class Kept(NamedTuple):
    harness: int
    jobs: int
    seed: int
    why: str


def kept() -> list[Kept]:
    """The lines of `seeds.txt`."""
    lines = (line.partition("#") for line in KEPT.read_text().splitlines() if line and line[0] != "#")
    return [Kept(*map(int, numbers.split()), why) for numbers, _, why in lines]


@pytest.fixture(scope="module")
def played() -> list[Any]:
    """Reports of the runs, of those of a product with a fault planted, and of the judge after each sabotage."""
    runs = [f"{JOBS}:{seed}" for seed in TEN] + [f"{one.jobs}:{one.seed}" for one in kept() if one.harness == HARNESS]
    planted = [f"{where}:{fault}" for fault, (where, _) in PLANTED.items()]
    words = ["--at-once", str(AT_ONCE), *runs, *planted, f"{SABOTAGED}:{','.join(SABOTAGES)}"]
    return [json.loads(line) for line in chaos("tests.chaos.many", *words).splitlines()]


@pytest.fixture
def reports(played) -> list[Report]:
    return played[: -1 - len(PLANTED)]


def wrong(report: dict[str, Any]) -> str:
    return f"make chaos CROWD={report['jobs']} SEED={report['seed']} shows it again:\n" + "\n".join(
        report["wrong"][:10]
    )


def test_each_job_was_served_once_or_ended_by_a_declared_rule(reports) -> None:
    for report in reports:
        assert (report["lost"], report["served_twice"]) == (0, 0), wrong(report)
        assert sum(report["ends"].values()) == report["jobs"] + report["run_again"], wrong(report)
    served, jobs = (sum(report[key] for report in reports) for key in ("served", "jobs"))
    assert served >= jobs / 2, "runs in which little is served show little"


def test_nothing_is_left_and_nobody_elses_was_touched(reports) -> None:
    for report in reports:
        assert not any(report["leaked"].values()), wrong(report)
        assert report["foreign_gone"] == [], wrong(report)


def test_nobody_broke_and_no_job_waited_without_a_reason(reports) -> None:
    for report in reports:
        assert report["wrong"] == [], wrong(report)
        assert report["ok"]


def test_no_quiet_repository_waited_behind_a_flood(reports) -> None:
    """And there was something to judge: those with few overtook older jobs of those with many."""
    for report in reports:
        assert report["starved"] == 0, wrong(report)
    assert sum(report["overtook"] for report in reports) >= len(TEN)


def test_the_trouble_was_real(reports) -> None:
    """Every seed has every kind of fault in store, over the ten they were played, and processes died often."""
    from tests.chaos.trouble import KINDS

    seen = {kind for report in reports for kind in report["faults"]}
    missed = KINDS - seen
    assert len(missed) <= FOUND_NOTHING, missed
    assert sum(report["kills"] for report in reports) >= 10 * len(TEN)


def test_machines_were_started_in_every_way_and_jobs_ended_by_each_kind_of_rule(reports) -> None:
    for way in ("clone", "cold", "warm"):
        assert sum(report["starts"].get(way, 0) for report in reports) >= len(TEN), way
    for end in ("ended_by_user", "infrastructure", "elsewhere"):
        assert any(report["ends"].get(end) for report in reports), end


def test_a_seed_is_played_again_exactly(reports) -> None:
    """In a process of its own, which orders sets otherwise, as in one forked from a process that has played none."""
    again = json.loads(chaos("tests.chaos", "--crowd", str(JOBS), "--seed", str(TEN[0]), hashes="7"))["tiers"]["crowd"]
    assert again == reports[0]
    assert len({report["digest"] for report in reports}) == len(reports)


@pytest.mark.parametrize(("number", "sabotage"), list(enumerate(SABOTAGES)))
def test_the_judge_sees_what_is_wrong(played, number: int, sabotage: str) -> None:
    report = played[-1][number]
    assert not report["ok"]
    assert re.search(SABOTAGES[sabotage], json.dumps([report["wrong"], report["foreign_gone"]])), report["wrong"]


@pytest.mark.parametrize(("number", "fault"), list(enumerate(PLANTED)))
def test_the_judge_sees_a_fault_of_the_products_own(played, number: int, fault: str) -> None:
    report = played[-1 - len(PLANTED) + number]
    assert not report["ok"]
    assert re.search(PLANTED[fault][1], json.dumps(report["wrong"])), report["wrong"]


def test_each_kept_seed_says_what_holds_its_fault_now() -> None:
    """A harness that has changed plays other histories: the fault that a seed showed is held by a test of its own."""
    for one in kept():
        if one.harness != HARNESS:
            test = re.search(r"(tests/\S+\.py)::(\w+)", one.why)
            assert test is not None, f"seed {one.seed}: name the test"
            assert f"def {test[2]}(" in (ROOT / test[1]).read_text(), f"seed {one.seed}: there is no {test[0]}"
