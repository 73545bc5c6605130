"""The run itself, in a lab that is open: start a workflow, follow it to the proof, and judge it.  For demo and tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx

from orchestrator.surface.attempts import attempts
from orchestrator.surface.demo import gone, report
from orchestrator.surface.demo.evidence import outside_of
from orchestrator.surface.demo.image import NAME
from orchestrator.surface.demo.judge import Check, Outside, judge_outside, judge_wall, probe_results
from orchestrator.surface.demo.lab import Deadline, Lab
from orchestrator.surface.demo.report import JobReport, Report
from orchestrator.surface.demo.workflow import HOST_SERVICES, POLICY, POLICY_PATH, Places, Step, probes_of, workflow_of
from orchestrator.surface.timeline import milestones_of, timeline

PLACES = Places(allowed="203.0.113.10", attacker="198.51.100.66", resolver="203.0.113.53")
CLASS: dict[str, object] = {"image": NAME, "vcpus": 1, "memory_mib": 1536, "disk_gib": 6, "lifetime_s": 1800}
GATEWAYS_OWN = 10443
TRAPPED = tuple(port for port in HOST_SERVICES if port != GATEWAYS_OWN)
"""Ports that a trap can be set behind; on the gateway's own the gateway listens."""
RUN_WITHIN_S = 600.0
TEMPLATE_WITHIN_S = 600.0
FOR_EACH_JOB_S = 180.0

Job = dict[str, Any]


def accelerator_of(lab: Lab) -> str:
    """``kvm`` or ``tcg``, once the agent has found out."""
    deadline = Deadline(time.monotonic() + 60, "the host's choice of an accelerator")
    while True:
        for host in lab.stack.api("hosts")["hosts"]:
            if host.get("accelerator"):
                return str(host["accelerator"])
        deadline.pause()


def await_template(lab: Lab, each: Callable[[str], None] = lambda _state: None) -> str:
    """Wait until the host can start a clone, or can't make a template; why not, empty where it can."""
    deadline = Deadline(time.monotonic() + TEMPLATE_WITHIN_S, "the template wasn't made")
    while True:
        found = [host.get("templates", []) for host in lab.stack.api("hosts")["hosts"]]
        for template in (one for templates in found for one in templates if one["classes"]):
            if template["state"] != "building":
                return str(template.get("reason", "")) if template["state"] == "failed" else ""
            each(template.get("reason") or "one machine boots as far as the gate")
        deadline.pause()


def start_run(lab: Lab, *, jobs: int, policy: str = POLICY, more: Sequence[Step] = ()) -> list[int]:
    """Put the policy into the repository and start the workflow, with ``more`` steps at its end; the ids of its jobs.

    The worker's first look, with a Redis that is empty, asks GitHub for queued jobs: a run that starts before it is over
    may be found that way, and not by its webhook.
    """
    deadline = Deadline(time.monotonic() + 60, "the worker's first look")
    while not all(host.get("generation", 0) > 0 for host in lab.stack.api("hosts")["hosts"]):
        deadline.pause(0.1)
    lab.simulated("PUT", f"repositories/acme/app/files/{POLICY_PATH}", content=policy.encode())
    asked = {"repository": "app", "workflow": workflow_of(PLACES, jobs=jobs, more=more), "event": "push"}
    return [job["id"] for job in lab.simulated("POST", "runs", json=asked)["jobs"]]


def follow(lab: Lab, jobs: Sequence[int], each: Callable[[Job], None] = lambda _job: None) -> list[Job]:
    """Wait until every job is completed and every runner proved gone; ``each`` is called with each job, again and again."""
    deadline = Deadline(time.monotonic() + RUN_WITHIN_S + FOR_EACH_JOB_S * len(jobs), "the jobs did not end in time")
    while True:
        found = [job_of(lab, job_id) for job_id in jobs]
        for job in found:
            each(job)
        lab.keep_consoles()
        if all(is_over(job) for job in found):
            return found
        deadline.pause(0.5)


def job_of(lab: Lab, job_id: int) -> Job:
    """The job with its story, as the admin API tells it; hardly anything where it isn't known yet."""
    try:
        job: Job = lab.stack.api(f"jobs/{job_id}")
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.NOT_FOUND:
            raise
        return {"id": job_id, "name": "", "state": "delivered", "story": [], "made_for_it": [], "reason": ""}
    return job


def is_over(job: Job) -> bool:
    return job["state"] == "completed" and all(runner["phase"] == "GONE" for runner in job["made_for_it"])


def state_of(job: Job) -> str:
    """Where it is, in words."""
    if job["state"] == "queued" and job["reason"]:
        return f"waits: {job['reason']}"
    passed = timeline(milestones_of(job))
    return passed[-1].phase if passed else "on its way"


def report_of(
    lab: Lab, jobs: Sequence[int], *, caught: list[str], accelerator: str, took_s: float, may_ping: bool = False
) -> Report:
    """Judge a run that is over.  ``caught``: what the traps caught.  ``may_ping``: the jobs were a sandbox's."""
    outside = outside_of(lab, caught, may_ping=may_ping)
    left = [str(runner["name"]) for runner in lab.simulated("GET", "state")["runners"]]
    strangers = lab.simulated("GET", "world/sources")["strangers"]
    checks = [
        *judge_outside(outside),
        Check("only the uplink's address was seen outside", not strangers, str(strangers or "nothing else")),
        Check("GitHub has no registration left", not left, ", ".join(left) or "none"),
    ]
    return Report(accelerator, tuple(_job_report(lab, job_id, outside) for job_id in jobs), tuple(checks), took_s)


def _job_report(lab: Lab, job_id: int, outside: Outside) -> JobReport:
    job = job_of(lab, job_id)
    runner = next((found for found in job["made_for_it"] if found["id"] == job["runner"]), None)
    record = attempts(_events(lab, job_id))
    log = str(lab.simulated("GET", f"jobs/{job_id}/log"))
    (lab.logs / f"job-{job_id}.log").write_text(log, encoding="utf-8")
    milestones = milestones_of(job)
    checks = [
        Check("it ran on a machine of ours", runner is not None, str(job["runner"] or job["reason"])),
        bound_first(milestones),
        *judge_wall(probes_of(PLACES), probe_results(log), outside, record),
    ]
    if runner is not None:
        checks += gone.look(runner["id"], lab.stack.host)
    found = (runner or {}).get("proof") or {}
    return JobReport(
        id=job_id,
        name=str(job["name"]),
        conclusion=str(job.get("conclusion", "")),
        runner=str(job["runner"]),
        timeline=tuple(timeline(milestones)),
        egress=tuple(record),
        proof={part: found.get(part) is True for part in report.PROOF_PARTS},
        checks=tuple(checks),
    )


def _events(lab: Lab, job_id: int) -> list[dict[str, Any]]:
    """The job's events, once the host has shipped all that its gateway has written."""
    deadline = Deadline(time.monotonic() + 30, "the ledger was not shipped")
    while True:
        events: list[dict[str, Any]] = lab.stack.api("egress", job=job_id, limit=10_000)["events"]
        open_ones = [attempt for attempt in attempts(events) if attempt.open]
        if events and not open_ones:
            return events
        deadline.pause()


def bound_first(milestones: dict[str, float]) -> Check:
    """The job's policy was in force before its first step was released."""
    bound, released = milestones.get("policy_bound"), milestones.get("steps_released")
    ok = bound is not None and released is not None and bound <= released
    seen = f"{released - bound:.3f} s before" if bound is not None and released is not None else "never"
    return Check("the job's policy was in force before its first step", ok, seen)
