"""What hosts ship is kept once, whole, in order, and what never came shows."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.audit import Ledger
from orchestrator.audit.streams import BadBatch
from orchestrator.core.flow import Event
from orchestrator.core.wire import LedgerBatch

from .conftest import DAY, Clock, batch, event


def seqs(ledger: Ledger, host: str = "h1") -> list[int]:
    return [msgspec.json.decode(line, type=Event).seq for day in ledger.days(host) for line in ledger.lines(host, day)]


async def test_lines_are_kept_as_they_are(ledger: Ledger) -> None:
    sent = batch(event(1), event(2))
    ack = await ledger.receive(sent)
    assert ack.next_seq == 3
    (day,) = ledger.days("h1")
    assert [line.decode() for line in ledger.lines("h1", day)] == list(sent.lines)


async def test_again_is_kept_once(ledger: Ledger) -> None:
    await ledger.receive(batch(event(1), event(2)))
    assert (await ledger.receive(batch(event(1), event(2), event(3)))).next_seq == 4
    assert (await ledger.receive(batch(event(2)))).next_seq == 4
    assert seqs(ledger) == [1, 2, 3]


async def test_a_restart_goes_on_where_it_was(ledger: Ledger, tmp_path: Path) -> None:
    await ledger.receive(batch(event(1), event(2)))
    again = Ledger(tmp_path / "egress")
    assert (await again.receive(batch(event(1), event(2), event(3)))).next_seq == 4
    assert seqs(again) == [1, 2, 3]


async def test_what_is_missing_is_asked_for_once_and_then_shown(ledger: Ledger) -> None:
    await ledger.receive(batch(event(1)))
    assert (await ledger.receive(batch(event(5)))).next_seq == 2
    assert seqs(ledger) == [1]
    assert (await ledger.receive(batch(event(5)))).next_seq == 6
    assert seqs(ledger) == [1, 5]
    (gap,) = ledger.gaps("h1")
    assert (gap.first, gap.last) == (2, 4)
    assert ledger.incidents == ["ledger_gap"]


async def test_a_control_plane_that_lost_all_asks_for_all(ledger: Ledger) -> None:
    assert (await ledger.receive(batch(event(7)))).next_seq == 1
    assert (await ledger.receive(batch(*(event(n) for n in range(1, 8))))).next_seq == 8
    assert ledger.gaps("h1") == []


async def test_a_torn_line_is_passed_over(ledger: Ledger, tmp_path: Path) -> None:
    await ledger.receive(batch(event(1), event(2)))
    (file,) = (tmp_path / "egress" / "h1").glob("*.jsonl")
    file.write_bytes(file.read_bytes()[:-20])
    again = Ledger(tmp_path / "egress", clock=lambda: DAY)
    assert (await again.receive(batch(event(2), event(3)))).next_seq == 4
    (day,) = again.days("h1")
    lines = list(again.lines("h1", day))
    assert [b'"seq":2' in line for line in lines].count(True) == 2
    assert lines[-2:] == [msgspec.json.encode(event(2)), msgspec.json.encode(event(3))]


async def test_days_are_files(ledger: Ledger, clock: Clock) -> None:
    await ledger.receive(batch(event(1)))
    clock.now += 86400
    await ledger.receive(batch(event(2)))
    assert ledger.days("h1") == ["2023-11-14", "2023-11-15"]


async def test_a_clock_that_is_set_back_puts_no_record_before_an_earlier_one(
    ledger: Ledger, clock: Clock, tmp_path: Path
) -> None:
    clock.now += 86400
    await ledger.receive(batch(event(1), event(2)))
    clock.now -= 86400
    await ledger.receive(batch(event(3)))
    ledger = Ledger(tmp_path / "egress", clock=clock)
    await ledger.receive(batch(event(4)))
    assert (ledger.days("h1"), seqs(ledger)) == (["2023-11-15"], [1, 2, 3, 4])
    clock.now += 2 * 86400
    await ledger.receive(batch(event(5)))
    assert ledger.days("h1") == ["2023-11-15", "2023-11-16"]


async def test_a_clock_that_was_years_ahead_doesnt_file_all_under_that_day(
    ledger: Ledger, clock: Clock, tmp_path: Path
) -> None:
    clock.now += 1000 * 86400
    await ledger.receive(batch(event(1)))
    clock.now -= 1000 * 86400
    await ledger.receive(batch(event(2)))
    assert ledger.days("h1") == ["2023-11-14", "2026-08-10"]
    assert Ledger(tmp_path / "egress", clock=clock).next_seq("h1") == 3


@pytest.mark.parametrize("host", ["", "../h1", ".gaps", "a/b", "x" * 200])
async def test_a_hosts_name_is_no_path(host: str, ledger: Ledger) -> None:
    with pytest.raises(BadBatch):
        await ledger.receive(LedgerBatch(host, 1, ()))


@pytest.mark.parametrize("lines", [("x",), ("{}",), ('{"seq":1,"ts":1}\n{"seq":2,"ts":1}',), ("[" * 9,)])
async def test_what_is_no_event_is_refused_whole(lines: tuple[str, ...], ledger: Ledger) -> None:
    good = msgspec.json.encode(event(1)).decode()
    with pytest.raises(BadBatch):
        await ledger.receive(LedgerBatch("h1", 1, (good, *lines)))
    assert ledger.streams() == []


async def test_order_within_a_batch(ledger: Ledger) -> None:
    with pytest.raises(BadBatch):
        await ledger.receive(batch(event(2), event(1)))


@settings(deadline=None)  # each line is synced to the disk
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 6)), max_size=12))
async def test_any_shipping_keeps_each_line_at_most_once(
    tmp_path_factory: pytest.TempPathFactory, sent: list[tuple[int, int]]
) -> None:
    ledger = Ledger(tmp_path_factory.mktemp("ledger"))
    for first, count in sent:
        events = [event(seq) for seq in range(first, first + count)]
        if events:
            await ledger.receive(batch(*events))
    kept = seqs(ledger)
    assert kept == sorted(set(kept))
    missing = {seq for gap in ledger.gaps("h1") for seq in range(gap.first, gap.last + 1)}
    assert set(range(1, ledger.next_seq("h1"))) == set(kept) | missing
