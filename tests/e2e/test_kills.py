"""Every process is killed while a real machine boots for a job: the job is served by that very machine all the same.

The job is a sandbox's, so it may ping; what comes of that is seen on the same machine.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from orchestrator.surface.demo import scenario
from orchestrator.surface.demo.lab import Deadline, Lab
from orchestrator.surface.demo.report import Report
from orchestrator.surface.demo.traps import Traps
from orchestrator.surface.demo.workflow import ALLOWED, POLICY, Step
from orchestrator.surface.up import PROCESSES
from tests.e2e.conftest import new_lab

pytestmark = [pytest.mark.e2e, pytest.mark.real]

SANDBOX = f"{POLICY}profile: sandbox\n"
PATTERN = "5ec7e7"
"""What the pings carry, again and again; in hexadecimal."""
PINGS: list[Step] = [
    {"name": "Ping the allowed host", "run": f"ping -c 2 -W 20 -s 900 -p {PATTERN} {ALLOWED}"},
    {"name": "Ping the attacker", "run": f"! ping -c 1 -W 5 -p {PATTERN} {scenario.PLACES.attacker}"},
]


@dataclass
class Survived:
    lab: Lab
    report: Report
    job: dict[str, Any]
    before: dict[str, int]
    after: dict[str, int]


@pytest.fixture(scope="module")
def survived(image: None, request: pytest.FixtureRequest) -> Iterator[Survived]:
    with new_lab(request.config, "kills", start="cold") as lab:
        lab.start_stack()
        accelerator = scenario.accelerator_of(lab)
        with Traps(lab.vm_netns, scenario.TRAPPED) as traps:
            (job_id,) = scenario.start_run(lab, jobs=1, policy=SANDBOX, more=PINGS)
            wait_for_mark(lab, job_id, "domain_started")
            before = lab.stack.pids
            for name in PROCESSES:
                lab.stack.kill(name)
                time.sleep(0.1)
                lab.stack.wait_ready(name)
            after = lab.stack.pids
            (job,) = scenario.follow(lab, [job_id])
            report = scenario.report_of(
                lab, [job_id], caught=traps.caught, accelerator=accelerator, took_s=0.0, may_ping=True
            )
        yield Survived(lab, report, job, before, after)


def wait_for_mark(lab: Lab, job_id: int, mark: str) -> None:
    deadline = Deadline(time.monotonic() + 300, f"{mark} was not seen")
    while not any(mark in runner["marks"] for runner in scenario.job_of(lab, job_id)["made_for_it"]):
        deadline.pause()


def test_each_process_is_killed_while_the_machine_boots(survived):
    assert set(survived.after) == set(PROCESSES)
    assert all(survived.before[name] != survived.after[name] for name in PROCESSES)
    (job,) = survived.report.jobs
    failed = [f"{check.name}: {check.seen}" for check in (*job.checks, *survived.report.checks) if not check.ok]
    assert failed == []
    assert survived.report.ok
    assert job.conclusion == "success"
    assert [runner["phase"] for runner in survived.job["made_for_it"]] == ["GONE"], "another machine had to be made"


def test_a_sandbox_pings_what_its_policy_allows_and_its_bytes_stay_here(survived):
    lab, (job,) = survived.lab, survived.report.jobs
    log = str(lab.simulated("GET", f"jobs/{job.id}/log"))
    assert "908 bytes from" in log, "with the size that was sent"
    pinged = [item for item in lab.received() if item["proto"] == "icmp"]
    assert {item["address"] for item in pinged} == {scenario.PLACES.allowed}, "and nothing at the attacker"
    raw = [base64.b64decode(item["raw_base64"]) for item in pinged]
    assert {len(packet) for packet in raw} == {64}
    assert not any(bytes.fromhex(PATTERN) in packet for packet in raw)
    judged = {(attempt.name, attempt.verdict) for attempt in job.egress if attempt.protocol == "icmp"}
    assert judged == {(ALLOWED, "allowed"), (scenario.PLACES.attacker, "blocked")}
