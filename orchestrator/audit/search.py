"""Finding events: filters over the days that a question spans, newest first, a page at a time.

Sealed days are asked for in DuckDB (`orchestrator.audit.engine`), newest days first, and older ones only as long as the
page isn't full.  Days that are open, or whose Parquet file isn't made or can't be read, are scanned line by line.  `Query`,
`find` and the cursor are what callers rely on; both ways give the same.
"""

from __future__ import annotations

import base64
import binascii
import heapq
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import structlog

from orchestrator.audit import days as day_files
from orchestrator.audit.frames import Frames
from orchestrator.audit.ledger import Ledger, event_of
from orchestrator.core.flow import Event
from orchestrator.core.names import same_repo
from orchestrator.system.day_lines import day_of

DAY_S = 86400.0
"""A host's clock may be ahead of ours by so much."""
LATE_S = 7 * DAY_S
"""A host that was cut off for so long still ships what it recorded: files are by the day of arrival, which is later."""
LIMIT = 100_000
FIRST_DAYS = 4
"""So many days are asked for first, then four times as many, and so on."""
BIG = 32 << 20
"""An open day's file of more bytes is read by DuckDB too."""

log = structlog.get_logger()


class BadCursor(ValueError):
    pass


class Query(msgspec.Struct, frozen=True, omit_defaults=True):
    """Empty fields don't filter.  ``host`` is the name that was asked for, or ``*.x`` for names below x.  ``repo`` is matched
    as GitHub matches names: upper and lower case are the same.

    ``since`` and ``until`` are seconds since the epoch: from ``since`` on and before ``until``.
    """

    job: int = 0
    repo: str = ""
    runner: str = ""
    host: str = ""
    verdict: str = ""
    gateway: str = ""
    since: float = 0.0
    until: float = 0.0

    def matches(self, event: Event) -> bool:
        return (
            (not self.job or event.who.job_id == self.job)
            and (not self.repo or same_repo(event.who.repo, self.repo))
            and (not self.runner or event.who.runner == self.runner)
            and (not self.verdict or event.verdict == self.verdict)
            and (not self.gateway or event.gateway == self.gateway)
            and (not self.since or event.ts >= self.since)
            and (not self.until or event.ts < self.until)
            and (not self.host or _names(self.host, event.host))
        )


class Page(msgspec.Struct, frozen=True):
    """``events`` in the order of time; ``cursor`` asks for the older ones before them, empty where there are none."""

    events: tuple[Event, ...]
    cursor: str = ""


Place = tuple[float, str, int]
"""Time, gateway, sequence number: a total order of all events."""


class _Day(NamedTuple):
    day: str
    stream: str
    file: Path | None
    """What DuckDB reads; None where the lines are scanned."""


def find(ledger: Ledger, query: Query, *, limit: int = 1000, cursor: str = "") -> Page:
    """The newest ``limit`` events that match, older than ``cursor`` where there is one.  Raises `BadCursor`."""
    limit = max(1, min(limit, LIMIT))
    before = _decode(cursor) if cursor else None
    streams = {stream: ledger.days(stream) for stream in ledger.streams(query.gateway)}
    newest: list[Event] = []
    for names in _chunks(_days({day for days in streams.values() for day in days}, query)):
        if len(newest) > limit and place_of(newest[-1])[0] > _end_of(names[0]) + DAY_S:
            break
        wanted = set(names)
        days = [_look(ledger, stream, day) for stream, there in streams.items() for day in there if day in wanted]
        newest = _newest([*newest, *_here(ledger, query, days, before, limit + 1)], before, limit + 1)
    page = newest[:limit][::-1]
    older = _encode(place_of(page[0])) if len(newest) > limit else ""
    return Page(tuple(page), older)


def place_of(event: Event) -> Place:
    return event.ts, event.gateway, event.seq


def _look(ledger: Ledger, stream: str, day: str) -> _Day:
    """How a day is read.  A Parquet file that is older than the lines holds what isn't there any more."""
    folder = ledger.folder / stream
    fresh, sealed, parquet = (
        _stat(name(folder, day)) for name in (day_files.open_file, day_files.sealed_file, day_files.parquet_file)
    )
    if fresh is None and sealed is not None and parquet is not None and parquet[1] >= sealed[1]:
        return _Day(day, stream, day_files.parquet_file(folder, day))
    if fresh is not None and sealed is None and fresh[0] > BIG:
        return _Day(day, stream, day_files.open_file(folder, day))
    return _Day(day, stream, None)


def _stat(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_size, status.st_mtime_ns


def _chunks(days: Iterable[str]) -> Iterator[Sequence[str]]:
    """``days``, newest first, in groups that grow: most questions are answered by the first few, and look at no others."""
    names = sorted(days, reverse=True)
    at, size = 0, FIRST_DAYS
    while at < len(names):
        yield names[at : at + size]
        at, size = at + size, size * 4


def _here(ledger: Ledger, query: Query, days: Sequence[_Day], before: Place | None, limit: int) -> list[Event]:
    """What matches in these days, or at least the newest ``limit`` of it."""
    found = _newest(_scan(ledger, query, (day for day in days if day.file is None)), before, limit)
    asked = [day for day in days if day.file is not None]
    return [*found, *_ask(ledger, query, asked, before, limit)] if asked else found


def _ask(ledger: Ledger, query: Query, chunk: Sequence[_Day], before: Place | None, limit: int) -> list[Event]:
    import duckdb

    files = [day.file for day in chunk if day.file is not None]
    sealed = [file for file in files if file.suffix == ".parquet"]
    fresh = [file for file in files if file.suffix != ".parquet"]
    where, values = _conditions(query, before)
    try:
        if fresh:
            return ledger.engine.select(sealed, fresh, where, values, limit)
        return _fetch(ledger.engine.places(sealed, where, values, limit), query)
    except (duckdb.Error, OSError, ValueError) as error:  # removed or spoiled meanwhile: the lines say the same, slowly
        log.error("search_engine_failed", error=str(error)[:500])  # noqa: TRY400 - says it all
        return _newest(_scan(ledger, query, chunk), before, limit)


def _fetch(places: Iterable[tuple[str, int]], query: Query) -> list[Event]:
    """The events at these places, out of the compressed lines.  Raises ValueError where one isn't there, and OSError."""
    decoder = msgspec.json.Decoder(Event)
    by_file: dict[str, list[int]] = {}
    for file, seq in places:
        by_file.setdefault(file, []).append(seq)
    events = []
    for file, seqs in by_file.items():
        parquet = Path(file)
        found = Frames(day_files.sealed_file(parquet.parent, parquet.stem)).lines(seqs)
        for seq in seqs:
            event = event_of(found.get(seq, b""), decoder)
            if event is None or not query.matches(event):
                raise ValueError(f"{file} names record {seq}, and the lines don't have it")
            events.append(event)
    return events


def _conditions(query: Query, before: Place | None) -> tuple[list[str], list[Any]]:
    """`Query.matches` in SQL."""
    given: list[tuple[str, tuple[Any, ...]]] = []
    for column, value in (
        ("who_job_id", query.job),
        ("who_runner", query.runner),
        ("verdict", query.verdict),
        ("gateway", query.gateway),
    ):
        if value:
            given.append((f"{column} = ?", (value,)))
    if query.repo:
        given.append(("lower(who_repo) = ?", (query.repo.lower(),)))
    if query.since:
        given.append(("ts >= ?", (query.since,)))
    if query.until:
        given.append(("ts < ?", (query.until,)))
    if query.host.startswith("*."):
        given.append(("ends_with(host, ?) AND length(host) > ?", (query.host[1:], len(query.host) - 1)))
    elif query.host:
        given.append(("host = ?", (query.host,)))
    if before is not None:
        ts, gateway, seq = before
        later = "ts <= ? AND (ts < ? OR (gateway < ? OR (gateway = ? AND seq < ?)))"
        given.append((later, (ts, ts, gateway, gateway, seq)))
    return [sql for sql, _ in given], [value for _, values in given for value in values]


def _newest(events: Iterable[Event], before: Place | None, limit: int) -> list[Event]:
    wanted = (event for event in events if before is None or place_of(event) < before)
    return heapq.nlargest(limit, wanted, key=place_of)


def _scan(ledger: Ledger, query: Query, days: Iterable[_Day]) -> Iterator[Event]:
    decoder = msgspec.json.Decoder(Event)
    needles, repo = _needles(query), _repo_needle(query)
    for day in days:
        for line in ledger.lines(day.stream, day.day):
            if not all(needle in line for needle in needles) or (repo is not None and repo.search(line) is None):
                continue
            event = event_of(line, decoder)
            if event is not None and query.matches(event):
                yield event


def _end_of(day: str) -> float:
    return datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() + DAY_S


def _days(days: Iterable[str], query: Query) -> list[str]:
    first = day_of(max(0.0, query.since - DAY_S)) if query.since else ""
    last = day_of(query.until + LATE_S) if query.until else "9999-99-99"
    return [day for day in days if first <= day <= last]


def _needles(query: Query) -> list[bytes]:
    """Bytes that every matching line must have: most lines are passed over without being decoded."""
    texts = [query.runner, query.verdict, query.host.removeprefix("*.")]
    needles = [text.encode("utf-8") for text in texts if text.isascii() and text and '"' not in text]
    return [*needles, str(query.job).encode()] if query.job else needles


def _repo_needle(query: Query) -> re.Pattern[bytes] | None:
    plain = query.repo.isascii() and query.repo and '"' not in query.repo
    return re.compile(re.escape(query.repo.encode()), re.IGNORECASE) if plain else None


def _names(pattern: str, name: str) -> bool:
    if pattern.startswith("*."):
        return name.endswith(pattern[1:]) and len(name) > len(pattern) - 1
    return name == pattern


def _encode(place: Place) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode("ascii")


def _decode(cursor: str) -> Place:
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(cursor), type=tuple[float, str, int])
    except (msgspec.MsgspecError, binascii.Error, ValueError) as error:
        raise BadCursor(f"not a cursor of ours: {cursor[:80]!r}") from error
