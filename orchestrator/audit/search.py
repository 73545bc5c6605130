"""Finding events: filters over the days that a question spans, newest first, a page at a time.

What is asked decides what is read: days outside the span aren't opened.  The engine may change (a year of history asks
for more than files of lines); `Query`, `find` and the cursor are what callers rely on.
"""

from __future__ import annotations

import base64
import binascii
import heapq
from collections.abc import Iterable, Iterator

import msgspec

from orchestrator.audit.ledger import Ledger, event_of
from orchestrator.core.flow import Event
from orchestrator.system.day_lines import day_of

DAY_S = 86400.0
"""A host's clock may be ahead of ours by so much."""
LATE_S = 7 * DAY_S
"""A host that was cut off for so long still ships what it recorded: files are by the day of arrival, which is later."""
LIMIT = 100_000


class BadCursor(ValueError):
    pass


class Query(msgspec.Struct, frozen=True, omit_defaults=True):
    """Empty fields don't filter.  ``host`` is the name that was asked for, or ``*.x`` for names below x.

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
            and (not self.repo or event.who.repo == self.repo)
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


def find(ledger: Ledger, query: Query, *, limit: int = 1000, cursor: str = "") -> Page:
    """The newest ``limit`` events that match, older than ``cursor`` where there is one.  Raises `BadCursor`."""
    limit = max(1, min(limit, LIMIT))
    before = _decode(cursor) if cursor else None
    matching = ((place_of(event), event) for event in _scan(ledger, query))
    wanted = (item for item in matching if before is None or item[0] < before)
    newest = heapq.nlargest(limit + 1, wanted, key=lambda item: item[0])
    page = sorted(newest[:limit], key=lambda item: item[0])
    older = _encode(page[0][0]) if len(newest) > limit else ""
    return Page(tuple(event for _, event in page), older)


def place_of(event: Event) -> Place:
    return event.ts, event.gateway, event.seq


def _scan(ledger: Ledger, query: Query) -> Iterator[Event]:
    decoder = msgspec.json.Decoder(Event)
    needles = _needles(query)
    for stream in ledger.streams(query.gateway):
        for day in _days(ledger.days(stream), query):
            for line in ledger.lines(stream, day):
                if not all(needle in line for needle in needles):
                    continue
                event = event_of(line, decoder)
                if event is not None and query.matches(event):
                    yield event


def _days(days: Iterable[str], query: Query) -> list[str]:
    first = day_of(max(0.0, query.since - DAY_S)) if query.since else ""
    last = day_of(query.until + LATE_S) if query.until else "9999-99-99"
    return [day for day in days if first <= day <= last]


def _needles(query: Query) -> list[bytes]:
    """Bytes that every matching line must have: most lines are passed over without being decoded."""
    texts = [query.repo, query.runner, query.verdict, query.host.removeprefix("*.")]
    needles = [text.encode("utf-8") for text in texts if text.isascii() and text and '"' not in text]
    return [*needles, str(query.job).encode()] if query.job else needles


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
