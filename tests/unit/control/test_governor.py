"""What the governor lets through, and when."""

from __future__ import annotations

from typing import get_args

import pytest

from orchestrator.control.github import RateLimited, Unavailable
from orchestrator.control.github_transport import Limit
from orchestrator.control.governor import BURST, FAILURES, PROBE_S, REGISTRATION, Governor, Kind

HERE, ELSEWHERE = 7, 8
RESET_S = 600.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def governor(clock: Clock) -> Governor:
    return Governor(clock=clock)


def leave(
    governor: Governor, clock: Clock, remaining: int, *, resource: str = "core", installation: int = HERE
) -> None:
    governor.limits[installation, resource] = Limit(5000, remaining, clock.now + RESET_S)


def admitted(governor: Governor, installation: int = HERE) -> set[Kind]:
    found: set[Kind] = set()
    for kind in get_args(Kind):
        try:
            governor.admit(kind, installation)
        except (RateLimited, Unavailable):
            continue
        found.add(kind)
    return found


ALL: set[Kind] = set(get_args(Kind))


@pytest.mark.parametrize(
    ("remaining", "left"),
    [
        (5000, ALL),
        (501, ALL),
        (500, ALL - {"sweep"}),
        (251, ALL - {"sweep"}),
        (250, {"register", "policy", "delete"}),
        (100, {"register", "policy"}),
        (1, {"register", "policy"}),
        (0, set()),
    ],
)
def test_what_matters_more_has_its_share_kept(
    remaining: int, left: set[Kind], governor: Governor, clock: Clock
) -> None:
    leave(governor, clock, remaining)
    assert admitted(governor) == left
    assert admitted(governor, ELSEWHERE) == ALL, "each installation has its own limit"
    clock.now += RESET_S
    assert admitted(governor) == ALL


def test_it_is_waited_for_until_the_reset(governor: Governor, clock: Clock) -> None:
    leave(governor, clock, 0)
    with pytest.raises(RateLimited) as limited:
        governor.admit("register", HERE)
    assert (limited.value.retry_after, limited.value.ours) == (RESET_S, True)
    assert governor.held == {("register", "limit"): 1}


def test_registrations_have_a_limit_of_their_own(governor: Governor, clock: Clock) -> None:
    leave(governor, clock, 0)
    leave(governor, clock, 10, resource=REGISTRATION)
    assert admitted(governor) == {"register"}


def test_a_pause_that_github_asks_for_is_kept(governor: Governor, clock: Clock) -> None:
    governor.limited(HERE, RateLimited("secondary", 30.0))
    assert admitted(governor) == set()
    assert admitted(governor, ELSEWHERE) == ALL
    clock.now += 30
    assert admitted(governor) == ALL


def test_a_pause_of_one_limit_leaves_the_other(governor: Governor, clock: Clock) -> None:
    leave(governor, clock, 5000, resource=REGISTRATION)
    governor.limited(HERE, RateLimited("used up", 30.0, resource="core"))
    assert admitted(governor) == {"register"}


def made(governor: Governor, kind: Kind, tries: int) -> int:
    count = 0
    for _ in range(tries):
        try:
            governor.admit(kind, HERE)
        except RateLimited:
            continue
        count += 1
    return count


def test_registrations_are_paced(governor: Governor, clock: Clock) -> None:
    assert made(governor, "register", 300) == BURST
    total = 0
    for _ in range(600):
        clock.now += 1
        total += made(governor, "register", 5)
    assert 795 <= total <= 800, "80 a minute"


def test_statuses_leave_room_for_registrations(governor: Governor) -> None:
    assert made(governor, "tell", 300) == BURST / 2
    assert made(governor, "register", 300) == BURST / 2


def fail(governor: Governor, times: int) -> None:
    for _ in range(times):
        governor.failed()


def test_failures_in_a_row_open_the_circuit(governor: Governor, clock: Clock) -> None:
    fail(governor, FAILURES - 1)
    governor.answered()
    fail(governor, FAILURES - 1)
    assert admitted(governor) == ALL
    first = clock.now
    governor.answered()
    for _ in range(FAILURES):
        governor.failed()
        clock.now += 3
    assert admitted(governor) == set()
    assert governor.open_since == first, "it began with the first of them"
    with pytest.raises(Unavailable):
        governor.admit("register", HERE)


def test_a_probe_closes_it_and_nothing_else_does(governor: Governor, clock: Clock) -> None:
    fail(governor, FAILURES)
    governor.answered()
    assert admitted(governor) == set(), "an answer that was under way says nothing of now"
    assert not governor.wants_probe()
    for _ in range(3):
        clock.now += PROBE_S
        assert governor.wants_probe()
        governor.probed(answered=False)
        assert not governor.wants_probe()
    assert admitted(governor) == set()
    clock.now += PROBE_S
    governor.probed(answered=True)
    assert (governor.open_since, admitted(governor)) == (0.0, ALL)
    fail(governor, FAILURES - 1)
    assert admitted(governor) == ALL


def test_a_worker_goes_on_with_the_outage_that_another_saw(governor: Governor, clock: Clock) -> None:
    governor.resume(clock.now - 500)
    assert admitted(governor) == set()
    assert governor.wants_probe()
