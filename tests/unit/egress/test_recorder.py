"""Every attempt is counted, however many come."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

from orchestrator.core.flow import Event
from orchestrator.core.policy import Decision
from orchestrator.egress.links import LinkState
from orchestrator.egress.recorder import Recorder
from tests.unit.egress.conftest import RUNNER, TAP

Make = Callable[..., LinkState]
BLOCKED = Decision("blocked", "not_allowed")


class Time:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def recorder(time: Time) -> tuple[Recorder, list[Event]]:
    events: list[Event] = []
    ledger = SimpleNamespace(append=events.append)
    return Recorder(ledger, gateway="host-1", clock=time, monotonic=time), events  # type: ignore[arg-type]


def test_an_event_says_whose_it_is_and_by_which_policy(state: Make) -> None:
    link = state("allowed.example")
    made, _ = recorder(Time())
    event = made.event("open", link, "tls", Decision("allowed", "rule", "test#1"), host="allowed.example")
    assert (event.who.runner, event.who.org) == (RUNNER, "acme")
    assert (event.mode, event.policy, event.generation) == ("enforce", link.policy.digest, 1)
    assert (event.verdict, event.reason, event.rule, event.ts) == ("allowed", "rule", "test#1", 100.0)
    assert made.event("drop", None, "udp", BLOCKED).who.runner == ""


def test_a_flood_of_blocked_attempts_is_counted(state: Make) -> None:
    link, time = state(), Time()
    made, events = recorder(time)
    for number in range(1000):
        event = made.event("open", link, "tls", BLOCKED, host=f"n{number}.example", conn=str(number))
        made.limited(TAP, event, per_second=50)
    made.flush()
    assert len(events) == 51
    assert sum(event.count for event in events) == 1000
    assert events[-1].flags == ("suppressed",)
    assert (events[-1].host, events[-1].count, events[-1].who.runner) == ("", 950, RUNNER)
    made.flush()
    assert len(events) == 51


def test_the_flood_of_one_vm_takes_nothing_from_another(state: Make) -> None:
    made, events = recorder(Time())
    for _ in range(100):
        made.limited("flooder", made.event("open", None, "tls", BLOCKED), per_second=10)
    made.limited("neighbour", made.event("open", state(), "tls", BLOCKED), per_second=10)
    assert events[-1].who.runner == RUNNER


def test_retries_of_a_name_or_a_drop_are_one_more_line(state: Make) -> None:
    link = state()
    made, events = recorder(Time())
    for _ in range(5):
        made.limited(TAP, made.event("dns", link, "dns", BLOCKED, host="evil.example", port=53))
        made.limited(TAP, made.event("drop", link, "udp", BLOCKED, orig_dst="1.2.3.4", port=443))
    made.limited(TAP, made.event("dns", link, "dns", BLOCKED, host="other.example", port=53))
    made.flush()
    assert [(event.event, event.host, event.count, event.flags) for event in events] == [
        ("dns", "evil.example", 1, ()),
        ("drop", "", 1, ()),
        ("dns", "other.example", 1, ()),
        ("dns", "evil.example", 4, ("repeated",)),
        ("drop", "", 4, ("repeated",)),
    ]


def test_after_a_second_a_vm_has_lines_again(state: Make) -> None:
    time = Time()
    made, events = recorder(time)
    for second in range(3):
        time.now = 100.0 + second
        for _ in range(10):
            made.limited(TAP, made.event("open", state(), "tls", BLOCKED), per_second=4)
        made.flush()
    assert sum(event.count for event in events) == 30
    assert len(events) == 15
