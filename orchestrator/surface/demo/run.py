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

from orchestrator.core.errors import IronCDError, UserError
from orchestrator.surface.cli import show as show_error
from orchestrator.surface.demo import report, scenario
from orchestrator.surface.demo.image import ensure_image
from orchestrator.surface.demo.lab import CACHE, Lab, clear_dead
from orchestrator.surface.demo.progress import Progress
from orchestrator.surface.demo.report import Report
from orchestrator.surface.demo.traps import Traps
from orchestrator.system import log


def run_demo(*, jobs: int, output: Path, keep_logs: bool, cold: bool = False) -> int:
    """The exit status: 0 where everything holds, else 1.  Writes ``output`` and shows all of it."""
    if os.geteuid() != 0:
        raise UserError("the demo needs root", code="needs-root", remedy="Run it as root: it starts virtual machines.")
    log.configure("demo", level="error", console=True)
    logs = (output.parent / "demo-logs").absolute()
    shutil.rmtree(logs, ignore_errors=True)
    output.unlink(missing_ok=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    progress = Progress()
    try:
        made = _run(progress, jobs, logs, cold=cold)
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
    """Once: a person who presses Ctrl-C again must not stop what takes everything away."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _run(progress: Progress, jobs: int, logs: Path, *, cold: bool) -> Report:
    began, start = time.monotonic(), "cold" if cold else "clone"
    for name in clear_dead():
        progress.say(f"took away what {name} had left, which was killed")
    with progress.step("The virtual machines' image (some minutes the first time, then cached)"):
        ensure_image(CACHE, progress.update)
    lab = Lab(f"icd-demo-{secrets.token_hex(3)}", logs=logs, classes={"default": scenario.CLASS | {"start": start}})
    try:
        with progress.step("A simulated GitHub and outside, in namespaces of their own"):
            lab.open()
        with progress.step("IronCD: Redis, control API, worker, agent, gateway"):
            lab.start_stack()
        accelerator = scenario.accelerator_of(lab)
        if accelerator == "tcg":
            progress.say("No guest starts under hardware KVM here: machines are EMULATED, and many times slower.")
        if not cold:
            with progress.step(
                "A template that machines are cloned from (some seconds more the first time, then kept)"
            ):
                why_not = scenario.await_template(lab, progress.update)
            if why_not:
                progress.say(f"There is no template, so machines boot cold: {why_not}", style="yellow")
        with Traps(lab.vm_netns, scenario.TRAPPED) as traps:
            with progress.step(f"{jobs} job(s): start, sign in, bind the policy, run the steps, destroy"):
                ids = _follow(progress, lab, jobs)
            with progress.step("Looking at what came of it"):
                took_s = time.monotonic() - began
                return scenario.report_of(lab, ids, caught=traps.caught, accelerator=accelerator, took_s=took_s)
    finally:
        with progress.step("Taking everything away"):
            lab.close()


def _follow(progress: Progress, lab: Lab, jobs: int) -> list[int]:
    """Run the workflow to its end, telling each step of each job once; the ids of its jobs."""
    told: dict[int, str] = {}

    def tell(job: scenario.Job) -> None:
        now = scenario.state_of(job)
        if told.get(job["id"]) != now:
            told[job["id"]] = now
            progress.say(f"{job.get('name') or job['id']}: {now}")

    ids = scenario.start_run(lab, jobs=jobs)
    scenario.follow(lab, ids, tell)
    return ids


def _where_to_look(progress: Progress, logs: Path) -> None:
    if not logs.is_dir():
        return
    progress.say("Logs of every process, of the jobs and of the machines' consoles are kept:", style="yellow")
    for path in sorted(logs.iterdir()):
        progress.say(f"  {path}")
