"""``ironcd demo``: makes the lab, has it run a workflow, waits for proof of destruction, judges, shows, and cleans up."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import httpx

from orchestrator.core.errors import IronCDError, UserError
from orchestrator.surface.attempts import attempts
from orchestrator.surface.cli import show as show_error
from orchestrator.surface.demo import gone, report
from orchestrator.surface.demo.evidence import outside_of
from orchestrator.surface.demo.image import NAME
from orchestrator.surface.demo.judge import Check, Outside, judge_outside, judge_wall, probe_results
from orchestrator.surface.demo.lab import CACHE, Deadline, Lab
from orchestrator.surface.demo.progress import Progress
from orchestrator.surface.demo.report import JobReport, Report
from orchestrator.surface.demo.traps import Traps
from orchestrator.surface.demo.workflow import HOST_SERVICES, POLICY, POLICY_PATH, Places, probes_of, workflow_of
from orchestrator.surface.timeline import milestones_of, timeline

PLACES = Places(allowed="203.0.113.10", attacker="198.51.100.66", resolver="203.0.113.53")
CLASS = {"image": NAME, "vcpus": 1, "memory_mib": 1536, "disk_gib": 6, "lifetime_s": 1800}
GATEWAYS_OWN = 10443
RUN_WITHIN_S = 600.0
FOR_EACH_JOB_S = 180.0


def run_demo(*, jobs: int, output: Path, keep_logs: bool) -> int:
    """The exit status: 0 where everything holds, else 1.  Writes ``output`` and shows all of it."""
    if os.geteuid() != 0:
        raise UserError("the demo needs root", code="needs-root", remedy="Run it as root: it starts virtual machines.")
    logs = output.parent / "demo-logs"
    shutil.rmtree(logs, ignore_errors=True)
    output.unlink(missing_ok=True)
    signal.signal(signal.SIGTERM, _interrupt)
    progress = Progress()
    began = time.monotonic()
    try:
        made = _run(progress, jobs, logs, began)
    except IronCDError as error:
        show_error(error)
        _where_to_look(progress, logs)
        return 1
    except KeyboardInterrupt:
        progress.say("interrupted; everything was taken away", style="yellow")
        return 130
    report.write(made, output)
    report.show(made)
    sys.stdout.write(f"{output} holds the same for programs.\n")
    if made.ok and not keep_logs:
        shutil.rmtree(logs, ignore_errors=True)
    elif not made.ok:
        _where_to_look(progress, logs)
    return 0 if made.ok else 1


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run(progress: Progress, jobs: int, logs: Path, began: float) -> Report:
    with progress.step("The virtual machines' image (a minute or two the first time, then cached)"):
        _ensure_image(progress)
    lab = Lab(f"icd-demo-{secrets.token_hex(3)}", logs=logs.absolute(), classes={"default": CLASS})
    with progress.step("A simulated GitHub and outside, in namespaces of their own"):
        lab.__enter__()
    try:
        with progress.step("IronCD: Redis, control API, worker, agent, gateway"):
            lab.start_stack()
        accelerator = _accelerator(lab)
        if accelerator == "tcg":
            progress.say("No guest starts under hardware KVM here: machines are EMULATED, and many times slower.")
        ports = [port for port in HOST_SERVICES if port != GATEWAYS_OWN]
        with Traps(lab.vm_netns, ports) as traps:
            lab.simulated("PUT", f"repositories/acme/app/files/{POLICY_PATH}", content=POLICY.encode())
            run = lab.simulated(
                "POST", "runs", json={"repository": "app", "workflow": workflow_of(PLACES, jobs=jobs), "event": "push"}
            )
            _wait(progress, lab, run, jobs)
            return _report(lab, run, traps.caught, accelerator, began)
    finally:
        with progress.step("Taking everything away"):
            lab.close()


def _ensure_image(progress: Progress) -> None:
    from orchestrator.surface.demo.image import ensure_image

    ensure_image(CACHE, progress.update)


def _accelerator(lab: Lab) -> str:
    deadline = Deadline(time.monotonic() + 60, "the host's choice of an accelerator")
    while True:
        for host in lab.stack.api("hosts")["hosts"]:
            if host.get("accelerator"):
                return str(host["accelerator"])
        deadline.pause()


def _wait(progress: Progress, lab: Lab, run: dict[str, Any], jobs: int) -> None:
    """Until every job is completed and every runner proved gone."""
    ids = [job["id"] for job in run["jobs"]]
    deadline = Deadline(time.monotonic() + RUN_WITHIN_S + FOR_EACH_JOB_S * jobs, "the jobs did not end in time")
    told: dict[int, str] = {}
    with progress.step(f"{jobs} job(s): boot, sign in, bind the policy, run the steps, destroy"):
        while True:
            found = [_job(lab, job_id) for job_id in ids]
            for job in found:
                _tell(progress, told, job)
            if all(_is_over(job) for job in found):
                return
            deadline.pause(0.5)


def _job(lab: Lab, job_id: int) -> dict[str, Any]:
    """The job with its story, as the admin API tells it; hardly anything where it isn't known yet."""
    try:
        job: dict[str, Any] = lab.stack.api(f"jobs/{job_id}")
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.NOT_FOUND:
            raise
        return {"id": job_id, "name": "", "state": "delivered", "story": [], "made_for_it": [], "reason": ""}
    return job


def _tell(progress: Progress, told: dict[int, str], job: dict[str, Any]) -> None:
    passed = timeline(milestones_of(job))
    now = passed[-1].phase if passed else "on its way"
    if job["state"] == "queued" and job["reason"]:
        now = f"waits: {job['reason']}"
    if told.get(job["id"]) != now:
        told[job["id"]] = now
        progress.say(f"{job.get('name') or job['id']}: {now}")


def _is_over(job: dict[str, Any]) -> bool:
    return job["state"] == "completed" and all(runner["phase"] == "GONE" for runner in job["made_for_it"])


def _report(lab: Lab, run: dict[str, Any], caught: list[str], accelerator: str, began: float) -> Report:
    outside = outside_of(lab, caught)
    jobs = tuple(_job_report(lab, job["id"], outside) for job in run["jobs"])
    left = [str(runner["name"]) for runner in lab.simulated("GET", "state")["runners"]]
    strangers = lab.simulated("GET", "world/sources")["strangers"]
    checks = [
        *judge_outside(outside),
        Check("only the uplink's address was seen outside", not strangers, str(strangers or "nothing else")),
        Check("GitHub has no registration left", not left, ", ".join(left) or "none"),
    ]
    return Report(accelerator, jobs, tuple(checks), time.monotonic() - began)


def _job_report(lab: Lab, job_id: int, outside: Outside) -> JobReport:
    job = _job(lab, job_id)
    runner = next((found for found in job["made_for_it"] if found["id"] == job["runner"]), None)
    record = attempts(lab.stack.api("egress", job=job_id, limit=10_000)["events"])
    log = str(lab.simulated("GET", f"jobs/{job_id}/log"))
    (lab.logs / f"job-{job_id}.log").write_text(log, encoding="utf-8")
    milestones = milestones_of(job)
    checks = [
        Check("it ran on a machine of ours", runner is not None, str(job["runner"] or job["reason"])),
        _bound_first(milestones),
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


def _bound_first(milestones: dict[str, float]) -> Check:
    """The job's policy was in force before its first step was released."""
    bound, released = milestones.get("policy_bound"), milestones.get("steps_released")
    ok = bound is not None and released is not None and bound <= released
    seen = f"{released - bound:.3f} s before" if bound is not None and released is not None else "never"
    return Check("the job's policy was in force before its first step", ok, seen)


def _where_to_look(progress: Progress, logs: Path) -> None:
    if not logs.is_dir():
        return
    progress.say("Logs of every process, the job's own and the consoles are kept:", style="yellow")
    for path in sorted(logs.iterdir()):
        progress.say(f"  {path}")
