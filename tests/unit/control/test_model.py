"""A model of the lifecycle, played against the store and the reconciler as they are: what happens is chosen by chance and by
hypothesis, and what must be so stands in `oracle.py`.

Only Redis and GitHub are stood in for, both in memory and both held to the real ones by contract tests, and the machine's clock.

``MODEL_HISTORIES=20000`` plays so many, new ones each time and on all processors; without it the same few are played in every run.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from . import histories
from .deeds import DEEDS, PLANS, Deed, Plan, Play
from .found import KEPT
from .histories import CI_HISTORIES, Theatre, first_fault, processes, theatre

HISTORIES = int(os.environ.get("MODEL_HISTORIES", "0"))
BY_HYPOTHESIS = min(HISTORIES // 20, 500) or 25


@pytest.fixture(scope="module")
def stage() -> Iterator[Theatre]:
    with theatre() as made:
        yield made


def test_thousands_of_histories(stage: Theatre) -> None:
    """Where one finds something, it is made short and shown as it can be kept below."""
    if HISTORIES:
        first = random.SystemRandom().randrange(1_000_000, 1_000_000_000)
        found = first_fault(range(first, first + HISTORIES), processes())
    else:
        found = stage.first_fault(range(CI_HISTORIES))
    assert found is None, str(found)


class Lifecycle(RuleBasedStateMachine):
    """The deeds as rules, added below."""

    theatre: Theatre
    play: Play | None = None

    @initialize(**{name: st.sampled_from(values) for name, values in PLANS.items()})
    def set_up(self, **plan: Any) -> None:
        self.play = self.theatre.begin(Plan(**plan))

    def teardown(self) -> None:
        if self.play is not None:
            self.play.settle()


def _rule(one: Deed) -> Any:
    def played(self: Lifecycle, **arguments: Any) -> None:
        assert self.play is not None
        self.play.play(one.name, arguments)

    played.__name__ = one.name
    choices = {name: st.sampled_from(values) for name, values in one.choices.items()}
    return precondition(lambda self: self.play is not None and one.when(self.play))(rule(**choices)(played))


for _name, _deed in DEEDS.items():
    setattr(Lifecycle, _name, _rule(_deed))


def test_histories_that_hypothesis_chooses(stage: Theatre) -> None:
    Lifecycle.theatre = stage
    chosen = settings(
        max_examples=BY_HYPOTHESIS,
        derandomize=not HISTORIES,
        stateful_step_count=20,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    run_state_machine_as_test(Lifecycle, settings=chosen)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("name", KEPT)
def test_what_was_found_once(name: str, stage: Theatre) -> None:
    plan, steps = KEPT[name]
    stage.replay(plan, steps)


def test_a_history_that_goes_on_and_on_is_found(stage: Theatre, monkeypatch: pytest.MonkeyPatch) -> None:
    def settle(_: Play) -> None:
        while True:
            pass

    monkeypatch.setattr(Play, "settle", settle)
    monkeypatch.setattr(histories, "ENDLESS_S", 0.05)
    found = stage.first_fault(range(1))
    assert found is not None
    assert "it goes on" in found.why
