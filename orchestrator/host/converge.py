"""What to do next about one runner: `next_step`, pure, from what is wished, what is remembered, and the time.

It is asked on every turn of the agent and gives one step; nothing is queued, so a wish that changes is simply answered
otherwise the next time.  The rules, first match wins:

1. Proved gone: forget it once the control plane no longer speaks of it; until then keep telling.
2. A VM that ended, crashed or couldn't be made is cleared away at once: nothing can be gained by keeping it.
3. Wished gone, past its end, or unknown to the control plane for a minute: end it.  A job that waits for its policy is
   told that it won't start, and has a moment to fail with that reason.
   So is a VM whose job has ended and whose runner hangs, and one that stays on after its runner.
   So is a runner that listens longer without a job than the control plane lets it, whether or not that can be asked; one
   that has a job never is for that.
4. Not there yet: make it, if there is room.  A VM that was resumed once is never made again.
5. Its guest silent for a minute after the start, or its runner not listening in time: it failed.
6. Running: remove the seed once it was read; tell a job that gets no policy; put the wished policy in force; let the
   job's steps go.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from orchestrator.core.wire import DesiredRunner
from orchestrator.host.record import Record

UNKNOWN_S = 60.0
"""How long the control plane may not speak of a runner before the host clears it away."""
STOP_BEFORE_END_S = 60.0
"""The guest's runner gets SIGTERM this long before the VM's end: it cancels its job properly, which takes up to 26 s.
Of a lifetime that is short, the last quarter.
"""
HANGS_S = 120.0
"""A runner whose job has ended exits; one that is still there after so long hangs: it gets SIGTERM, and then the VM ends."""
STOPPED_S = 20.0
"""How long a runner that hangs has to heed SIGTERM."""
IDLE = "idle-too-long"
POWER_OFF_S = 60.0
"""A guest whose runner has exited powers itself off; one that is on so long afterwards is ended."""
HELLO_S = 60.0
"""A guest under KVM that hasn't spoken so long after its start never will."""
REFUSAL_S = 30.0
"""How long a job that was refused its policy has to fail by itself."""

Verb = Literal["keep", "forget", "start", "end", "fail", "stop", "refuse", "unseed", "apply", "release"]


class Step(msgspec.Struct, frozen=True):
    """``reason`` is for people.  ``code`` names the failure where the verb is ``fail``."""

    verb: Verb
    reason: str = ""
    code: str = ""


class Situation(msgspec.Struct, frozen=True):
    """What this process knows of a runner beside its record.

    ``missing_s``: for how long the control plane hasn't spoken of it.  ``applied``: this process has had the gateway
    acknowledge the policy on record.  ``stop_told`` and ``refused_at``: what the guest was told.
    """

    missing_s: float = 0.0
    applied: bool = True
    stop_told: bool = False
    refused_at: float = 0.0
    seed_tried_at: float = 0.0
    listening_s: float = 0.0
    """For how long its runner has been listening, by the clock that nobody sets."""
    hello_s: float = 0.0
    """A guest that is silent for so long after its start has failed; 0 where its speed isn't known (emulation)."""


KEEP = Step("keep")


def next_step(want: DesiredRunner | None, record: Record | None, situation: Situation, now: float) -> Step:
    """The one thing to do now.  Total; all times, those of ``want`` as well, are seconds since the host's boot."""
    if record is None:
        return _first(want, now)
    if record.is_proved_gone:
        return Step("forget") if want is None else KEEP
    if record.vm in ("stopped", "crashed", "failed"):
        return Step("end", record.end_reason or f"the VM {record.vm}")
    return _ending(want, record, situation, now) or _going_on(want, record, situation, now)


def _going_on(want: DesiredRunner | None, record: Record, situation: Situation, now: float) -> Step:
    if want is None:
        return KEEP
    if record.vm == "absent":
        return _first(want, now)
    if record.vm == "making":
        return Step("fail", "the VM wasn't up in time", "boot-timeout") if _is_late(want, now) else KEEP
    return _running(want, record, situation, now)


def _first(want: DesiredRunner | None, now: float) -> Step:
    """There is no VM, and there never was one."""
    if want is None:
        return KEEP
    if want.wish == "gone":
        return Step("end", want.reason or "not wished any more")
    if _is_late(want, now) or _is_over(want, now):
        return Step("fail", "the time for its start had passed", "boot-timeout")
    if not want.jit:
        return Step("fail", "its JIT configuration is gone, and nothing is known of its VM", "state-lost")
    return Step("start")


def _ending(want: DesiredRunner | None, record: Record, situation: Situation, now: float) -> Step | None:
    if want is None:
        return Step("end", "unknown to the control plane") if situation.missing_s >= UNKNOWN_S else None
    if want.wish == "gone":
        return _farewell(want, record, situation, now)
    if _is_over(want, now):
        return Step("end", "its lifetime has passed")
    before = min(STOP_BEFORE_END_S, want.machine.lifetime_s / 4)
    if want.end_by and now >= want.end_by - before and record.vm == "running" and not situation.stop_told:
        return Step("stop", "its lifetime has nearly passed")
    return _overdue(want, record, situation, now) if record.vm == "running" else None


def _overdue(want: DesiredRunner, record: Record, situation: Situation, now: float) -> Step | None:
    return _left_on(record, now) or _hanging(record, situation, now) or _idle(want, record, situation)


def _left_on(record: Record, now: float) -> Step | None:
    exited = record.ups.get("runner_exited")
    late = exited is not None and now >= exited + POWER_OFF_S
    return Step("end", "its runner has exited, and its machine stays on") if late else None


def _idle(want: DesiredRunner, record: Record, situation: Situation) -> Step | None:
    """Ended by the host alone: where the control plane is there, it has GitHub take the runner back before."""
    if not want.idle_s or not record.has("runner_listening") or record.has("job_hint") or record.has("runner_exited"):
        return None
    why = f"its runner listened for {want.idle_s:.0f} s and got no job, and the control plane didn't end it"
    if situation.listening_s >= want.idle_s + STOPPED_S:
        return Step("fail", why, IDLE)
    if situation.listening_s >= want.idle_s and not situation.stop_told:
        return Step("stop", why, IDLE)
    return None


def _hanging(record: Record, situation: Situation, now: float) -> Step | None:
    completed = record.ups.get("job_completed")
    if completed is None or record.has("runner_exited"):
        return None
    if now >= completed + HANGS_S + STOPPED_S:
        return Step("end", "its job had ended, and its runner hung")
    if now >= completed + HANGS_S and not situation.stop_told:
        return Step("stop", "its job has ended, and its runner hangs")
    return None


def _farewell(want: DesiredRunner, record: Record, situation: Situation, now: float) -> Step:
    waits = record.has("job_hint") and not record.has("steps_released") and not record.has("runner_exited")
    if record.vm == "running" and waits and not _is_over(want, now):
        if not situation.refused_at:
            return Step("refuse", want.reason or "the job's policy can't be put in force")
        if now < situation.refused_at + REFUSAL_S:
            return KEEP
    return Step("end", want.reason or "not wished any more")


def _running(want: DesiredRunner, record: Record, situation: Situation, now: float) -> Step:
    failed = _failure(want, record, situation, now)
    if failed is not None:
        return failed
    if record.has("jit_taken") and not record.has("seed_gone") and now >= situation.seed_tried_at + 1:
        return Step("unseed")
    if want.refused and record.has("job_hint") and not record.has("steps_released") and not situation.refused_at:
        return Step("refuse", want.refused)
    in_force = (record.policy, record.generation, record.bound)
    if not situation.applied or in_force != (want.policy.digest, want.generation, want.bound):
        return Step("apply")
    if record.bound and record.has("job_hint") and not record.has("steps_released"):
        return Step("release")
    return KEEP


def _failure(want: DesiredRunner, record: Record, situation: Situation, now: float) -> Step | None:
    started = record.has("runner_listening") or record.has("job_hint") or record.has("runner_exited")
    waits = record.has("runner_started") and want.boot_by and now >= want.boot_by - STOPPED_S
    if waits and not started and not situation.stop_told:
        return Step("stop", "its runner isn't listening: its last words may say why")
    if _is_late(want, now) and not started:
        return Step("fail", f"its runner wasn't listening in time; {_got_to(record)}", "boot-timeout")
    if _is_silent(record, situation, now):
        return Step(
            "fail", f"its guest said nothing for {situation.hello_s:.0f} s after its start", code="guest-silent"
        )
    return None


def _got_to(record: Record) -> str:
    last = max(record.ups, key=lambda mark: record.ups[mark], default="")
    return f"it got as far as {last!r}" if last else "it got nowhere"


def _is_silent(record: Record, situation: Situation, now: float) -> bool:
    started = record.ups.get("domain_started")
    if not situation.hello_s or started is None or record.has("guest_hello"):
        return False
    return now >= started + situation.hello_s


def _is_late(want: DesiredRunner, now: float) -> bool:
    return bool(want.boot_by) and now >= want.boot_by


def _is_over(want: DesiredRunner, now: float) -> bool:
    return bool(want.end_by) and now >= want.end_by
