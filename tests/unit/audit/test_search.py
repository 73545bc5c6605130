"""Filters, the order of time, and pages that neither lose nor repeat."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.audit import Ledger, Query
from orchestrator.audit.search import BadCursor, find
from orchestrator.core.flow import Identity

from .conftest import DAY, Clock, batch, event

OTHER = Identity(runner="S", org="acme", repo="acme/other", job_id=12)


async def fill(ledger: Ledger) -> None:
    await ledger.receive(
        batch(
            event(1),
            event(2, verdict="blocked", host="evil.example"),
            event(3, who=OTHER),
            event(4, host="a.b.allowed.example"),
        )
    )
    await ledger.receive(batch(event(1, gateway="h2", ts=DAY + 2.5, verdict="warn"), host="h2"))


def seqs_of(events: Any) -> list[tuple[str, int]]:
    return [(item.gateway, item.seq) for item in events]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (Query(), [("h1", 1), ("h1", 2), ("h2", 1), ("h1", 3), ("h1", 4)]),
        (Query(job=12), [("h1", 3)]),
        (Query(repo="acme/other"), [("h1", 3)]),
        (Query(repo="Acme/OTHER"), [("h1", 3)]),
        (Query(repo="acme/othe"), []),
        (Query(runner="S"), [("h1", 3)]),
        (Query(verdict="blocked"), [("h1", 2)]),
        (Query(verdict="warn"), [("h2", 1)]),
        (Query(gateway="h2"), [("h2", 1)]),
        (Query(since=DAY + 3), [("h1", 3), ("h1", 4)]),
        (Query(until=DAY + 2), [("h1", 1)]),
        (Query(job=11, verdict="allowed", since=DAY + 2), [("h1", 4)]),
        (Query(repo="nobody/nothing"), []),
    ],
)
async def test_filters(query: Query, expected: list[tuple[str, int]], ledger: Ledger) -> None:
    await fill(ledger)
    assert seqs_of(find(ledger, query).events) == expected


async def test_names_and_names_below(ledger: Ledger) -> None:
    names = ["allowed.example", "a.allowed.example", "notallowed.example", "evil.example"]
    events = [event(seq, host=name) for seq, name in enumerate(names, start=1)]
    await ledger.receive(batch(*events))
    assert [e.host for e in find(ledger, Query(host="allowed.example")).events] == ["allowed.example"]
    assert [e.host for e in find(ledger, Query(host="*.allowed.example")).events] == ["a.allowed.example"]


async def test_pages(ledger: Ledger) -> None:
    await ledger.receive(batch(*(event(seq) for seq in range(1, 26))))
    seen: list[int] = []
    cursor = ""
    for _ in range(10):
        page = find(ledger, Query(), limit=10, cursor=cursor)
        seen = [e.seq for e in page.events] + seen
        cursor = page.cursor
        if not cursor:
            break
    assert seen == list(range(1, 26))


async def test_a_cursor_that_isnt_ours(ledger: Ledger) -> None:
    for cursor in ("x", "e30=", "W10="):
        with pytest.raises(BadCursor):
            find(ledger, Query(), cursor=cursor)


async def test_late_arrivals_are_found_by_their_own_time(ledger: Ledger, clock: Clock) -> None:
    clock.now += 3 * 86400
    await ledger.receive(batch(event(1)))
    assert len(find(ledger, Query(since=DAY, until=DAY + 10)).events) == 1
