"""The table of docs/operations/failures.md, as a host keeps it alone: every state of a machine has an end, and when it comes.

Nobody speaks to the host and the guest does nothing more, from the moment of its last sign on.
"""

from __future__ import annotations

import msgspec
import pytest

from orchestrator.core.flow import Identity
from orchestrator.core.machine import MachineClass
from orchestrator.core.policy import Policy, Rule
from orchestrator.core.wire import DesiredRunner
from orchestrator.host.converge import Situation, next_step
from orchestrator.host.record import Record

ULID = "01JZZZZZZZZZZZZZZZZZZZZZZ1"
POLICY = Policy("enforce", (Rule("a", host="a.example"),))
MACHINE = MachineClass("ironcd")
BOOT_S, IDLE_S, LIFE_S = 300, 420, 7200
LISTENS = ("guest_hello", "gate_opened", "jit_taken", "seed_gone", "runner_started", "runner_listening")
RELEASED = (*LISTENS, "job_hint", "policy_bound", "steps_released")
WISH = DesiredRunner(
    ULID, "run", MACHINE, Identity(ULID), POLICY, 1, boot_by=BOOT_S, end_by=LIFE_S, idle_s=IDLE_S, jit="x" * 20
)


def play(wish: DesiredRunner | None, record: Record, *, from_s: int) -> list[tuple[str, int]]:
    """What the host does and when, up to the end of the machine; seconds since it was made."""
    situation, done = Situation(hello_s=60.0), []
    listened = record.ups.get("runner_listening")
    for now in range(from_s, LIFE_S + 1):
        situation = msgspec.structs.replace(
            situation,
            missing_s=float(now - from_s) if wish is None else 0.0,
            listening_s=now - listened if listened is not None else 0.0,
        )
        step = next_step(wish, record, situation, float(now))
        if step.verb == "keep":
            continue
        done.append((step.verb, now))
        if step.verb in ("end", "fail"):
            return done
        changes = {"stop_told": True} if step.verb == "stop" else {"refused_at": float(now)}
        assert step.verb in ("stop", "refuse")
        situation = msgspec.structs.replace(situation, **changes)
    raise AssertionError(f"it never ends: {done}")


@pytest.mark.parametrize(
    ("vm", "marks", "last", "expected"),
    [
        ("making", ("accepted",), 0, [("fail", BOOT_S)]),
        ("running", (), 0, [("fail", 60)]),
        ("running", ("guest_hello",), 5, [("fail", BOOT_S)]),
        ("running", LISTENS[:-1], 50, [("stop", BOOT_S - 20), ("fail", BOOT_S)]),
        ("running", LISTENS, 100, [("stop", 100 + IDLE_S), ("fail", 100 + IDLE_S + 20)]),
        ("running", (*LISTENS, "job_hint"), 100, [("stop", LIFE_S - 60), ("end", LIFE_S)]),
        ("running", RELEASED, 100, [("stop", LIFE_S - 60), ("end", LIFE_S)]),
        ("running", (*RELEASED, "job_completed"), 900, [("stop", 900 + 120), ("end", 900 + 140)]),
        ("running", (*RELEASED, "job_completed", "runner_exited"), 900, [("end", 900 + 60)]),
        ("running", (*LISTENS, "runner_exited"), 200, [("end", 200 + 60)]),
    ],
    ids=["making", "silent", "boots", "signs-in", "listens", "waits", "works", "hangs", "stays-on", "ended-idle"],
)
def test_every_state_of_a_machine_ends_without_the_control_plane(vm, marks, last, expected):
    record = Record(ULID, MACHINE, vm=vm, policy=POLICY.digest, generation=1, released=vm == "running")
    record.ups = record.marks = {"domain_started": 0.0, **dict.fromkeys(marks, float(last))}
    assert play(WISH, record, from_s=last) == expected


def test_what_the_control_plane_ends_or_has_forgotten_ends_too():
    record = Record(ULID, MACHINE, vm="running", policy=POLICY.digest, generation=1, released=True)
    record.ups = record.marks = {"domain_started": 0.0, **dict.fromkeys((*LISTENS, "job_hint"), 100.0)}
    gone = msgspec.structs.replace(WISH, wish="gone", reason="withdrawn")
    assert play(gone, record, from_s=200) == [("refuse", 200), ("end", 230)]
    assert play(None, record, from_s=200) == [("end", 260)]
