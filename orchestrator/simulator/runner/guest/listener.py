"""The listener: from a JIT configuration to the end of one job, with the real runner's words and exit statuses.

0: the job ran, SIGTERM came, or the server doesn't know this runner any more.  1: a bad configuration, or the
registration was refused.  2: something that a second start may mend.  3 and 4: the server wants a newer runner.
5: another session exists.  7: the version is too old to be let in (only where the environment asks for it).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from .client import Client, HttpError
from .console import complain, say, stamp
from .files import BadBlob, forget, load, read_environment, unpack
from .services import Broker, Identity, InvalidClient, RunService
from .version import VERSION

Json = dict[str, Any]
SUCCESS, TERMINATED, RETRYABLE, UPDATING, RUN_ONCE_UPDATING, CONFLICT, DEPRECATED = 0, 1, 2, 3, 4, 5, 7
CONFLICT_S = 240.0
CONFLICT_PAUSE_S = 30.0
RETRY_PAUSE_S = 15.0
_JIT = "ACTIONS_RUNNER_INPUT_JITCONFIG"
_RESULTS = {100: "Succeeded", 102: "Failed", 103: "Canceled"}


class Stop(Exception):
    """Ends the listener with ``status``."""

    def __init__(self, status: int, why: str = "") -> None:
        super().__init__(why)
        self.status = status
        self.why = why


def main(argv: list[str], root: Path) -> int:
    """The command line of ``Runner.Listener``."""
    command = argv[0] if argv else ""
    if command == "--version":
        say(VERSION)
        return SUCCESS
    if command == "warmup":
        from .warmup import warm_up

        warm_up()
        say("Warmup")
        return SUCCESS
    if command != "run":
        say("Usage: Runner.Listener run [--jitconfig CONFIG] | warmup | --version")
        return TERMINATED
    read_environment(root)
    encoded = os.environ.pop(_JIT, "")
    if "--jitconfig" in argv[:-1]:
        encoded = argv[argv.index("--jitconfig") + 1]
    try:
        if encoded:
            unpack(encoded, root)
        return Listener(root).run()
    except BadBlob as error:
        say(f"An error occurred: the JIT configuration is not valid ({error})")
        return TERMINATED
    except Stop as stop:
        if stop.why:
            say(stop.why)
        return stop.status


class Listener:
    def __init__(self, root: Path) -> None:
        self._root = root
        self._settings, credentials, key = load(root)
        self._client = Client(VERSION)
        self._identity = Identity(self._client, credentials, key)
        self._broker = Broker(self._client, self._identity, self._settings)
        self._worker = 0
        self._stopping = False

    def run(self) -> int:
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        self._connect()
        say("\n√ Connected to GitHub\n")
        say(f"Current runner version: '{VERSION}'")
        stamp("Listening for Jobs")
        try:
            return self._listen()
        except KeyboardInterrupt:
            say("Exiting...")
            return SUCCESS
        finally:
            self._disconnect()

    def _on_signal(self, _number: int, _frame: Any) -> None:
        self._stopping = True
        if self._worker:
            # The job is cancelled first; the listener ends when its worker has.
            _signal(self._worker, signal.SIGTERM)
            return
        raise KeyboardInterrupt

    def _connect(self) -> None:
        uname = os.uname()
        owner = f"{uname.nodename} (PID: {os.getpid()})"
        given_up = time.monotonic() + CONFLICT_S
        while True:
            try:
                self._broker.open(owner, f"{uname.sysname} {uname.release}")
            except InvalidClient as error:
                raise Stop(
                    TERMINATED,
                    f"Failed to create a session. The runner registration has been deleted from the server, please re-configure. {error}",
                ) from error
            except KeyboardInterrupt:
                raise Stop(SUCCESS, "Exiting...") from None
            except HttpError as error:
                self._judge_refusal(error, given_up)
            except OSError as error:
                stamp(f"Runner connect error: {error}. Retrying until reconnected.")
                self._pause(CONFLICT_PAUSE_S)
            else:
                return

    def _judge_refusal(self, error: HttpError, given_up: float) -> None:
        kind = error.content.get("errorKind", "")
        if kind == "RunnerVersionTooOld":
            wanted = os.environ.get("ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE") == "1"
            raise Stop(DEPRECATED if wanted else TERMINATED, str(error.content.get("errorMessage", "")))
        if error.status in (401, 404):
            raise Stop(TERMINATED, "Failed to create a session. The runner registration was not found.")
        if error.status == 409:
            if time.monotonic() > given_up:
                raise Stop(CONFLICT, "A session for this runner already exists.")
            stamp("A session for this runner already exists.")
        elif error.status < 500:
            raise Stop(RETRYABLE, f"An error occurred: {error}")
        self._pause(CONFLICT_PAUSE_S)

    @staticmethod
    def _pause(seconds: float) -> None:
        try:
            time.sleep(seconds)
        except KeyboardInterrupt:
            raise Stop(SUCCESS, "Exiting...") from None

    def _disconnect(self) -> None:
        try:
            self._broker.close()
        except (OSError, HttpError, InvalidClient):
            # An ephemeral runner is gone on the server once its job has ended.
            return

    def _listen(self) -> int:
        errors = 0
        while True:
            try:
                message = self._broker.message(busy=False)
                errors = 0
            except InvalidClient:
                return _gone()
            except HttpError as error:
                if error.status in (401, 404):
                    return _gone()
                errors += 1
            except OSError:
                errors += 1
            if errors > 10:
                return RETRYABLE
            if errors:
                self._pause(RETRY_PAUSE_S)
                continue
            if message is not None and (status := self._take(message)) is not None:
                return status

    def _take(self, message: Json) -> int | None:
        """Act on ``message``; the exit status, where it was the last."""
        kind = message["messageType"]
        if kind in ("AgentRefresh", "RunnerRefresh"):
            if self._settings.get("DisableUpdate"):
                stamp("An update is wanted, and updates are disabled.")
                return None
            return RUN_ONCE_UPDATING if self._settings.get("Ephemeral") else UPDATING
        if kind != "RunnerJobRequest":
            return None
        request: Json = json.loads(message["body"])
        try:
            if request.get("should_acknowledge"):
                self._broker.acknowledge(request["runner_request_id"], busy=False)
            service = RunService(self._client, request["run_service_url"])
            job = service.acquire(request, self._identity.token())
        except HttpError as error:
            if error.status not in (404, 409, 422):
                raise Stop(RETRYABLE, f"An error occurred: {error}") from error
            stamp(f"Skipping message Job. Job message not found '{request['runner_request_id']}'.")
            return None
        return self._work(job, request["run_service_url"])

    def _work(self, job: Json, url: str) -> int:
        name = job["jobDisplayName"]
        stamp(f"Running job: {name}")
        self._worker = pid = _fork(self._root, self._settings, job, url)
        watcher = threading.Thread(target=self._watch, args=(job["jobId"], pid), daemon=True)
        watcher.start()
        _pid, status = os.waitpid(pid, 0)
        self._worker = 0
        result = _RESULTS.get(os.waitstatus_to_exitcode(status), "Failed")
        stamp(f"Job {name} completed with result: {result}")
        if not self._stopping:
            forget(self._root)
        return SUCCESS

    def _watch(self, job_id: str, pid: int) -> None:
        """Listen for a cancellation while the job runs."""
        client = Client(VERSION)
        while self._worker == pid:
            try:
                message = self._broker.on(client).message(busy=True)
            except (HttpError, InvalidClient):
                return
            except OSError:
                time.sleep(1.0)
                continue
            if message is None or message["messageType"] != "JobCancellation":
                continue
            if json.loads(message["body"]).get("jobId") == job_id and self._worker == pid:
                _signal(pid, signal.SIGTERM)


def _gone() -> int:
    say("The runner no longer exists on the server")
    return SUCCESS


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _fork(root: Path, settings: Json, job: Json, url: str) -> int:
    """Start the worker as a process of its own, called as the real one is; returns its pid."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 102
    try:
        Path("/proc/self/comm").write_text("Runner.Worker")
        from .worker import Worker

        status = Worker(root, settings, job, url).run()
    except BaseException as error:  # noqa: BLE001 - a worker that fell still has to end as a process
        complain(f"Worker failed: {type(error).__name__}: {error}")
    finally:
        sys.stdout.flush()
        os._exit(status)
