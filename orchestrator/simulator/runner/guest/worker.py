"""The worker: one job from its message to its result, in a process of its own as with the real runner."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

from .client import Client, HttpError
from .console import complain, say
from .context import secrets_of
from .files import setup_info
from .later import Later, attempt
from .masks import Masks
from .services import Results, RunService
from .steps import Step, StepRunner
from .version import VERSION

Json = dict[str, Any]
RENEW_S = 60.0
EXIT_CODES = {"succeeded": 100, "failed": 102, "canceled": 103}
"""The real worker's: by it the listener learns the result."""


class Worker:
    def __init__(self, root: Path, settings: Json, message: Json, run_service_url: str) -> None:
        self._root = root
        self._message = message
        endpoint = next(it for it in message["resources"]["endpoints"] if it["name"] == "SystemVssConnection")
        self._token = str(endpoint["authorization"]["parameters"]["AccessToken"])
        self._client = Client(VERSION)
        self._runs = RunService(self._client, run_service_url)
        self._results = Results(self._client, str(endpoint["data"]["ResultsServiceUrl"]), message, self._token)
        self._masks = Masks()
        for secret in [*secrets_of(message).values(), *(str(item["value"]) for item in message.get("mask") or [])]:
            self._masks.add(secret)
        self._run = StepRunner(root, message, settings, self._masks)
        self._settings = settings
        self._steps: list[Step] = []
        self._failed = False
        self._log: list[str] = []
        self._done = threading.Event()
        self._later = Later(complain)

    def run(self) -> int:
        """Run the job and report it; returns the worker's exit status."""
        signal.signal(signal.SIGTERM, self._on_cancel)
        # A handler and not SIG_IGN, which the steps would inherit: they are to be interrupted.
        signal.signal(signal.SIGINT, lambda _number, _frame: None)
        signal.signal(signal.SIGALRM, lambda _number, _frame: self._run.interrupt())
        renewer = threading.Thread(target=self._renew, daemon=True)
        renewer.start()
        try:
            self._all_steps()
        finally:
            self._later.finish()
            self._done.set()
        result = "canceled" if self._run.cancelled else "failed" if self._failed else "succeeded"
        self._finish(result)
        return EXIT_CODES[result]

    def _on_cancel(self, _number: int, _frame: Any) -> None:
        if not self._run.cancelled:
            self._run.cancelled = True
            self._run.interrupt()

    def _renew(self) -> None:
        while not self._done.wait(RENEW_S):
            try:
                self._runs.renew(self._message, self._token)
            except (OSError, HttpError) as error:
                complain(f"Renewing the job's lock failed: {error}")

    def _all_steps(self) -> None:
        specs = list(self._message["steps"])
        started, completed = (
            os.environ.get(f"ACTIONS_RUNNER_HOOK_JOB_{when}", "") for when in ("STARTED", "COMPLETED")
        )
        setup = self._add("Set up job", self._own_id())
        setup.begin()
        self._run.prepare()
        setup.say(*self._setup_lines())
        self._end(setup, "succeeded")
        if started:
            self._hook("Set up runner", started)
        for spec in specs:
            name = self._run.expand(str(spec.get("displayNameToken") or spec["name"]))
            self._one(self._add(name, str(spec["id"])), spec)
        if completed:
            self._hook("Complete runner", completed)
        last = self._add("Complete job", self._own_id())
        last.begin()
        last.say("Cleaning up orphan processes")
        self._end(last, "succeeded")

    def _setup_lines(self) -> list[str]:
        return [
            f"Current runner version: '{VERSION}'",
            f"Runner name: '{self._settings['AgentName']}'",
            f"Runner group name: '{self._settings.get('PoolName', '')}'",
            f"Machine name: '{os.uname().nodename}'",
            *setup_info(self._root),
            "Secret source: Actions",
            "Prepare workflow directory",
            f"Complete job name: {self._message['jobDisplayName']}",
        ]

    def _add(self, name: str, ident: str) -> Step:
        step = Step(len(self._steps) + 1, ident, self._masks.apply(name))
        self._steps.append(step)
        return step

    def _own_id(self) -> str:
        """The id of a step that the workflow doesn't have."""
        number = os.urandom(16).hex()
        return "-".join((number[:8], number[8:12], number[12:16], number[16:20], number[20:]))

    def _hook(self, name: str, path: str) -> None:
        step = self._add(name, self._own_id())
        step.begin()
        self._report()
        good = self._run.hook(step, path)
        self._failed |= not good
        self._end(step, "succeeded" if good else "failed")

    def _one(self, step: Step, spec: Json) -> None:
        self._run.enter()
        if not self._wanted(str(spec.get("condition") or "success()")):
            step.end("skipped")
            return
        step.begin()
        self._report()
        good = self._run.script(step, spec)
        if self._run.cancelled and not good:
            step.say("##[error]The operation was canceled.")
            self._end(step, "canceled")
            return
        if not good and not spec.get("continueOnError"):
            self._failed = True
        self._end(step, "succeeded" if good else "failed")
        if summary := self._run.summary(step):
            self._later.do("summary", lambda: self._results.upload("StepSummary", summary, lines=0, step=step.id))

    def _wanted(self, condition: str) -> bool:
        held = {
            "success()": not self._failed and not self._run.cancelled,
            "failure()": self._failed and not self._run.cancelled,
            "cancelled()": self._run.cancelled,
            "always()": True,
        }
        words = condition.strip().removeprefix("${{").removesuffix("}}").strip()
        return held.get(words, held["success()"])

    def _end(self, step: Step, conclusion: str) -> None:
        step.end(conclusion)
        lines = [f"{at} {self._masks.apply(line)}" for at, line in step.lines]
        self._log += lines
        if os.environ.get("ACTIONS_RUNNER_PRINT_LOG_TO_STDOUT"):
            say("\n".join(lines))
        self._report()
        if lines:
            data = ("\n".join(lines) + "\n").encode()
            self._later.do("log", lambda: self._results.upload("StepLogs", data, lines=len(lines), step=step.id))

    def _report(self) -> None:
        states = [item.report() for item in self._steps]
        self._later.do("step state", lambda: self._results.update_steps(states))

    def _finish(self, result: str) -> None:
        data = ("\n".join(self._log) + "\n").encode()
        attempt("job's log", lambda: self._results.upload("JobLogs", data, lines=len(self._log)), complain)
        steps = [step.report() for step in self._steps]
        wait = threading.Event()
        for pause in (1.0, 2.0, 4.0, 8.0, 0.0):
            try:
                self._runs.complete(self._message, self._token, result, steps, {})
            except HttpError as error:
                # The server ended the job by itself: nothing is left to say.
                if error.status in (401, 404, 409):
                    return
            except OSError as error:
                complain(f"Completing the job failed: {error}")
            else:
                return
            wait.wait(pause)
