"""A guest: the very session that runs in real ones, and a runner that talks to the simulated GitHub.

What it is told and tells goes through the real encoders and parsers.  It goes on while agents and control planes die, and
ends with its machine.
"""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.host import guest as wire
from orchestrator.simulator.github.state import Job, Runner
from runner_image.guest.session import (
    AnswerHook,
    Effect,
    OpenGate,
    PowerOff,
    Prepare,
    Send,
    Session,
    Settle,
    StartRunner,
    StopRunner,
)

if TYPE_CHECKING:
    from tests.chaos.machine import Machine


class Guest:
    """``fate``: empty for one that does its work; ``mute``: it never speaks; ``hangs``: it doesn't end after its job."""

    tick_s = 5.0
    renew_s = 60.0
    retry_s = 15.0
    """Before the runner tries GitHub again, where it can't be reached."""
    seed: Path | None = None
    """Where it finds its registration once its gate is open."""

    def __init__(self, machine: Machine, ulid: str, jit: str, *, boot_s: float, fate: str = "") -> None:
        self.machine = machine
        self.city = machine.city
        self.ulid = ulid
        self.fate = fate
        self.alive = True
        self.began = self.city.loop.time()
        self.connected = False
        self.job: Job | None = None
        self._jit = jit
        self._boot_s = boot_s
        self._session = Session("default", "24.4", self.city.loop.time())
        self._hook: asyncio.Future[bool] | None = None
        self._stopped = asyncio.Event()
        self._answer = ""
        self._tasks = [asyncio.ensure_future(self._live())]

    def end(self) -> None:
        """Its machine is gone."""
        self.alive = False
        for task in self._tasks:
            task.cancel()

    # The channel

    def opened(self) -> None:
        self.connected = True
        self._do(self._session.opened())

    def closed(self) -> None:
        self.connected = False
        self._do(self._session.closed(self.city.loop.time()))

    def heard(self, order: wire.Order) -> None:
        if self.alive and self.connected and self.fate != "mute":
            self._do(self._session.heard(wire.encode(order), self.city.loop.time()))

    def _says(self, line: bytes) -> None:
        self.machine.says(self.ulid, wire.parse(line.strip()))

    def _do(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send() if self.connected and self.fate != "mute":
                    self._says(effect.encode())
                case Settle():
                    self._do(self._session.settled())
                case Prepare():
                    self._do(self._session.prepared())
                case OpenGate():
                    self._jit = self.seed.read_text() if self.seed is not None and self.seed.exists() else self._jit
                    self._do(self._session.gate_opened(self.city.loop.time()))
                    self._tasks.append(asyncio.ensure_future(self._boot()))
                case StartRunner():
                    self._tasks.append(asyncio.ensure_future(self._listen()))
                case StopRunner():
                    self._stopped.set()
                case AnswerHook():
                    self._answer = effect.text
                    if self._hook is not None and not self._hook.done():
                        self._hook.set_result(effect.ok)
                case PowerOff() if self.fate != "hangs":
                    self.city.loop.call_later(1.0, self.machine.powers_off, self.ulid, self)
                case _:
                    pass

    async def _boot(self) -> None:
        await asyncio.sleep(self._boot_s)
        self._do(self._session.seeded(registered=bool(self._jit)))

    async def _live(self) -> None:
        while True:
            await asyncio.sleep(self.tick_s)
            self._do(self._session.tick(self.city.loop.time()))

    # The runner

    def _exits(self, status: int) -> None:
        self._do(self._session.exited(status, self.city.loop.time()))

    def _registration(self) -> Runner | None:
        blob = json.loads(base64.b64decode(self._jit))
        number = json.loads(base64.b64decode(blob[".runner"]))["AgentId"]
        return self.city.github.state.runners.get(number)

    async def _listen(self) -> None:
        engine = self.city.github.engine
        self._do(self._session.started(4711, self.city.loop.time()))
        await self._reached(1.0)
        runner = self._registration()
        if runner is None or not engine.known_to(runner):
            self._exits(1)
            return
        if runner.session is not None and engine.is_live(runner.session):
            self.city.journal.fault(f"two machines are runner {runner.name}")
            self._exits(5)
            return
        session = engine.open_session(runner, self.ulid)
        self._do(self._session.printed(b"Listening for Jobs"))
        while True:
            await self._reached(0.1)
            message = await engine.next_message(runner, session, 50.0)
            if runner.gone or runner.session is not session or self._stopped.is_set():
                if self._stopped.is_set():
                    engine.close_session(runner)
                self._exits(0)
                return
            job = runner.job
            if message is None or message.type != "RunnerJobRequest" or job is None:
                continue
            await self._reached(0.5)
            if job.runner is runner and job.status == "queued" and not engine.withhold(job):
                engine.acquire(job)
                await self._work(runner, job)
                return

    async def _reached(self, seconds: float) -> None:
        """Wait, and for as long as GitHub can't be reached."""
        await asyncio.sleep(seconds)
        while self.city.github_is_away():  # noqa: ASYNC110 - it is a runner's own way: it tries again
            await asyncio.sleep(self.retry_s)

    async def _work(self, runner: Runner, job: Job) -> None:
        self.job = job
        self.city.acquired(job, runner.name, self)
        renewing = asyncio.ensure_future(self._renew(job))
        self._tasks.append(renewing)
        self._hook = self.city.loop.create_future()
        claim = {
            "repository": job.run.repository.full_name,
            "run_id": str(job.run.id),
            "run_attempt": str(job.attempt),
            "job": job.key,
            "runner_name": runner.name,
        }
        self._do(self._session.asked(claim, self.city.loop.time()))
        allowed = await self._hook
        conclusion = await self._steps(job) if allowed else "failure"
        if not allowed:
            self.city.unbound(job, self.machine, self._answer)
        await self._reached(0.5)
        renewing.cancel()
        self.city.github.engine.complete(job, conclusion)
        self._do(self._session.printed(b"Job completed with result: " + conclusion.encode()))
        if self.fate != "hangs":
            self._exits(0)

    async def _steps(self, job: Job) -> str:
        ends = self.city.loop.time() + self.city.length_of(job)
        while self.city.loop.time() < ends:
            await asyncio.sleep(min(5.0, max(0.1, ends - self.city.loop.time())))
            if job.cancel_requested:
                return "cancelled"
            if self._stopped.is_set():
                self.city.stopped(job, self.machine)
                return "cancelled"
        return "success"

    async def _renew(self, job: Job) -> None:
        """Each minute; where GitHub can't be reached it is tried again much sooner, as a real runner does."""
        wait_s = self.renew_s
        while job.status == "in_progress":
            await asyncio.sleep(wait_s)
            away = self.city.github_is_away()
            wait_s = self.retry_s if away else self.renew_s
            if job.status == "in_progress" and not away:
                self.city.github.engine.renew(job)
