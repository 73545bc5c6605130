"""The stream of what comes in: history and news, each event once, over restarts of either side."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestrator.audit import Ledger, follow, tail
from orchestrator.audit.search import Query

from .conftest import Clock, batch, event

ALL = Query()


class Reader:
    """What a client makes of the stream: the events, and the place behind the last message that it has whole."""

    def __init__(self, ledger: Ledger, query: Query = ALL, *, limit: int = 100, after: str = "") -> None:
        place = tail.decode(after) if after else None
        self._stream = follow.events(ledger, query, limit=limit, after=place)
        self.place = ""

    async def message(self) -> list[int]:
        text = (await asyncio.wait_for(anext(self._stream), 60)).decode()
        assert text.endswith("\n\n")
        fields = dict(line.split(": ", 1) for line in text.strip().splitlines() if not line.startswith(":"))
        self.place = fields["id"]
        return [one["seq"] for one in msgspec.json.decode(fields.get("data", "[]"))]

    async def until(self, last: int) -> list[int]:
        got: list[int] = []
        while last not in got:
            got += await self.message()
        return got

    async def close(self) -> None:
        await self._stream.aclose()


async def test_history_and_then_news(ledger: Ledger) -> None:
    await ledger.receive(batch(event(1), event(2), event(3)))
    reader = Reader(ledger, limit=2)
    assert await reader.message() == [2, 3]
    assert await reader.message() == [], "a sign of life"
    waiting = asyncio.create_task(reader.message())
    await asyncio.sleep(0)
    await ledger.receive(batch(event(1), event(2), event(3), event(4)))
    assert await waiting == [4]
    await reader.close()


async def test_only_what_matches_and_the_place_moves_on_with_the_rest(ledger: Ledger) -> None:
    reader = Reader(ledger, Query(verdict="blocked"))
    assert (await reader.message(), await reader.message()) == ([], [])
    await ledger.receive(batch(event(1), event(2, verdict="blocked"), event(3)))
    assert await reader.message() == [2]
    await ledger.receive(batch(event(4)))
    assert await reader.message() == []
    assert tail.decode(reader.place) == {"h1": 4}
    await reader.close()


async def test_both_sides_start_anew(tmp_path: Path, clock: Clock) -> None:
    ledger = Ledger(tmp_path, clock=clock)
    await ledger.receive(batch(event(1), event(2)))
    reader = Reader(ledger)
    got = await reader.until(2)
    await reader.close()
    await ledger.receive(batch(event(3)))
    ledger = Ledger(tmp_path, clock=clock)
    await ledger.receive(batch(event(4), event(5)))
    reader = Reader(ledger, after=reader.place)
    got += await reader.until(5)
    await reader.close()
    assert got == [1, 2, 3, 4, 5]


async def test_a_connection_that_breaks_anywhere_costs_nothing(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "AT_ONCE", 2)
    await ledger.receive(batch(*(event(seq) for seq in range(1, 12))))
    got: list[int] = []
    place = tail.encode({})
    while 11 not in got:
        reader = Reader(ledger, after=place)
        got += await reader.message()
        await reader.close()
        place = reader.place
    assert got == list(range(1, 12))


async def test_what_comes_while_history_is_looked_for_comes_once(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ledger.receive(batch(event(1)))
    found = follow.find
    loop = asyncio.get_running_loop()

    def meanwhile(*args: Any, **options: Any) -> Any:
        asyncio.run_coroutine_threadsafe(ledger.receive(batch(event(2))), loop).result(5)
        page = found(*args, **options)
        asyncio.run_coroutine_threadsafe(ledger.receive(batch(event(3))), loop).result(5)
        return page

    monkeypatch.setattr(follow, "find", meanwhile)
    reader = Reader(ledger)
    assert await reader.until(3) == [1, 2, 3]
    await ledger.receive(batch(event(4)))
    assert await reader.until(4) == [4]
    await reader.close()


async def test_a_connection_that_breaks_after_history_repeats_nothing_that_came_while_it_was_looked_for(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ledger.receive(batch(event(1)))
    found = follow.find
    loop = asyncio.get_running_loop()

    def meanwhile(*args: Any, **options: Any) -> Any:
        asyncio.run_coroutine_threadsafe(ledger.receive(batch(event(2))), loop).result(5)
        return found(*args, **options)

    monkeypatch.setattr(follow, "find", meanwhile)
    reader = Reader(ledger)
    got = await reader.message()
    await reader.close()
    await ledger.receive(batch(event(3)))
    reader = Reader(ledger, after=reader.place)
    got += await reader.until(3)
    await reader.close()
    assert got == [1, 2, 3]


async def test_news_that_comes_just_before_the_wait_isnt_missed(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is told to who doesn't wait yet, so the wait itself looks whether something came."""
    monkeypatch.setattr(follow, "BEAT_S", 60.0)
    reader = Reader(ledger)
    assert (await reader.message(), await reader.message()) == ([], [])
    waited = ledger.wait

    async def late(seen: int, timeout_s: float) -> None:
        await ledger.receive(batch(event(1)))
        await waited(seen, timeout_s)

    monkeypatch.setattr(ledger, "wait", late)
    assert await reader.until(1) == [1]
    await reader.close()


async def test_history_of_a_gateway_that_has_another_name_than_its_host_is_shown(ledger: Ledger) -> None:
    await ledger.receive(batch(event(1, gateway="elsewhere"), event(2, gateway="elsewhere")))
    reader = Reader(ledger)
    assert await reader.message() == [1, 2]
    await reader.close()
