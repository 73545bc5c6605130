"""Every process is killed while a real machine boots for a job: the job is served by that very machine all the same."""

from __future__ import annotations

import time

import pytest

from orchestrator.surface.demo import scenario
from orchestrator.surface.demo.lab import Deadline, Lab
from orchestrator.surface.demo.traps import Traps
from orchestrator.surface.up import PROCESSES

pytestmark = [pytest.mark.e2e, pytest.mark.real]


def wait_for_mark(lab: Lab, job_id: int, mark: str) -> None:
    deadline = Deadline(time.monotonic() + 300, f"{mark} was not seen")
    while not any(mark in runner["marks"] for runner in scenario.job_of(lab, job_id)["made_for_it"]):
        deadline.pause()


def test_each_process_is_killed_while_the_machine_boots(lab):
    accelerator = scenario.accelerator_of(lab)
    with Traps(lab.vm_netns, scenario.TRAPPED) as traps:
        (job_id,) = scenario.start_run(lab, jobs=1)
        wait_for_mark(lab, job_id, "domain_started")
        before = lab.stack.pids
        for name in PROCESSES:
            lab.stack.kill(name)
            time.sleep(0.1)
            lab.stack.wait_ready(name)
        after = lab.stack.pids
        assert set(after) == set(PROCESSES)
        assert all(before[name] != after[name] for name in PROCESSES)
        (job,) = scenario.follow(lab, [job_id])
        report = scenario.report_of(lab, [job_id], caught=traps.caught, accelerator=accelerator, took_s=0.0)
    failed = [f"{check.name}: {check.seen}" for check in (*report.jobs[0].checks, *report.checks) if not check.ok]
    assert failed == []
    assert report.ok
    assert [runner["phase"] for runner in job["made_for_it"]] == ["GONE"], "another machine had to be made"
