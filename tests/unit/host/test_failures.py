"""Known ways a job goes wrong, by their number: what a host does about them by itself, the control plane away or not.

The other half, and the numbers that aren't here, are in ``tests/unit/control/test_failures*.py``.
"""

from __future__ import annotations

import pytest

from orchestrator.core.flow import Identity
from orchestrator.core.machine import MachineClass
from orchestrator.core.policy import Policy, Rule
from orchestrator.core.wire import DesiredRunner
from orchestrator.host.converge import HANGS_S, HELLO_S, STOP_BEFORE_END_S, STOPPED_S, Situation, Step, next_step
from orchestrator.host.exits import failure_of
from orchestrator.host.record import Record

ULID = "01JZZZZZZZZZZZZZZZZZZZZZZ1"
POLICY = Policy("enforce", (Rule("a", host="a.example"),))
START = 1000.0


def wish(*, lifetime_s: int = 3600, boot_by: float = START + 300, end_by: float = 0.0) -> DesiredRunner:
    machine = MachineClass("ironcd", lifetime_s=lifetime_s)
    return DesiredRunner(ULID, "run", machine, Identity(ULID), POLICY, 1, boot_by=boot_by, end_by=end_by)


def record(**marks: float) -> Record:
    held = {"policy": POLICY.digest, "generation": 1, "released": True}
    marks = {"domain_started": START, **marks}
    return Record(ULID, MachineClass("ironcd"), vm="running", marks=marks, ups=dict(marks), **held)


KVM = Situation(hello_s=HELLO_S)


def test_row_12_a_guest_that_never_speaks() -> None:
    assert next_step(wish(), record(), KVM, START + HELLO_S - 1).verb == "keep"
    assert next_step(wish(), record(), KVM, START + HELLO_S).code == "guest-silent"
    assert next_step(wish(), record(guest_hello=START + 9), KVM, START + HELLO_S).verb == "keep"
    emulated = Situation(hello_s=0.0)
    assert next_step(wish(), record(), emulated, START + 299).verb == "keep", "how fast emulation is, nobody knows"


def test_row_12_a_runner_that_never_listens() -> None:
    seen = record(guest_hello=START + 5)
    assert next_step(wish(), seen, KVM, START + 299).verb == "keep"
    failed = next_step(wish(), seen, KVM, START + 300)
    assert (failed.verb, failed.code) == ("fail", "boot-timeout")
    assert "guest_hello" in failed.reason, "how far it got"


def test_row_13_a_runner_that_cant_sign_in_is_stopped_in_time_to_say_why() -> None:
    seen = record(guest_hello=START, jit_taken=START, seed_gone=START, runner_started=START + 9)
    assert next_step(wish(), seen, KVM, START + 279).verb == "keep"
    assert next_step(wish(), seen, KVM, START + 280).verb == "stop"
    told = Situation(stop_told=True)
    assert next_step(wish(), seen, told, START + 299).verb == "keep"
    assert next_step(wish(), seen, told, START + 300).code == "boot-timeout"


@pytest.mark.parametrize(
    ("code", "stopped", "last", "found"),
    [
        (0, True, "The local machine's clock may be out of sync with the server time", "guest-clock"),
        (1, False, "The local machine's clock may be out of sync with the server time", "guest-clock"),
        (0, True, "Runner connect error: retrying", "boot-timeout"),
        (1, False, "Registration was not found", "runner-exited"),
        (0, False, "The runner no longer exists on the server", ""),
    ],
)
def test_row_13_what_a_runner_said_last_is_the_evidence(code: int, stopped: bool, last: str, found: str) -> None:
    failure = failure_of(record(runner_started=START), code, last, stopped=stopped)
    assert (failure.code if failure is not None else "") == found
    if failure is not None:
        assert failure.console == last
    worked = record(runner_started=START, runner_listening=START, job_hint=START)
    assert failure_of(worked, code, last, stopped=stopped) is None


def test_row_16_a_runner_that_hangs_after_its_job() -> None:
    ended = START + 100
    seen = record(guest_hello=START, runner_listening=START, job_hint=START, steps_released=START, job_completed=ended)
    assert next_step(wish(), seen, KVM, ended + HANGS_S - 1).verb == "keep", "post-job work has its time"
    assert next_step(wish(), seen, KVM, ended + HANGS_S).verb == "stop"
    told = Situation(hello_s=HELLO_S, stop_told=True)
    assert next_step(wish(), seen, told, ended + HANGS_S + STOPPED_S - 1).verb == "keep"
    assert next_step(wish(), seen, told, ended + HANGS_S + STOPPED_S).verb == "end"


def test_row_19_sigterm_a_minute_before_the_end_and_then_destruction() -> None:
    end = START + 3600
    seen = record(guest_hello=START, runner_listening=START)
    assert next_step(wish(end_by=end), seen, KVM, end - STOP_BEFORE_END_S - 1).verb == "keep"
    assert next_step(wish(end_by=end), seen, KVM, end - STOP_BEFORE_END_S).verb == "stop"
    told = Situation(stop_told=True)
    assert next_step(wish(end_by=end), seen, told, end - 1).verb == "keep"
    assert next_step(wish(end_by=end), seen, told, end) == Step("end", "its lifetime has passed")


@pytest.mark.parametrize("lifetime_s", [40, 100, 200])
def test_row_19_a_short_lifetime_isnt_all_warning(lifetime_s: int) -> None:
    end = START + lifetime_s
    seen = record(guest_hello=START, runner_listening=START)
    want = wish(lifetime_s=lifetime_s, end_by=end)
    assert next_step(want, seen, KVM, START + lifetime_s * 0.7).verb == "keep"
    assert next_step(want, seen, KVM, end - lifetime_s * 0.25).verb == "stop"
