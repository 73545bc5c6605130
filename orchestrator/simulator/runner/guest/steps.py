"""One job's steps: the hooks, each ``run`` in bash, the files by which a step tells the next ones, and what it printed.

The rules are the real runner's: a step that fails skips those after it unless their condition says otherwise; the
job-started hook is a step, so where it fails the job fails; ``GITHUB_ENV``, ``GITHUB_PATH`` and ``GITHUB_OUTPUT`` are
read after each step.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from .context import expand, mapping, plain, secrets_of
from .files import read_pairs
from .masks import Masks
from .version import VERSION

Json = dict[str, Any]
_KILL_AFTER_S = 7.5
"""Between the interrupt of a cancelled step and its end: as long as the real runner waits."""


def moment() -> str:
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1e7):07d}Z"


class Step:
    """One line of the job's step list."""

    def __init__(self, number: int, ident: str, name: str) -> None:
        self.number = number
        self.id = ident
        self.name = name
        self.status = "pending"
        self.conclusion = ""
        self.started = ""
        self.completed = ""
        self.lines: list[tuple[str, str]] = []
        """What it printed, each line with the moment when."""

    def say(self, *lines: str) -> None:
        at = moment()
        self.lines += [(at, line) for line in lines]

    def begin(self) -> None:
        self.status, self.started = "inprogress", moment()

    def end(self, conclusion: str) -> None:
        self.status, self.conclusion, self.completed = "completed", conclusion, moment()
        self.started = self.started or self.completed

    def report(self) -> Json:
        return {
            "external_id": self.id,
            "number": self.number,
            "name": self.name,
            "status": self.status,
            "conclusion": self.conclusion or None,
            "started_at": self.started or None,
            "completed_at": self.completed or None,
        }


class StepRunner:
    """Runs programs for steps, in the job's environment; `cancel` may come from a signal handler."""

    def __init__(self, root: Path, message: Json, settings: Json, masks: Masks) -> None:
        self.message = message
        self.github: Json = plain(message["contextData"]["github"])
        self.secrets = secrets_of(message)
        self.masks = masks
        self.cancelled = False
        self.env: dict[str, str] = {}
        self.paths: list[str] = []
        self.outputs: Json = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._interrupted = False
        self._cancelled_before = False
        self._root = root
        work = root / str(settings.get("WorkFolder") or "_work")
        repo = str(self.github["repository"]).split("/")[-1]
        self.workspace = work / repo / repo
        self.temp = work / "_temp"
        self._settings = settings
        for item in message.get("environmentVariables") or []:
            self.env.update({key: self.expand(value) for key, value in mapping(item).items()})

    def enter(self) -> None:
        """The next step begins: a cancellation from now on is for it."""
        self._cancelled_before = self.cancelled

    def prepare(self) -> None:
        """Make the work folders and the event file."""
        for folder in (self.workspace, self.temp / "_runner_file_commands", self.temp / "_github_workflow"):
            folder.mkdir(parents=True, exist_ok=True)
        (self.temp / "_github_workflow" / "event.json").write_text(json.dumps(self.github.get("event") or {}))

    def expand(self, text: str) -> str:
        secrets = {**self.secrets, "GITHUB_TOKEN": self.secrets.get("github_token", "")}
        contexts = {"github": self.github, "secrets": secrets, "env": self.env, "steps": self.outputs}
        return expand(text, contexts)

    def _environment(self, extra: dict[str, str]) -> dict[str, str]:
        env = {key: value for key, value in os.environ.items() if not key.startswith("ACTIONS_RUNNER_INPUT_")}
        env.update(self.env)
        env.update(extra)
        for key, value in self.github.items():
            if isinstance(value, str):
                env[f"GITHUB_{key.upper()}"] = value
        env.update(
            CI="true",
            GITHUB_ACTIONS="true",
            GITHUB_WORKSPACE=str(self.workspace),
            GITHUB_EVENT_PATH=str(self.temp / "_github_workflow" / "event.json"),
            RUNNER_NAME=str(self._settings["AgentName"]),
            RUNNER_OS="Linux",
            RUNNER_ARCH="X64",
            RUNNER_ENVIRONMENT="self-hosted",
            RUNNER_TEMP=str(self.temp),
            RUNNER_TOOL_CACHE=str(self._root / "_work" / "_tool"),
            RUNNER_WORKSPACE=str(self.workspace.parent),
            RUNNER_VERSION=VERSION,
        )
        env["PATH"] = ":".join([*reversed(self.paths), env.get("PATH", "/usr/local/bin:/usr/bin:/bin")])
        return env

    def script(self, step: Step, spec: Json) -> bool:
        """Run the step's script; True for exit status 0."""
        inputs = mapping(spec["inputs"])
        extra = {key: self.expand(value) for key, value in mapping(spec.get("environment")).items()}
        text = self.expand(inputs["script"])
        # A shell that was asked for by name also fails on an error inside a pipe.
        options = ["--noprofile", "--norc", "-eo", "pipefail"] if inputs.get("shell") == "bash" else ["-e"]
        if inputs.get("shell") not in (None, "bash", "sh"):
            step.say(f"##[error]The simulator's runner has no shell {inputs['shell']!r}")
            return False
        program = ["/bin/sh", "-e"] if inputs.get("shell") == "sh" else ["/bin/bash", *options]
        path = self.temp / f"{step.id}.sh"
        path.write_text(text + "\n")
        step.say(f"##[group]{step.name}", *text.splitlines(), f"shell: {' '.join(program)} {{0}}", "##[endgroup]")
        folder = self.workspace / inputs.get("workingDirectory", ".")
        limit = float(spec.get("timeoutInMinutes") or 0) * 60
        try:
            return self.program(
                step, [*program, str(path)], extra, folder, context=str(spec["contextName"]), limit_s=limit
            )
        finally:
            path.unlink(missing_ok=True)

    def hook(self, step: Step, path: str) -> bool:
        """Run one of the hooks that the machine's owner set; True for exit status 0."""
        if not path.startswith("/") or not path.endswith(".sh") or not os.path.isfile(path):
            step.say(f"##[error]File '{path}' doesn't exist or is not an absolute path of a .sh file")
            return False
        step.say(f"A job hook has been configured by the self-hosted runner administrator: {path}")
        return self.program(step, ["/bin/bash", "-e", path], {}, self.workspace, context=step.id, limit_s=0)

    def program(
        self, step: Step, argv: list[str], extra: dict[str, str], folder: Path, *, context: str, limit_s: float
    ) -> bool:
        files = {
            name: self.temp / "_runner_file_commands" / f"{kind}_{step.id}" for name, kind in _COMMAND_FILES.items()
        }
        for path in files.values():
            path.write_text("")
        env = {**self._environment(extra), **{name: str(path) for name, path in files.items()}}
        status = self._execute(step, argv, env, folder, limit_s)
        self._apply(step, files, context)
        if status:
            step.say(f"##[error]Process completed with exit code {status}.")
        return status == 0

    def _execute(self, step: Step, argv: list[str], env: dict[str, str], folder: Path, limit_s: float) -> int:
        self._interrupted = False
        try:
            self._process = subprocess.Popen(
                argv,
                env=env,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            step.say(f"##[error]{error}")
            return 127
        if self.cancelled and not self._cancelled_before and not self._interrupted:
            # The cancellation came while the program was being started.
            self.interrupt()
        elif limit_s:
            signal.setitimer(signal.ITIMER_REAL, limit_s)
        try:
            assert self._process.stdout is not None
            for line in self._process.stdout:
                self._take_line(step, line.decode("utf-8", "replace").rstrip("\r\n"))
            return self._process.wait()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._process = None

    def _take_line(self, step: Step, line: str) -> None:
        if line.startswith("::add-mask::"):
            self.masks.add(line.removeprefix("::add-mask::"))
            return
        for word in ("error", "warning", "notice"):
            if line.startswith(f"::{word}") and "::" in line[2:]:
                line = f"##[{word}]{line[2:].split('::', 1)[1]}"
        step.say(line)

    def interrupt(self) -> None:
        """Interrupt the running step; a second call ends it.  Safe in a signal handler."""
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL if self._interrupted else signal.SIGINT)
        if not self._interrupted:
            self._interrupted = True
            signal.setitimer(signal.ITIMER_REAL, _KILL_AFTER_S)

    def _apply(self, step: Step, files: dict[str, Path], context: str) -> None:
        """Take over what the step left in its command files."""
        try:
            self.env.update(read_pairs(files["GITHUB_ENV"]))
            self.outputs.setdefault(context, {"outputs": {}})["outputs"].update(read_pairs(files["GITHUB_OUTPUT"]))
        except ValueError as error:
            step.say(f"##[error]Unable to process file command: {error}")
        self.paths += [line for line in files["GITHUB_PATH"].read_text().splitlines() if line]

    def summary(self, step: Step) -> bytes:
        path = self.temp / "_runner_file_commands" / f"step_summary_{step.id}"
        return path.read_bytes() if path.exists() else b""


_COMMAND_FILES = {
    "GITHUB_ENV": "set_env",
    "GITHUB_OUTPUT": "set_output",
    "GITHUB_PATH": "add_path",
    "GITHUB_STEP_SUMMARY": "step_summary",
    "GITHUB_STATE": "save_state",
}
