"""How long a job waits for its machine: booted cold, cloned from a template, or waiting already, in one run.

From the accepted delivery to the runner's process, and to the release of the first step; and what a machine has to itself
while a job runs in it.  ``BENCH_STARTS=N`` makes N starts of each kind, in place of 30; where machines are emulated these take
half an hour.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from rich.console import Console

from bench import start_memory
from bench.machine import scratch
from bench.rows import Bench, Figure, Row, percentile, row
from bench.start_jobs import KINDS, Kind, lab_of_three, order_of, phases, span, start
from bench.start_memory import while_running
from orchestrator.surface.timeline import MILESTONES

STARTS: dict[Kind, int] = {"cold": 30, "clone": 30, "warm": 30}
ACCEPTED = MILESTONES[0][0]
SPANS = {"to_runner": "runner_started", "to_first_step": "steps_released"}
BARS: dict[Kind, tuple[str, Kind]] = {"clone": ("<= 0.30", "cold"), "warm": ("<= 0.9", "clone")}
PERCENTS = (50, 95, 99)

Starts = dict[Kind, list[dict[str, float]]]


def name_of(kind: Kind, what: str, percent: int) -> str:
    return f"start_{kind}_{what}_p{percent}"


def _figures() -> tuple[Figure, ...]:
    found = [
        Figure(name_of(kind, what, percent), "s", BARS[kind][0] if percent == 50 and kind in BARS else "")
        for kind in KINDS
        for what in SPANS
        for percent in PERCENTS
    ]
    ends = (Figure(f"job_end_to_proof_{kind}_p{percent}", "s") for kind in KINDS for percent in PERCENTS)
    return (*found, *ends)


FIGURES = {figure.name: figure for figure in _figures()}


def measure(console: Console) -> Iterable[Row]:
    counts = counts_of(os.environ.get("BENCH_STARTS", ""))
    starts: Starts = {kind: [] for kind in KINDS}
    with scratch("start") as folder, lab_of_three(folder / "logs") as lab:
        for number, kind in enumerate(order := order_of(counts), 1):
            starts[kind].append(start(lab, kind))
            took = span(starts[kind][-1], ACCEPTED, "runner_started")
            console.print(f"  {number} of {len(order)}: {kind}, {took:.2f} s to the runner", highlight=False)
        console.print("  what a machine has to itself while a job runs in it")
        beside = list(while_running(lab))
    yield from (*rows_of(starts), *beside)


def counts_of(asked: str) -> dict[Kind, int]:
    """How many starts of each kind; ``asked`` is ``BENCH_STARTS``.  Raises ValueError for what is no count."""
    if not asked:
        return dict(STARTS)
    if int(asked) < 1:
        raise ValueError(f"BENCH_STARTS={asked}: at least 1")
    return dict.fromkeys(KINDS, int(asked))


def rows_of(starts: Starts) -> Iterable[Row]:
    for kind in KINDS:
        for what, last in SPANS.items():
            times = [span(found, ACCEPTED, last) for found in starts[kind]]
            for percent in PERCENTS:
                yield _row(starts, kind, what, percent, times)
        ends = [span(found, "JobCompleted", "GONE") for found in starts[kind]]
        for percent in PERCENTS:
            yield row(FIGURES[f"job_end_to_proof_{kind}_p{percent}"], percentile(ends, percent), note=_spread(ends))


def _row(starts: Starts, kind: Kind, what: str, percent: int, times: Sequence[float]) -> Row:
    figure, value = FIGURES[name_of(kind, what, percent)], percentile(times, percent)
    note = f"{len(times)} starts"
    if percent == 50:
        note = f"{_spread(times)}; {phases(starts[kind], SPANS[what])}"
    if kind not in BARS:
        return row(figure, value, note=note)
    other = BARS[kind][1]
    beside = percentile([span(found, ACCEPTED, SPANS[what]) for found in starts[other]], percent)
    return row(figure, value, peer=f"{other} start, same run", peer_value=beside, note=note)


def _spread(times: Sequence[float]) -> str:
    return f"{len(times)} starts, {min(times):.2f} to {max(times):.2f} s"


BENCH = Bench((*FIGURES.values(), *start_memory.FIGURES), measure)
