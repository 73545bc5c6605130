"""What a guest says, noted: its marks, its claim, its runner's end.  The guest is hostile; nothing here widens what it may do."""

from __future__ import annotations

import time

from orchestrator.core.wire import DesiredRunner, GuestClaim, Mark
from orchestrator.host import console, guest
from orchestrator.host.exits import failure_of
from orchestrator.host.parts import Parts, Runner
from orchestrator.host.steps import bound_order

_MARKS: dict[type[guest.Message], Mark] = {
    guest.Hello: "guest_hello",
    guest.JitTaken: "jit_taken",
    guest.RunnerStarted: "runner_started",
    guest.Listening: "runner_listening",
    guest.JobCompleted: "job_completed",
}


def hear(parts: Parts, runner: Runner, want: DesiredRunner | None, message: guest.Message) -> None:
    """Note ``message`` and answer it.  Runs on the channels' thread: it waits for nothing."""
    ulid = runner.record.id
    runner.record.heard_up = parts.uptime()
    mark = _MARKS.get(type(message))
    if mark is not None:
        runner.mark(parts, mark)
    match message:
        case guest.Hello():
            parts.talk.send(ulid, guest.opening())  # a gate that is open already takes no notice
        case guest.WhatTime():
            parts.talk.send(ulid, guest.Time(time.time_ns()))
        case guest.Opened():
            _opened(parts, runner)
        case guest.JitTaken():
            if runner.record.has("seed_gone"):  # said again after a reconnection: so is our answer
                parts.talk.send(ulid, guest.SeedGone())
        case guest.JobStarted():
            _claimed(parts, runner, want, message)
        case guest.RunnerExited():
            _exited(parts, runner, message)
        case _:
            pass


def _opened(parts: Parts, runner: Runner) -> None:
    runner.mark(parts, "guest_hello")  # a clone said hello when it was the template
    runner.mark(parts, "gate_opened")
    if runner.record.template:
        parts.templates.trust(runner.record.template)


def _claimed(parts: Parts, runner: Runner, want: DesiredRunner | None, said: guest.JobStarted) -> None:
    with runner.lock:
        if runner.record.claim is None:
            runner.record.claim = GuestClaim(said.repository, said.run_id, said.run_attempt, said.job, said.runner_name)
    runner.mark(parts, "job_hint")
    if runner.record.has("steps_released") and want is not None and want.policy.digest == runner.record.policy:
        parts.talk.send(runner.record.id, bound_order(want))


def _exited(parts: Parts, runner: Runner, said: guest.RunnerExited) -> None:
    with runner.lock:
        if runner.record.exit_code is None:
            runner.record.exit_code = said.code
            tail = console.clean(said.log_tail, (runner.secret,) if runner.secret else ())
            failure = failure_of(runner.record, said.code, tail, stopped=runner.stop_told)
            runner.record.failure = failure or runner.record.failure
    runner.mark(parts, "runner_exited")
