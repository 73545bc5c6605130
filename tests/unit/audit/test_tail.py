"""Reading on from a place: every record once and in its order, whatever happens to files, processes and clocks meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.audit import Ledger, days
from orchestrator.audit.engine import Engine
from orchestrator.audit.retain import retain
from orchestrator.audit.seal import seal_all
from orchestrator.audit.tail import BadPlace, Tail, decode, encode, now_at
from orchestrator.core.retention import Keep, Retention

from .conftest import DAY, Clock, batch, event

DAY_S = 86400.0


def file(ledger: Ledger, *seqs: int, host: str = "h1") -> None:
    asyncio.run(ledger.receive(batch(*(event(seq, gateway=host) for seq in seqs), host=host)))


def seqs(tail: Tail, limit: int = 1000) -> list[int]:
    found: list[int] = []
    while came := tail.read(limit):
        assert len(came) <= limit
        assert [msgspec.json.decode(one.line)["seq"] for one in came] == [one.seq for one in came]
        found += [one.seq for one in came]
    return found


def seal(ledger: Ledger, now: float) -> None:
    engine = Engine(ledger.folder, threads=1)
    seal_all(ledger.folder, engine, now)
    engine.close()


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("file"), st.integers(1, 4)),
        st.tuples(st.just("read"), st.integers(1, 3)),
        st.tuples(st.just("seal"), st.just(0)),
        st.tuples(st.just("days"), st.integers(-2, 2)),
        st.tuples(st.just("restart"), st.just(0)),
        st.tuples(st.just("move"), st.just(0)),
    ),
    max_size=20,
)


@settings(max_examples=60, deadline=None)
@given(_STEPS)
def test_each_once_and_in_order_over_any_history(tmp_path_factory: pytest.TempPathFactory, steps: list) -> None:
    """Days go by and go back, are sealed while they are read; the serving process and the reader start anew."""
    clock = Clock()
    folder = tmp_path_factory.mktemp("tail")
    ledger = Ledger(folder, clock=clock)
    tail, written, got = Tail(ledger, {}), 0, []
    for what, amount in steps:
        if what == "file":
            file(ledger, *range(written + 1, written + amount + 1))
            written += amount
        elif what == "read":
            got += [one.seq for one in tail.read(amount)]
        elif what == "seal":
            seal(ledger, clock.now)
        elif what == "days":
            clock.now += amount * DAY_S
        elif what == "restart":
            ledger = Ledger(folder, clock=clock)
            assert ledger.next_seq("h1") == written + 1
            tail = Tail(ledger, tail.place)
        else:
            tail = Tail(ledger, decode(encode(tail.place)))
    assert got + seqs(tail, 2) == list(range(1, written + 1))


def test_from_now_on(ledger: Ledger) -> None:
    file(ledger, 1, 2)
    tail = Tail(ledger, now_at(ledger))
    assert seqs(tail) == []
    file(ledger, 3)
    file(ledger, 1, host="h2")
    assert sorted((one.stream, one.seq) for one in tail.read(9)) == [("h1", 3), ("h2", 1)]
    assert seqs(tail) == []


def test_one_ledger_with_much_to_say_keeps_no_other_waiting(ledger: Ledger) -> None:
    file(ledger, *range(1, 30))
    file(ledger, 1, host="h2")
    tail = Tail(ledger, {})
    first, second = tail.read(5), tail.read(5)
    assert {"h1", "h2"} == {one.stream for one in (*first, *second)}


def test_numbers_that_never_came_are_passed_over(ledger: Ledger) -> None:
    file(ledger, 1, 2)
    for _ in range(2):
        file(ledger, 7, 8)
    tail = Tail(ledger, {})
    assert seqs(tail) == [1, 2, 7, 8]
    file(ledger, 9)
    assert seqs(tail) == [9]


def test_a_clock_that_was_far_ahead_for_a_while_hides_nothing(ledger: Ledger, clock: Clock) -> None:
    tail = Tail(ledger, {})
    clock.now += 5 * DAY_S
    file(ledger, 1, 2)
    assert seqs(tail) == [1, 2]
    clock.now -= 5 * DAY_S
    file(ledger, 3, 4)
    clock.now += 5 * DAY_S
    file(ledger, 5)
    assert len(ledger.days("h1")) == 2
    assert seqs(tail) == [3, 4, 5]


def test_reading_on_costs_what_is_new(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    file(ledger, *range(1, 2001))
    tail = Tail(ledger, now_at(ledger))
    file(ledger, 2001)
    assert seqs(tail) == [2001]
    read: list[int] = []
    seen = Tail._appended

    def counted(self: Tail, stream: str, opened: object, spot: object) -> object:
        for one in seen(self, stream, opened, spot):  # type: ignore[arg-type]
            read.append(one.seq)
            yield one

    monkeypatch.setattr(Tail, "_appended", counted)
    monkeypatch.setattr(days, "lines", lambda *_: pytest.fail("a whole day was read"))
    file(ledger, 2002, 2003)
    assert seqs(tail) == [2002, 2003]
    assert read == [2002, 2003]


def test_an_old_place_in_a_big_open_day_is_found_by_bisection(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(days, "MAX_LINE", 2048)
    file(ledger, *range(1, 3001))
    for place in (0, 1, 1500, 2998, 2999, 3000):
        assert seqs(Tail(ledger, {"h1": place})) == list(range(place + 1, 3001))


def test_what_retention_deleted_is_passed_over(tmp_path: Path) -> None:
    clock = Clock()
    ledger = Ledger(tmp_path, clock=clock)
    file(ledger, *range(1, 11))
    clock.now += 2 * DAY_S
    seal(ledger, clock.now)
    engine = Engine(tmp_path, threads=1)
    list(retain(tmp_path, engine, Retention(Keep(1, 1), {}), DAY + 9 * DAY_S))
    engine.close()
    file(ledger, 11)
    got = iter_all(Tail(ledger, {}))
    assert got[-1].seq == 11
    assert [one.seq for one in got if b'"host"' in one.line] == [11]


def iter_all(tail: Tail) -> list:
    found = []
    while came := tail.read(100):
        found += came
    return found


@pytest.mark.parametrize("text", ["x", "", "W10", "e30!", encode({"../x": 1}), encode({"h1": -1})])
def test_places_that_are_none(text: str) -> None:
    with pytest.raises(BadPlace):
        decode(text)


def test_a_place_is_read_as_it_was_written() -> None:
    assert decode(encode({"h1": 7, "h1~2": 3})) == {"h1": 7, "h1~2": 3}
    assert decode(encode({})) == {}
