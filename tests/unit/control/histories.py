"""Plays histories by chance: thousands of them, each from its seed, and makes one that finds something as short as it can.

Hypothesis chooses the same deeds (`test_model.py`) with more wit and takes as long for that as the history itself; here a choice
costs nothing.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import structlog

from orchestrator.control import policies
from tests.chaos.clockwork import Loop

from .deeds import DEEDS, PLANS, Plan, Play

Step = tuple[str, dict[str, Any]]
LONGEST = 40
ALWAYS, SHARE = 4, 0.3
"""Each history has all deeds of that weight, and of the others so many: one trouble doesn't drown another then."""
CI_HISTORIES = 250
"""So many are played in each run of the tests."""
IN_MEMORY = Path("/dev/shm")


class Found(AssertionError):
    """A history that isn't as it must be."""

    def __init__(self, why: str, plan: Plan, steps: list[Step]) -> None:
        super().__init__(why)
        self.plan = plan
        self.steps = steps


class Theatre:
    """Where histories are played: one event loop that never waits, and one folder, in memory where there is one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loop = Loop()

    def close(self) -> None:
        self._loop.close()

    def begin(self, plan: Plan) -> Play:
        return Play(self._folder, self._loop, plan)

    def replay(self, plan: Plan, steps: list[Step]) -> None:
        play = self.begin(plan)
        for name, arguments in steps:
            play.play(name, arguments)
        play.settle()

    def chance(self, seed: int) -> None:
        """Play the history of ``seed``.  Raises Found."""
        rng = random.Random(seed)
        plan = Plan(**{name: rng.choice(values) for name, values in PLANS.items()})
        steps: list[Step] = []
        try:
            play = self.begin(plan)
            kept = [one for one in DEEDS.values() if one.weight >= ALWAYS or rng.random() < SHARE]
            weights = [one.weight for one in kept]
            for name in [one.name for one in rng.choices(kept, weights, k=rng.randint(4, LONGEST))]:
                step = name, {key: rng.choice(values) for key, values in DEEDS[name].choices.items()}
                if DEEDS[name].when(play):
                    steps.append(step)
                    play.play(*step)
            play.settle()
        except Exception as error:
            raise Found(f"{type(error).__name__}: {error}", plan, steps) from error

    def shortest(self, plan: Plan, steps: list[Step]) -> tuple[Plan, list[Step], str]:
        """Leave out whatever the fault doesn't need, of the deeds and of the plan."""
        size = max(1, len(steps) // 2)
        why = self.fault(plan, steps) or "it doesn't happen again"
        while size:
            at = 0
            while at < len(steps):
                fewer = steps[:at] + steps[at + size :]
                fault = self.fault(plan, fewer)
                if fault:
                    steps, why = fewer, fault
                else:
                    at += size
            size //= 2
        return plan, steps, why

    def fault(self, plan: Plan, steps: list[Step]) -> str:
        """What is wrong with a history; empty where nothing is."""
        try:
            self.replay(plan, steps)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
            return f"{type(error).__name__}: {error}"
        return ""


@contextlib.contextmanager
def theatre() -> Iterator[Theatre]:
    """Without a log; and each policy file, of which there are two, is read once."""
    read: dict[tuple[bytes, str], Any] = {}
    really = policies.read_policy

    def once(text: bytes, **given: Any) -> Any:
        key = (text, given["source"])
        if key not in read:
            read[key] = really(text, **given)
        return read[key]

    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    policies.read_policy = once
    with tempfile.TemporaryDirectory(dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as folder:
        made = Theatre(Path(folder))
        try:
            yield made
        finally:
            made.close()
            policies.read_policy = really
            structlog.configure(**before)
