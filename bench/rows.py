"""One figure and whether it is good enough: `Row`, its bar, and the order in which two things are measured in turns.

``ratio`` is always ``value / peer_value``, whichever way is better.  ``bar`` says what must hold, of the ratio where there
is a peer and of the value where there is none: ``>= 1.0``, ``<= 0.3``, ``<= 0``; empty where a figure is only shown.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import median
from typing import TypeVar

import msgspec
from rich.console import Console

_BAR = re.compile(r"(>=|<=) (\d+(?:\.\d+)?)")
_HOLDS = {">=": operator.ge, "<=": operator.le}
_T = TypeVar("_T")


class Figure(msgspec.Struct, frozen=True):
    """What a bench says beforehand that it will measure.  SPECIFICATION.md names figures; a test holds that they exist."""

    name: str
    unit: str
    bar: str = ""


class Row(msgspec.Struct, frozen=True, rename={"passed": "pass"}):
    """One entry of ``build/bench.json``.  ``value`` is None where it couldn't be measured; ``note`` says why, or how it was."""

    name: str
    value: float | None
    unit: str
    peer: str
    peer_value: float | None
    ratio: float | None
    bar: str
    passed: bool
    note: str = ""


class Bench(msgspec.Struct, frozen=True):
    """``measure`` yields one row for each of ``figures``; it writes what it is doing to the console."""

    figures: tuple[Figure, ...]
    measure: Callable[[Console], Iterable[Row]]


def row(figure: Figure, value: float, *, peer: str = "", peer_value: float | None = None, note: str = "") -> Row:
    """A measured figure, judged by its bar.  Raises ValueError for a peer without its figure, and the other way round."""
    if bool(peer) != (peer_value is not None):
        raise ValueError(f"{figure.name}: a peer and its figure come together")
    ratio = value / peer_value if peer_value else None
    judged = ratio if peer else value
    passed = judged is not None and holds(figure.bar, judged)
    return Row(figure.name, value, figure.unit, peer, peer_value, ratio, figure.bar, passed, note)


def failed(figure: Figure, why: str) -> Row:
    """A figure that couldn't be measured."""
    return Row(figure.name, None, figure.unit, "", None, None, figure.bar, passed=False, note=why)


def collect(bench: Bench, console: Console) -> list[Row]:
    """The rows of ``bench``: those that it measured, and a failed one for each that an error kept it from."""
    rows: list[Row] = []
    try:
        rows.extend(bench.measure(console))
        why = "it was not measured"
    except Exception as error:  # noqa: BLE001 - whatever goes wrong in one bench, the others run
        why = f"{type(error).__name__}: {error}"
        console.print_exception()
    measured = {one.name for one in rows}
    return rows + [failed(figure, why) for figure in bench.figures if figure.name not in measured]


def holds(bar: str, figure: float) -> bool:
    """Whether ``figure`` meets ``bar``; an empty bar is met by anything.  Raises ValueError for one that can't be read."""
    if not bar:
        return True
    match = _BAR.fullmatch(bar)
    if match is None:
        raise ValueError(f"{bar!r} is no bar: '>= NUMBER' or '<= NUMBER'")
    return bool(_HOLDS[match[1]](figure, float(match[2])))


def in_turns(rounds: int, measures: Sequence[Callable[[], _T]]) -> Iterator[tuple[int, _T]]:
    """Call each of ``measures`` once a round, in an order that turns with every round; yields its index and its result.

    Whoever comes second in a round may find the machine warmer, or hotter; over two rounds that cancels out.
    """
    for round_ in range(rounds):
        order = range(len(measures)) if round_ % 2 == 0 else reversed(range(len(measures)))
        for index in order:
            yield index, measures[index]()


def middles(rounds: int, measures: Sequence[Callable[[], float]]) -> list[float]:
    """The median of each of ``measures``, called in turns."""
    found: list[list[float]] = [[] for _ in measures]
    for index, figure in in_turns(rounds, measures):
        found[index].append(figure)
    return [middle(figures) for figures in found]


def middle(figures: Sequence[float]) -> float:
    """The median: one disturbed round doesn't move it."""
    return float(median(figures))


def middle_pair(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Both figures of the round whose ratio is the middle one (the lower of two).

    The two of a round were measured one right after the other, so what else the machine was doing is in both.
    """
    pairs = sorted(zip(ours, theirs, strict=True), key=lambda pair: pair[0] / pair[1])
    return pairs[(len(pairs) - 1) // 2]


def percentile(figures: Sequence[float], percent: float) -> float:
    """The smallest figure that at least ``percent`` of all don't exceed (nearest rank)."""
    ordered = sorted(figures)
    if not ordered:
        raise ValueError("no figures")
    rank = max(1, -(-len(ordered) * percent // 100))
    return ordered[int(rank) - 1]
