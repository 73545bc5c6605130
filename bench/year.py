"""A year of history: ten million events on 365 days and four hosts, every filter of `ironcd audit egress`, and the daily deleting.

The questions are asked as the API asks them, each for the newest thousand.  The peer reads the compressed lines, newest day
first until it has as many, looks for the bytes, and decodes the lines that have them.  Where nothing but the whole year
answers, that is measured once for all such questions: it takes as long whatever is looked for.  `BENCH_YEAR_EVENTS` makes
the year another size; the bars are for the whole one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import zstandard
from rich.console import Console

from bench.machine import scratch
from bench.record import DAY_S, NAMES
from bench.rows import Bench, Figure, Row, middle, row
from bench.year_make import BLOCKED, day_of, job_at, name_of, runner_of
from orchestrator.audit import Ledger, Query, days, retain
from orchestrator.audit.search import find
from orchestrator.core.flow import Event
from orchestrator.core.retention import Retention
from orchestrator.system.files import write_atomic

DAYS = 365
GATEWAYS = 4
EVENTS = 10_000_000
LIMIT = 1000
DAY = 200
"""The one that is asked for."""
ASKED = 5

BY_HOST = Figure("year_query_by_host", "ms", bar="<= 0.2")
BY_JOB = Figure("year_query_by_job", "ms", bar="<= 0.2")
BY_VM = Figure("year_query_by_vm", "ms", bar="<= 0.2")
NOTHING = Figure("year_query_that_finds_nothing", "ms", bar="<= 0.2")
BY_DAY = Figure("year_query_by_day", "ms", bar="<= 2.0")
BY_REPO = Figure("year_query_by_repo", "ms", bar="<= 2.0")
BY_VERDICT = Figure("year_query_by_verdict", "ms", bar="<= 2.0")
RETAIN = Figure("year_retain", "ms", bar="<= 0.2")
FIGURES = (BY_HOST, BY_JOB, BY_VM, NOTHING, BY_DAY, BY_REPO, BY_VERDICT, RETAIN)
WHOLE = (BY_HOST, BY_JOB, BY_VM, NOTHING)
"""Nothing but the whole year answers these."""


def measure(console: Console) -> Iterable[Row]:
    per_day = int(os.environ.get("BENCH_YEAR_EVENTS", EVENTS)) // DAYS // GATEWAYS
    first = (int(time.time()) // DAY_S - DAYS - 1) * DAY_S
    with scratch("year") as folder:
        began = time.perf_counter()
        make_year(folder, first, per_day)
        console.print(f"  {DAYS * GATEWAYS * per_day:,} events made and sealed in {time.perf_counter() - began:.0f} s")
        yield from _questions(Year(folder, first, per_day), console)


class Year:
    """What was made, and what is asked of it."""

    def __init__(self, folder: Path, first: int, per_day: int) -> None:
        self.folder = folder
        self.first = first
        self.per_day = per_day
        self.ledger = Ledger(folder)
        self.job_day = 180
        self.vm_day = 100

    @property
    def size(self) -> str:
        sizes = {
            form: sum(path.stat().st_size for path in self.folder.rglob(f"*.{form}")) for form in ("zst", "parquet")
        }
        events = f"{DAYS * GATEWAYS * self.per_day:,} events, {DAYS} days, {GATEWAYS} hosts"
        return f"{events}; lines {sizes['zst'] >> 20} MiB, Parquet {sizes['parquet'] >> 20} MiB"

    def questions(self) -> Iterator[tuple[Figure, Query, bytes]]:
        """Each with the bytes that its answers have."""
        begin = self.first + DAY * DAY_S
        rare, often = name_of(NAMES - 7), name_of(BLOCKED)
        yield BY_HOST, Query(host=rare), _text(rare)
        yield BY_JOB, Query(job=job_at(2, self.job_day * self.per_day)), b""
        yield BY_VM, Query(runner=runner_of(job_at(1, self.vm_day * self.per_day))), b""
        yield NOTHING, Query(host="nothing.example"), b""
        yield BY_DAY, Query(since=begin, until=begin + DAY_S, host=often), _text(often)
        yield BY_REPO, Query(repo="acme/repo7"), _text("acme/repo7")
        yield BY_VERDICT, Query(verdict="blocked"), _text("blocked")

    def grep(self, figure: Figure, needle: bytes) -> float:
        """Seconds that the peer takes."""
        numbers = [DAY] if figure is BY_DAY else range(DAYS - 1, -1, -1)
        decoder = msgspec.json.Decoder(Event)
        began = time.perf_counter()
        found: list[Event] = []
        for number in numbers:
            for gateway in range(GATEWAYS):
                path = days.sealed_file(self.folder / f"metal-{gateway}", day_of(self.first, number))
                with path.open("rb") as file:
                    text = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read()
                if needle in text:
                    found += [decoder.decode(line) for line in text.split(b"\n") if needle in line]
            if len(found) >= LIMIT:
                break
        took = time.perf_counter() - began
        assert found
        return took


def make_year(folder: Path, first: int, per_day: int) -> None:
    """Two processes, each for half of the hosts.  Raises RuntimeError where one fails."""
    argv = [sys.executable, "-m", "bench.year_make", str(folder), str(first), str(DAYS), str(per_day)]
    halves = [list(map(str, range(start, GATEWAYS, 2))) for start in (0, 1)]
    makers = [subprocess.Popen([*argv, *half]) for half in halves]
    if any(maker.wait() for maker in makers):
        raise RuntimeError("the year couldn't be made")


def _questions(year: Year, console: Console) -> Iterator[Row]:
    size = year.size
    whole = 0.0
    for figure, query, needle in year.questions():
        took, found = ask(year.ledger, query)
        if figure is BY_HOST:
            whole = year.grep(figure, needle) * 1e3
        peer = whole if figure in WHOLE else middle([year.grep(figure, needle) for _ in range(ASKED)]) * 1e3
        console.print(f"  {figure.name}: {took:.1f} ms, {found} found; reading the lines {peer:.0f} ms")
        yield row(
            figure, took, peer="reading the compressed lines" + (" of the year" if figure in WHOLE else ""), peer_value=peer,
            note=f"newest {LIMIT}, {found} found; {size}",
        )  # fmt: skip
    took, deleted = retain_a_day(year)
    console.print(f"  {RETAIN.name}: {took:.0f} ms, {deleted:,} records deleted")
    yield row(
        RETAIN, took, peer="reading the year's compressed lines", peer_value=whole,
        note=f"a daily run: {deleted:,} records of one day go from all hosts, and all other days are left unread",
    )  # fmt: skip
    year.ledger.engine.close()


def ask(ledger: Ledger, query: Query) -> tuple[float, int]:
    """Milliseconds, and how many were found.  The first time isn't counted: it loads the engine."""
    found = len(find(ledger, query, limit=LIMIT).events)
    took = []
    for _ in range(ASKED):
        began = time.perf_counter()
        find(ledger, query, limit=LIMIT)
        took.append((time.perf_counter() - began) * 1e3)
    return middle(took), found


def _text(value: str) -> bytes:
    """As it stands in a line."""
    return f'"{value}"'.encode()


def retain_a_day(year: Year) -> tuple[float, int]:
    """Milliseconds of the run in which the year's first day has become too old; how many records it deleted.

    Every day was looked at when it was sealed, and says when its first record is over.
    """
    retention = Retention()
    for gateway in range(GATEWAYS):
        for number in range(DAYS):
            due = year.first + number * DAY_S + retention.keep.egress_days * DAY_S
            place = year.folder / f"metal-{gateway}"
            write_atomic(
                place / f"{day_of(year.first, number)}.next.json", msgspec.json.encode(retain.Next(due, retention))
            )
    now = year.first + DAY_S + retention.keep.egress_days * DAY_S - 1
    began = time.perf_counter()
    done = list(retain.retain(year.folder, year.ledger.engine, retention, now))
    took = (time.perf_counter() - began) * 1e3
    gone = days.parquet_file(year.folder / "metal-0", day_of(year.first, 0))
    assert gone.exists()
    return took, sum(one.records for one in done)


BENCH = Bench(FIGURES, measure)
