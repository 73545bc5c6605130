"""What the guest says and does, with no I/O: events in, effects out.

The life of a session, top to bottom:

=========  ==============================================================================================
GATED      nothing has gone on that belongs to one machine alone; a template is taken here (`gate`)
SEEDING    cloud-init works; nothing of the runner is known yet
SEALED     the registration was taken and its copies destroyed; waits for the host to take the seed away
RUNNING    the runner runs, or is about to be started again
ENDED      the runner is done; the machine powers off
=========  ==============================================================================================

Rules:

* The gate opens once, by the host's word; a clone wakes up in front of it with the channel open.
* The runner starts only after the host has said that the seed is gone.
* A job's steps start only after the host has said that the job's policy is in force.  Everything else (a refusal, no
  answer in time, a channel that stays closed, a question from before a job could be there) fails the job.
* The host's agent may die and come back at any time.  On each connection the guest says again all that holds, in the
  order in which it happened.
* How the runner's exit statuses are to be read: `docs/operations/runner.md`.  2 asks for another start, which needs no
  registration since its files are in place; 3, 4 and 7 mean that this runner's version is too old; 1 soon after the
  start is a failed sign-in, which may be the network's fault.
"""

from __future__ import annotations

import json

GATED, SEEDING, SEALED, RUNNING, ENDED = "gated", "seeding", "sealed", "running", "ended"

MAX_LINE = 8 * 1024
BEAT_S = 10.0
BIND_WAIT_S = 7200.0
"""Between the hook's question and the host's word.  No step runs meanwhile, and the machine's lifetime ends the wait in any
case; so a control plane that is away for an hour delays the job, and doesn't fail it.
"""
CHANNEL_GRACE_S = 60.0
"""For how long the channel may be closed while a hook waits: the host's agent may just be starting anew."""
RETRYABLE_STARTS = 5
SIGN_IN_PAUSES_S = (1.0, 2.0, 5.0, 10.0, 20.0)
SIGN_IN_S = 60.0
"""Status 1 within this time, and before the runner listened, is a failed sign-in."""
TAIL_BYTES = 3 * 1024
ASKS_FOR_TIME = 8
ROUND_TRIP_S = 0.1
"""An answer that took no longer tells the time to half of this."""

TOO_OLD = (3, 4, 7)
NO_REGISTRATION = 125
"""Reported in place of an exit status where the seed had no registration."""

_AT_THE_GATE = ("settle", "prepare", "open", "time")
_JOB_NUMBERS = ("run_id", "run_attempt")
_JOB_WORDS = ("repository", "job", "runner_name")


class Send:
    """A message for the host."""

    def __init__(self, **message: object) -> None:
        self.message = message

    def encode(self) -> bytes:
        return json.dumps(self.message, separators=(",", ":")).encode() + b"\n"


class Say:
    """A line for the serial console, where everybody on the host can read it."""

    def __init__(self, text: str) -> None:
        self.text = text


class Prepare:
    """``order`` is the host's; the gate stays closed."""

    def __init__(self, order: dict[str, object]) -> None:
        self.order = order


class OpenGate:
    """``order`` is the host's opening line.  ``prepared``: the machine has an identity of its own since it waits here."""

    def __init__(self, order: dict[str, object], *, prepared: bool) -> None:
        self.order = order
        self.prepared = prepared


class SetClock:
    """Forwards, to ``now_ns`` since the epoch."""

    def __init__(self, now_ns: int) -> None:
        self.now_ns = now_ns


class Settle:
    """Come to rest: a template is about to be taken."""


class StartRunner:
    """``with_registration``: hand the registration over; without, the runner's own files from the last start serve."""

    def __init__(self, *, with_registration: bool) -> None:
        self.with_registration = with_registration


class LetOthersStart:
    """The runner listens, or has to wait: units that no job waits for (journal, D-Bus, an admin's own) may take the processor now."""


class StopRunner:
    """SIGTERM: the runner cancels its job, cleans up and exits."""


class AnswerHook:
    def __init__(self, text: str, *, ok: bool) -> None:
        self.text = text
        self.ok = ok


class PowerOff:
    pass


Effect = (
    Send
    | Say
    | Prepare
    | OpenGate
    | SetClock
    | Settle
    | StartRunner
    | LetOthersStart
    | StopRunner
    | AnswerHook
    | PowerOff
)


class Session:
    """``now`` is in seconds, of a clock that only goes forward.  Every method returns the effects to carry out, in order."""

    def __init__(self, image: str, cloud_init: str, now: float) -> None:
        self.state = GATED
        self._hello = Send(m="hello", image=image, cloud_init=cloud_init)
        self._said: dict[str, Send] = {}
        self._connected = False
        self._closed_at = now
        self._beat_at = now + BEAT_S
        self._start_at: float | None = None
        self._started_at = now
        self._retries = 0
        self._sign_ins = 0
        self._signed_in = False
        self._stopping = False
        self._asked_at: float | None = None
        self._verdict: AnswerHook | None = None
        self._tail = b""
        self._prepared = False
        self._time_asked_at: float | None = None
        self._times_asked = 0

    # -- the channel ---------------------------------------------------------------------------------------------

    def opened(self) -> list[Effect]:
        """The host's end of the channel is open (again)."""
        self._connected = True
        return [self._hello, *self._said.values()]

    def closed(self, now: float) -> list[Effect]:
        self._connected = False
        self._closed_at = now
        return []

    def heard(self, line: bytes, now: float) -> list[Effect]:
        """A line from the host; one that means nothing is skipped."""
        try:
            order = json.loads(line)
        except ValueError:
            return []
        kind = order.get("m") if isinstance(order, dict) else None
        if kind in _AT_THE_GATE:
            return self._at_the_gate(kind, order, now)
        if kind == "seed_gone" and self.state == SEALED:
            return self._start(now, with_registration=True)
        if kind in ("bound", "refused"):
            return self._judge(_verdict(order, ok=kind == "bound"))
        if kind == "stop":
            return self._stop()
        return []

    # -- the gate ------------------------------------------------------------------------------------------------

    def gate_opened(self, now: float) -> list[Effect]:
        """The machine has an identity of its own.  The opening line was on its way for a while, so the time is asked for."""
        self.state = SEEDING
        return [*self._tell(Send(m="opened")), *self._ask_time(now)]

    def prepared(self) -> list[Effect]:
        """The machine is one of its own now, and waits at the gate for a job."""
        self._prepared = True
        return [Send(m="prepared")]

    def settled(self) -> list[Effect]:
        return [Send(m="settled")]

    def _at_the_gate(self, kind: str, order: dict[str, object], now: float) -> list[Effect]:
        if kind == "open" and self.state == GATED:
            return [OpenGate(order, prepared=self._prepared)]
        if kind == "prepare" and self.state == GATED:
            return [Prepare(order)]
        if kind == "settle" and self.state == GATED:
            return [Settle()]
        if kind == "time":
            return self._told_time(order.get("now_ns"), now)
        return []

    def _ask_time(self, now: float) -> list[Effect]:
        self._time_asked_at = now
        self._times_asked += 1
        return [Send(m="what_time")] if self._connected else []

    def _told_time(self, now_ns: object, now: float) -> list[Effect]:
        """Half of the round trip has passed since the host looked at its clock, give or take the other half."""
        asked_at, self._time_asked_at = self._time_asked_at, None
        if asked_at is None or not isinstance(now_ns, int):
            return []
        took = now - asked_at
        if took > ROUND_TRIP_S and self._times_asked < ASKS_FOR_TIME:
            return self._ask_time(now)
        return [SetClock(now_ns + round(took / 2 * 1e9))]

    # -- the registration and the runner -------------------------------------------------------------------------

    def seeded(self, *, registered: bool) -> list[Effect]:
        """cloud-init is done and its copies are scrubbed; ``registered`` where it left a registration, now taken."""
        if self.state != SEEDING:
            return []
        if not registered:
            return self._end(NO_REGISTRATION, "the seed had no runner registration")
        self.state = SEALED
        if self._stopping:
            return self._end(0, "stopped before the runner was started")
        return [Say("runner registration taken"), *self._tell(Send(m="jit_taken"))]

    def started(self, pid: int, now: float) -> list[Effect]:
        self._started_at = now
        return [Say(f"runner started, pid {pid}"), *self._tell(Send(m="runner_started", pid=pid))]

    def printed(self, line: bytes) -> list[Effect]:
        """A line on the runner's standard output or error."""
        self._tail = (self._tail + line + b"\n")[-TAIL_BYTES:]
        text = line.decode("utf-8", "replace")
        if "Listening for Jobs" in text:
            self._signed_in = True
            return [Say("runner is listening for jobs"), *self._tell(Send(m="listening")), LetOthersStart()]
        if " completed with result: " in text:
            return [Say("job completed"), *self._tell(Send(m="job_completed"))]
        return []

    def exited(self, status: int, now: float) -> list[Effect]:
        """``status`` as a shell says it: 128 and the signal's number for a death by signal."""
        if self.state != RUNNING:
            return []
        if not self._stopping:
            if status == 2 and self._retries < RETRYABLE_STARTS:
                self._retries += 1
                return self._start(now, with_registration=False)
            early = not self._signed_in and now - self._started_at < SIGN_IN_S
            if status == 1 and early and self._sign_ins < len(SIGN_IN_PAUSES_S):
                pause = SIGN_IN_PAUSES_S[self._sign_ins]
                self._sign_ins += 1
                self._start_at = now + pause
                return [Say(f"runner couldn't sign in; trying again in {pause:g} s"), LetOthersStart()]
        return self._end(status, self._tail.decode("utf-8", "replace"))

    # -- the job-started hook ------------------------------------------------------------------------------------

    def asked(self, job: dict[str, str], now: float) -> list[Effect]:
        """The hook asks whether its job may go on; ``job`` is what it was told by the runner, a claim."""
        if self.state != RUNNING:
            return [AnswerHook("IronCD: no runner is running here", ok=False)]
        claim: dict[str, object] = {name: job.get(name, "")[:512] for name in _JOB_WORDS}
        claim |= {name: _number(job.get(name, "")) for name in _JOB_NUMBERS}
        effects: list[Effect] = []
        if "job_started" not in self._said:
            effects = [Say("job started; waiting for its egress policy"), *self._tell(Send(m="job_started", **claim))]
        if self._verdict is not None:
            return [*effects, self._verdict]
        self._asked_at = now
        return effects

    def tick(self, now: float) -> list[Effect]:
        """To be called once a second or more often."""
        effects: list[Effect] = []
        if now >= self._beat_at:
            self._beat_at = now + BEAT_S
            if self._connected:
                effects.append(Send(m="beat"))
        if self._start_at is not None and now >= self._start_at:
            effects += self._start(now, with_registration=True)
        if self._asked_at is not None:
            if now - self._asked_at >= BIND_WAIT_S:
                effects += self._judge(AnswerHook("IronCD didn't put an egress policy in force in time", ok=False))
            elif not self._connected and now - max(self._closed_at, self._asked_at) >= CHANNEL_GRACE_S:
                effects += self._judge(AnswerHook("IronCD's host can't be reached", ok=False))
        return effects

    # -- in common -----------------------------------------------------------------------------------------------

    def _tell(self, message: Send) -> list[Effect]:
        """Say it now if anybody hears it, and again on each later connection."""
        kind = str(message.message["m"])
        self._said.pop(kind, None)
        self._said[kind] = message
        return [message] if self._connected else []

    def _judge(self, answer: AnswerHook) -> list[Effect]:
        """The first word holds; but a refusal takes back an earlier yes, and never the other way round."""
        if self._verdict is None or (self._verdict.ok and not answer.ok):
            self._verdict = answer
        if self._asked_at is None:
            return []
        self._asked_at = None
        return [Say(self._verdict.text), self._verdict]

    def _start(self, now: float, *, with_registration: bool) -> list[Effect]:
        self.state = RUNNING
        self._start_at = None
        self._started_at = now
        if self._stopping:
            return self._end(0, "stopped before the runner was started")
        return [StartRunner(with_registration=with_registration)]

    def _stop(self) -> list[Effect]:
        if self.state == ENDED:
            return []
        waiting = self._start_at is not None
        self._stopping = True
        if self.state == RUNNING and not waiting:
            return [Say("stopping the runner"), StopRunner()]
        if self.state in (GATED, SEEDING):
            return []
        return self._end(0, "stopped before the runner was started")

    def _end(self, status: int, tail: str) -> list[Effect]:
        self.state = ENDED
        self._start_at = None
        note = " (this version of the runner is too old: build the image anew)" if status in TOO_OLD else ""
        effects: list[Effect] = [Say(f"runner exited with status {status}{note}")]
        effects += self._tell(Send(m="runner_exited", code=status, log_tail=_bounded(tail)))
        return [*effects, PowerOff()]


def _verdict(order: dict[str, object], *, ok: bool) -> AnswerHook:
    if not ok:
        return AnswerHook(f"IronCD refused this job: {order.get('reason') or 'no reason given'}", ok=False)
    return AnswerHook(_policy_text(order), ok=True)


def _policy_text(order: dict[str, object]) -> str:
    mode, rules, policy = (order.get(name, "?") for name in ("mode", "rules", "policy"))
    return f"IronCD egress policy in force: mode {mode}, {rules} rules, {policy}"


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else 0


def _bounded(tail: str) -> str:
    """So short that the message fits into one line, whatever JSON makes of its characters."""
    while len(json.dumps(tail)) > MAX_LINE - 256:
        tail = tail[len(tail) // 4 + 1 :]
    return tail
