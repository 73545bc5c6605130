"""Plays histories by chance: thousands of them, each from its seed, and makes one that finds something as short as it can.

Hypothesis chooses the same deeds (`test_model.py`) with more wit and takes as long for that as the history itself; here a choice
costs nothing.
"""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec
import structlog

from orchestrator.control import policies

from .at_once import AtOnce
from .deeds import DEEDS, PLANS, Plan, Play

Step = tuple[str, dict[str, Any]]
LONGEST = 40
ALWAYS, SHARE = 4, 0.3
"""Each history has all deeds of that weight, and of the others so many: one trouble doesn't drown another then."""
CI_HISTORIES = 400
"""So many are played in each run of the tests."""
IN_MEMORY = Path("/dev/shm")


class Found(AssertionError):
    """A history that isn't as it must be."""

    def __init__(self, why: str, plan: Plan, steps: list[Step]) -> None:
        super().__init__(why)
        self.plan = plan
        self.steps = steps


class Kept(msgspec.Struct, frozen=True):
    """A history that isn't as it must be, as short as it could be made."""

    seed: int
    plan: Plan
    steps: list[Step]
    why: str

    def __str__(self) -> str:
        lines = "".join(f"    {step!r},\n" for step in self.steps)
        return f"seed {self.seed}: {self.why}\n{self.plan!r},\n[\n{lines}]"


class Theatre:
    """Where histories are played: one event loop that never waits, and one folder, in memory where there is one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loop = AtOnce()

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

    def first_fault(self, seeds: range) -> Kept | None:
        """Of the histories of ``seeds``; None where all are as they must be."""
        for seed in seeds:
            try:
                self.chance(seed)
            except Found as found:
                return Kept(seed, *self.shortest(found.plan, found.steps))
        return None

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


AT_A_TIME = 50


def first_fault(seeds: range, processes: int) -> Kept | None:
    """As `Theatre.first_fault`, of whichever process finds one first.  Each has a theatre of its own, and is a fresh process."""
    parts = [seeds[at : at + AT_A_TIME] for at in range(0, len(seeds), AT_A_TIME)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        playing = [pool.submit(_play_part, part) for part in parts]
        for done in as_completed(playing):
            found = done.result()
            if found is not None:
                pool.shutdown(wait=False, cancel_futures=True)
                return found
    return None


def _play_part(seeds: range) -> Kept | None:
    with theatre() as stage:
        return stage.first_fault(seeds)


def processes() -> int:
    """As many as there are processors for this process."""
    return len(os.sched_getaffinity(0))


@contextlib.contextmanager
def theatre() -> Iterator[Theatre]:
    """Without a log; and what is made of policy files, of which there are two, is made once."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    with (
        _once(policies, "read_policy"),
        _once(policies, "effective_policy"),
        _once(policies, "baseline_policy"),
        tempfile.TemporaryDirectory(dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as folder,
    ):
        made = Theatre(Path(folder))
        try:
            yield made
        finally:
            made.close()
            structlog.configure(**before)


def _said(argument: Any) -> Any:
    if isinstance(argument, dict):
        return msgspec.json.encode(argument, order="deterministic")
    return argument if isinstance(argument, (bytes, str)) else id(argument)


@contextlib.contextmanager
def _once(module: Any, name: str) -> Iterator[None]:
    """Have a pure function called once for each of its arguments: texts and dictionaries by what they say, others by which they are."""
    known: dict[Any, tuple[Any, Any]] = {}
    really = getattr(module, name)

    def once(*arguments: Any, **named: Any) -> Any:
        given = (*arguments, *named.values())
        key = tuple(_said(one) for one in given)
        if key not in known:
            known[key] = given, really(*arguments, **named)
        return known[key][1]

    setattr(module, name, once)
    try:
        yield
    finally:
        setattr(module, name, really)
