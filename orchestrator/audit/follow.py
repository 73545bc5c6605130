"""Following the record: a stream of server-sent events that says what matches, as it comes in, each event once.

Each message has some events as a JSON list (``data:``) and the place behind them (``id:``).  Who lost the connection asks
again with that place (``after=``, or the header ``Last-Event-ID``) and goes on right there, also with a control plane that
was started anew meanwhile: it is said by which records were read, not by when.  Without a place the newest that match come
first, in the order of time; what is new comes in the order in which hosts ship it.

A comment keeps the connection alive where nothing is new; its place moves on with what doesn't match.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import msgspec

from orchestrator.audit import tail
from orchestrator.audit.ledger import Ledger, event_of
from orchestrator.audit.search import Query, find
from orchestrator.audit.streams import host_of
from orchestrator.core.flow import Event

BEAT_S = 15.0
PAUSE_S = 0.1
"""Between two looks: hosts ship several times a second, and one look takes all."""
AT_ONCE = 500
"""Records that are read for a message."""

_Key = tuple[str, int, float]


async def events(ledger: Ledger, query: Query, *, limit: int, after: tail.Place | None = None) -> AsyncIterator[bytes]:
    """Messages until the reader goes.  ``limit`` is for what there is already; with ``after`` there is none."""
    reader = tail.Tail(ledger, tail.now_at(ledger) if after is None else after)
    early: set[_Key] = set()
    """Events that were found and may be read again: where a host began a new ledger, numbers say nothing of when."""
    if after is None:
        page = await asyncio.to_thread(find, ledger, query, limit=limit)
        streams = ledger.streams()
        history = [event for event in page.events if _is_behind(event, reader.place, streams)]
        early = {_key(event) for event in history}
        yield _message(history, reader.place)
    early_until = tail.now_at(ledger)
    decoder = msgspec.json.Decoder(Event)
    while True:
        seen = ledger.received
        came = await asyncio.to_thread(reader.read, AT_ONCE)
        matching = [
            event
            for one in came
            if (event := event_of(one.line, decoder)) is not None
            and query.matches(event)
            and not (one.seq <= early_until.get(one.stream, 0) and _key(event) in early)
        ]
        if matching:
            yield _message(matching, reader.place)
        if not came:
            early.clear()
            yield b"id: " + tail.encode(reader.place).encode() + b"\n: nothing new\n\n"
            await ledger.wait(seen, BEAT_S)
        elif len(came) < AT_ONCE:
            await asyncio.sleep(PAUSE_S)


def _is_behind(event: Event, place: tail.Place, streams: Sequence[str]) -> bool:
    """Whether ``event`` came before ``place``, as far as its number says, or is of no ledger's host.

    One that came later isn't given with a place before it: whoever goes on from there would have it twice.
    """
    mine = [stream for stream in streams if host_of(stream) == event.gateway]
    return not mine or any(event.seq <= place.get(stream, 0) for stream in mine)


def _key(event: Event) -> _Key:
    return event.gateway, event.seq, event.ts


def _message(events: Sequence[Event], place: tail.Place) -> bytes:
    return b"id: " + tail.encode(place).encode() + b"\ndata: " + msgspec.json.encode(events) + b"\n\n"
