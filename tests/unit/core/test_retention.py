from __future__ import annotations

import math

import msgspec
import pytest

from orchestrator.core.flow import Event, Identity
from orchestrator.core.retention import DAY_S, Hold, Keep, Retention, class_of

EVENT = Event(
    event="open", ts=100.0, seq=1, gateway="h", who=Identity("R", org="Acme", repo="Acme/App", job_id=3),
    protocol="tls", verdict="allowed", reason="rule",
)  # fmt: skip


def changed(**changes: object) -> Event:
    return msgspec.structs.replace(EVENT, **changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "egress"),
        ({"flags": ("repeated", "suppressed")}, "egress"),
        ({"flags": ("multi_tenant",)}, "security"),
        ({"verdict": "blocked"}, "security"),
        ({"verdict": "warn"}, "security"),
        ({"event": "mark"}, "security"),
        ({"event": "lost"}, "security"),
    ],
)
def test_classes(changes: dict[str, object], expected: str) -> None:
    assert class_of(changed(**changes)) == expected


def test_times() -> None:
    now = 1000 * DAY_S
    kept = Retention(Keep(10, 20), {"acme": Keep(5, 0)})
    assert kept.due(EVENT) == 100 + 5 * DAY_S
    assert kept.due(changed(verdict="blocked")) == math.inf
    assert kept.due(changed(who=Identity("R", repo="other/app"))) == 100 + 10 * DAY_S
    assert kept.youngest_cutoff(now) == 995 * DAY_S
    assert Retention(Keep(0, 0)).youngest_cutoff(now) == 0.0


@pytest.mark.parametrize(
    ("hold", "holds"),
    [
        (Hold("a", "r"), True),
        (Hold("a", "r", org="acme", repo="acme/app", job=3, runner="R", gateway="h", since=100.0, until=100.1), True),
        (Hold("a", "r", until=100.0), False),
        (Hold("a", "r", since=100.1), False),
        (Hold("a", "r", org="other"), False),
        (Hold("a", "r", job=4), False),
    ],
)
def test_holds(hold: Hold, holds: bool) -> None:
    assert hold.holds(EVENT) is holds
