"""Plays histories by chance: thousands of them, each from its seed, and makes one that finds something as short as it can.

Hypothesis chooses the same deeds (`test_model.py`) with more wit and takes as long for that as the history itself; here a choice
costs nothing.

A history that doesn't end is found too: where everybody waits for nothing by `AtOnce`, and where one goes on and on by the processor
time that it takes.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import tempfile
from collections.abc import Iterator
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
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
ENDLESS_S = 30.0
"""Of processor time; a history takes some hundredths of a second."""


class Found(AssertionError):
    """A history that isn't as it must be."""

    def __init__(self, why: str, plan: Plan, steps: list[Step]) -> None:
        super().__init__(why)
        self.plan = plan
        self.steps = steps


class Endless(AssertionError):
    """A history goes on and on."""


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
        with _that_ends():
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
            with _that_ends():
                self._play(rng, self.begin(plan), steps)
        except Exception as error:
            raise Found(f"{type(error).__name__}: {error}", plan, steps) from error

    def _play(self, rng: random.Random, play: Play, steps: list[Step]) -> None:
        """``steps``: takes what is played."""
        kept = [one for one in DEEDS.values() if one.weight >= ALWAYS or rng.random() < SHARE]
        weights = [one.weight for one in kept]
        for name in [one.name for one in rng.choices(kept, weights, k=rng.randint(4, LONGEST))]:
            step = name, {key: rng.choice(values) for key, values in DEEDS[name].choices.items()}
            if DEEDS[name].when(play):
                steps.append(step)
                play.play(*step)
        play.settle()

    def first_fault(self, seeds: range) -> Kept | None:
        """Of the histories of ``seeds``; None where all are as they must be."""
        for seed in seeds:
            try:
                self.chance(seed)
            except Found as found:
                if isinstance(found.__cause__, Endless):
                    return Kept(seed, found.plan, found.steps, str(found))
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
    """As `Theatre.first_fault`, of whichever of so many processes finds one first.  Raises RuntimeError where one dies at it.

    Each has a share of the seeds, a pipe of its own, and nothing in common with the others: one that is ended, or dies,
    holds nobody up.
    """
    context = get_context("spawn")
    playing: dict[Connection, BaseProcess] = {}
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        try:
            for number in range(processes):
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(
                    target=_play_share, args=(seeds[number::processes], folder, theirs), daemon=True
                )
                process.start()
                theirs.close()
                playing[ours] = process
            return _first_told(playing)
        finally:
            for ours, process in playing.items():
                process.terminate()
                process.join()
                ours.close()


def _first_told(playing: dict[Connection, BaseProcess]) -> Kept | None:
    left = dict(playing)
    while left:
        ready = wait(list(left))
        for ours in [one for one in left if one in ready]:
            process = left.pop(ours)
            try:
                found: Kept | None = ours.recv()
            except EOFError:
                process.join()
                raise RuntimeError(f"a process that plays histories died: {process.exitcode}") from None
            if found is not None:
                return found
    return None


def _play_share(seeds: range, folder: str, told: Connection) -> None:
    """In a theatre of its own, anew for each few; not for a parent that is gone."""
    parent = parent_process()
    for at in range(0, len(seeds), AT_A_TIME):
        if parent is not None and not parent.is_alive():
            return
        with theatre(folder) as stage:
            found = stage.first_fault(seeds[at : at + AT_A_TIME])
        if found is not None:
            told.send(found)
            return
    told.send(None)


def processes() -> int:
    """As many as there are processors for this process."""
    return len(os.sched_getaffinity(0))


@contextlib.contextmanager
def theatre(within: str | None = None) -> Iterator[Theatre]:
    """Without a log; and what is made of policy files, of which there are two, is made once.  ``within``: a folder for its own."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    with (
        _once(policies, "read_policy"),
        _once(policies, "effective_policy"),
        _once(policies, "baseline_policy"),
        tempfile.TemporaryDirectory(dir=within or _memory()) as folder,
    ):
        made = Theatre(Path(folder))
        try:
            yield made
        finally:
            made.close()
            structlog.configure(**before)


def _memory() -> Path | None:
    return IN_MEMORY if IN_MEMORY.is_dir() else None


@contextlib.contextmanager
def _that_ends() -> Iterator[None]:
    """Raises Endless within, where it takes too much of the processor; again and again, should somebody catch that."""

    def over(*_: object) -> None:
        raise Endless(f"it goes on after {ENDLESS_S:g} s of processor time")

    before = signal.signal(signal.SIGVTALRM, over)
    signal.setitimer(signal.ITIMER_VIRTUAL, ENDLESS_S, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        signal.signal(signal.SIGVTALRM, before)


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
