"""What of GitHub's list of deliveries is asked for again, and how often."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from orchestrator.control.github import HookDelivery, Refused, Unavailable
from orchestrator.control.records import Swept
from orchestrator.control.redelivery import AT_ONCE, KEPT_S, TIMES, plan

from .stage import Stage

NOW = 1_700_000_000.0


def attempt(number: int, guid: str, *, ok: bool = False, age: float = 100.0, now: float = NOW) -> HookDelivery:
    return HookDelivery(number, guid, now - age, ok)


def guids(seen: list[HookDelivery], before: Swept = Swept()) -> list[str]:  # noqa: B008 - frozen
    return [found.guid for found in plan(seen, before, NOW).due]


def test_only_what_no_attempt_brought_is_asked_for() -> None:
    seen = [
        attempt(1, "arrived", ok=True),
        attempt(2, "failed"),
        attempt(3, "arrived later"),
        attempt(4, "arrived later", ok=True),
        attempt(5, "just now", age=59),
        attempt(6, "failed too"),
    ]
    assert guids(list(reversed(seen))) == ["failed", "failed too"]


def test_the_cursor_stays_below_what_may_still_come() -> None:
    seen = [attempt(1, "a", ok=True, age=900), attempt(2, "b", ok=True, age=800), attempt(3, "c", age=700)]
    assert plan(seen, Swept(), NOW).swept.cursor == 2
    young = [attempt(1, "a", ok=True, age=900), attempt(2, "b", ok=True, age=200)]
    assert plan(young, Swept(), NOW).swept.cursor == 1, "an attempt that began before it may not have ended"
    assert plan([], Swept(9), NOW).swept.cursor == 9


async def counts(stage: Stage) -> dict[str, float]:
    found = await stage.store.counters()
    return {key: value for key, value in found.items() if key.startswith("redeliveries")}


async def test_it_is_asked_for_less_and_less_often_and_then_given_up(stage: Stage) -> None:
    stage.github.attempts = [attempt(1, "lost", now=stage.now)]
    asked = []
    for _ in range(120):
        before = stage.github.calls.count("redeliver")
        await stage.look()
        if stage.github.calls.count("redeliver") > before:
            asked.append(stage.now)
        stage.github.attempts = [
            msgspec.structs.replace(a, at=stage.now) if a.at > stage.now else a for a in stage.github.attempts
        ]
        stage.now += 90
    assert len(asked) == TIMES
    pauses = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert pauses == sorted(pauses)
    assert pauses[0] >= 120
    assert await counts(stage) == {"redeliveries{result=asked}": TIMES, "redeliveries{result=given_up}": 1}
    assert (await stage.store.swept()).tried == {}, "nothing is remembered of it once the cursor has passed"


async def test_so_many_at_once(stage: Stage) -> None:
    stage.github.attempts = [attempt(n, f"g{n}", now=stage.now) for n in range(1, 41)]
    stage.github.page = 7
    await stage.look()
    assert stage.github.calls.count("redeliver") == AT_ONCE
    stage.now += 90
    await stage.look()
    assert stage.github.calls.count("redeliver") == 40


async def test_what_github_keeps_no_more_isnt_asked_for(stage: Stage) -> None:
    stage.github.attempts = [attempt(1, "old", age=KEPT_S, now=stage.now), attempt(2, "new", now=stage.now)]
    await stage.look()
    assert (await stage.store.swept()).tried.keys() == {"new"}


async def test_the_list_is_read_no_further_than_the_cursor(stage: Stage) -> None:
    stage.github.attempts = [attempt(n, f"g{n}", ok=True, age=1000, now=stage.now) for n in range(1, 31)]
    stage.github.page = 10
    await stage.look()
    assert stage.github.calls.count("deliveries") == 3
    assert (await stage.store.swept()).cursor == 30
    stage.now += 90
    stage.reconciler = stage.fresh()
    await stage.look()
    assert stage.github.calls.count("deliveries") == 4, "also by a worker that has just started"


@pytest.mark.parametrize("call", ["deliveries", "redeliver"])
async def test_a_github_that_is_away_is_asked_at_the_next_sweep(call: str, stage: Stage) -> None:
    stage.github.attempts = [attempt(n, f"g{n}", now=stage.now) for n in (1, 2)]

    def trouble(name: str, when: Any) -> None:
        if (name, when) == (call, "before"):
            raise Unavailable("502")

    stage.github.trouble = trouble
    assert await stage.look()
    assert await stage.store.swept() == Swept()
    assert stage.github.calls.count(call) == 1
    stage.github.trouble = lambda _call, _when: None
    stage.now += 90
    await stage.look()
    assert (await counts(stage)) == {"redeliveries{result=asked}": 2}


async def test_one_that_github_refuses_stops_no_other(stage: Stage) -> None:
    stage.github.attempts = [attempt(n, f"g{n}", now=stage.now) for n in (1, 2)]

    def trouble(name: str, when: Any) -> None:
        if (name, when) == ("redeliver", "before") and stage.github.calls.count("redeliver") == 1:
            raise Refused("422")

    stage.github.trouble = trouble
    await stage.look()
    assert await counts(stage) == {"redeliveries{result=refused}": 1, "redeliveries{result=asked}": 1}
