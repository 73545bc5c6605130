"""Children that are started again when they end, and stopped in order: what `ironcd up`, the demo and the tests run on.

Every process of IronCD is crash-only, so the supervisor knows no state of theirs: a child that ends is started again after
a pause that doubles up to ten seconds and falls back once the child has lived for half a minute.  A child dies with
its supervisor (the kernel sees to that: ``setpriv --pdeathsig``), so nothing outlives a supervisor that was killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Self

import msgspec
import structlog

from orchestrator.core.errors import OperationalError
from orchestrator.system.process import environment

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
LIVED_S = 30.0

_log = structlog.get_logger()


class Program(msgspec.Struct, frozen=True):
    """What to run under which name.  ``ready`` answers whether it serves; it may raise, which means no."""

    name: str
    argv: tuple[str, ...]
    ready: Callable[[], bool]
    env: Mapping[str, str] = {}
    ready_within_s: float = 30.0
    stop_within_s: float = 10.0


class Child:
    """One program kept alive by a thread of its own (the kernel ties a child's death to the thread that made it)."""

    def __init__(self, program: Program, log_dir: Path | None) -> None:
        self.program = program
        self.log_file = log_dir / f"{program.name}.log" if log_dir is not None else None
        self.starts = 0
        self.last_status: int | None = None
        self.last_answer = ""
        """Why it was last found not ready."""
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._keep_alive, name=f"keep-{program.name}", daemon=True)

    @property
    def pid(self) -> int | None:
        """Of the running process; None between two lives."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        self._thread.start()

    def signal(self, number: int) -> None:
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                self._process.send_signal(number)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL to what still runs after ``stop_within_s``.  Returns when the process is gone."""
        self._stopping.set()
        self.signal(signal.SIGTERM)
        self._thread.join(self.program.stop_within_s)
        if self._thread.is_alive():
            _log.warning("killed a process that did not stop", name=self.program.name)
            self.signal(signal.SIGKILL)
            self._thread.join(5)

    def is_ready(self) -> bool:
        if self.pid is None:
            return False
        try:
            return self.program.ready()
        except Exception as error:  # noqa: BLE001 - a readiness check asks over sockets that may not be there yet
            self.last_answer = f"{type(error).__name__}: {error}"
            return False

    def tail(self, lines: int = 15) -> str:
        """The end of the child's log."""
        if self.log_file is None or not self.log_file.exists():
            return ""
        return "\n".join(self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def _keep_alive(self) -> None:
        pause = FIRST_PAUSE_S
        while not self._stopping.is_set():
            began = time.monotonic()
            self._live_once()
            if time.monotonic() - began > LIVED_S:
                pause = FIRST_PAUSE_S
            if not self._stopping.is_set():
                _log.warning("process ended", name=self.program.name, status=self.last_status, again_in_s=pause)
            self._stopping.wait(pause)
            pause = min(pause * 2, LONGEST_PAUSE_S)

    def _live_once(self) -> None:
        log = self._open_log()
        try:
            with self._lock:
                if self._stopping.is_set():
                    return
                self._process = subprocess.Popen(
                    ["setpriv", "--pdeathsig", "TERM", "--", *self.program.argv],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment(self.program.env),
                    start_new_session=True,
                )
            self.starts += 1
            self.last_status = self._process.wait()
        except OSError as error:
            self.last_status = 127
            _log.error("process could not be started", name=self.program.name, error=error.strerror)
        finally:
            if log is not None:
                log.close()

    def _open_log(self) -> IO[bytes] | None:
        if self.log_file is None:
            return None
        descriptor = os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        return os.fdopen(descriptor, "ab")


class Supervisor:
    """Programs started in order, each once the one before it serves, and stopped in the opposite order."""

    def __init__(self, programs: Sequence[Program], *, log_dir: Path | None = None) -> None:
        self.children = {program.name: Child(program, log_dir) for program in programs}
        self._running: list[Child] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pids(self) -> dict[str, int]:
        return {name: pid for name, child in self.children.items() if (pid := child.pid) is not None}

    def start(self, *, on_ready: Callable[[str, float], None] | None = None) -> None:
        """Start all.  Raises OperationalError (code ``start-failed``), with all stopped again, where one doesn't serve in time.

        ``on_ready`` is called with each name and the seconds that it took.
        """
        try:
            for child in self.children.values():
                took = self._start_one(child)
                if on_ready is not None:
                    on_ready(child.program.name, took)
        except BaseException:
            self.stop()
            raise

    def _start_one(self, child: Child) -> float:
        began = time.monotonic()
        child.start()
        self._running.append(child)
        self.wait_ready(child.program.name, child.program.ready_within_s)
        return time.monotonic() - began

    def wait_ready(self, name: str, within_s: float) -> None:
        child = self.children[name]
        limit = time.monotonic() + within_s
        while not child.is_ready():
            if time.monotonic() > limit:
                tail = child.tail()
                where = f" ({child.last_answer})" if child.last_answer else ""
                where += f"; its log is {child.log_file}" if child.log_file is not None else ""
                raise OperationalError(
                    f"{name} did not become ready within {within_s:.0f} s{where}" + (f"\n{tail}" if tail else ""),
                    code="start-failed",
                    remedy="Read its log, and see `ironcd doctor`.",
                )
            time.sleep(0.05)

    def kill(self, name: str, number: int = signal.SIGKILL) -> int | None:
        """Send ``number`` to a child, as a crash would; it will be started again.  Its pid, or None between lives."""
        pid = self.children[name].pid
        self.children[name].signal(number)
        return pid

    def stop(self) -> None:
        while self._running:
            self._running.pop().stop()
