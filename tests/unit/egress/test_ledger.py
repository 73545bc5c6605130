"""The ledger's promises: numbers without gaps, a chain, nothing lost by a kill, and a full disk that is said out loud."""

from __future__ import annotations

import asyncio
import base64
import errno
import os
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from orchestrator.core.errors import HostError
from orchestrator.core.flow import Event
from orchestrator.core.merkle import leaf_hash, root_of
from orchestrator.egress import ledger as module
from orchestrator.egress.checkpoint import load_signer
from orchestrator.egress.ledger import Ledger, LedgerFull
from orchestrator.system.segments import LedgerReader, durable_seq, segments
from tests.unit.egress.conftest import make_event

DAY = 86_400.0


def open_ledger(folder: Path, **fields: object) -> Ledger:
    return Ledger(folder / "ledger", gateway="host-1", **fields)  # type: ignore[arg-type]


def lines_of(folder: Path) -> list[bytes]:
    return [line for path in segments(folder / "ledger") for line in path.read_bytes().splitlines()]


def events_of(folder: Path) -> list[Event]:
    return [msgspec.json.decode(line, type=Event) for line in lines_of(folder)]


def check_chain(folder: Path, first: int = 1) -> None:
    lines = lines_of(folder)
    prev = events_of(folder)[0].prev
    for number, line in enumerate(lines, first):
        event = msgspec.json.decode(line, type=Event)
        assert event.seq == number
        assert event.prev == prev
        prev = leaf_hash(line).hex()


def write(folder: Path, *hosts: str, **fields: object) -> Ledger:
    ledger = open_ledger(folder, **fields)
    for host in hosts:
        ledger.append(make_event(host))
    ledger.commit()
    return ledger


def die(ledger: Ledger) -> None:
    """What kill -9 leaves: descriptors closed, nothing else done."""
    ledger._pool.shutdown()
    for descriptor in (ledger._file, ledger._durable):
        if descriptor >= 0:
            os.close(descriptor)


def test_lines_are_numbered_and_chained_across_restarts(tmp_path: Path) -> None:
    for round_ in range(3):
        write(tmp_path, f"a{round_}.example", f"b{round_}.example").close()
    check_chain(tmp_path)
    assert [event.host for event in events_of(tmp_path)] == [f"{x}{n}.example" for n in range(3) for x in "ab"]
    assert {event.gateway for event in events_of(tmp_path)} == {"host-1"}


def test_a_kill_loses_nothing_that_was_committed(tmp_path: Path) -> None:
    die(write(tmp_path, "a.example", "b.example"))
    ledger = write(tmp_path, "c.example")
    assert ledger.seq == 3
    check_chain(tmp_path)
    ledger.close()


@pytest.mark.parametrize("keep", [1, 20, -2])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, keep: int) -> None:
    die(write(tmp_path, "a.example", "b.example"))
    path = segments(tmp_path / "ledger")[0]
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines()[1][:keep])
    ledger = write(tmp_path, "c.example")
    assert [event.host for event in events_of(tmp_path)] == ["a.example", "b.example", "c.example"]
    check_chain(tmp_path)
    ledger.close()


def test_a_kill_behind_a_checkpoint_goes_on_from_it(tmp_path: Path) -> None:
    ledger = write(tmp_path, "a.example", signer=load_signer("host-1", tmp_path))
    ledger.checkpoint()
    ledger.append(make_event("b.example"))
    ledger.commit()
    die(ledger)
    again = write(tmp_path, "c.example", signer=load_signer("host-1", tmp_path))
    note = again.checkpoint()
    assert note is not None
    assert note.splitlines()[1:3] == ["3", base64.b64encode(root_of(lines_of(tmp_path))).decode()]
    check_chain(tmp_path)
    again.close()


def test_an_unreadable_head_is_no_loss(tmp_path: Path) -> None:
    write(tmp_path, "a.example", "b.example").close()
    (tmp_path / "ledger" / "head.json").write_bytes(b"\0\0\0")
    ledger = write(tmp_path, "c.example")
    assert ledger.seq == 3
    check_chain(tmp_path)
    ledger.close()


def test_a_line_that_does_not_follow_is_set_aside_and_said(tmp_path: Path) -> None:
    ledger = write(tmp_path, "a.example", "b.example", "c.example")
    die(ledger)
    path = segments(tmp_path / "ledger")[0]
    path.write_bytes(path.read_bytes().replace(b"b.example", b"x.example"))
    again = write(tmp_path)
    assert [event.host for event in events_of(tmp_path) if event.event == "open"] == ["a.example", "x.example"]
    lost = events_of(tmp_path)[-1]
    assert (lost.event, lost.reason, lost.count) == ("lost", "ledger_damaged", 1)
    assert b"c.example" in (tmp_path / "ledger" / "damaged-3.bin").read_bytes()
    again.close()


def test_lines_cut_off_behind_a_checkpoint_leave_a_gap_that_shows(tmp_path: Path) -> None:
    write(tmp_path, *(f"n{n}.example" for n in range(5)), signer=load_signer("host-1", tmp_path)).close()
    path = segments(tmp_path / "ledger")[0]
    path.write_bytes(b"".join(line + b"\n" for line in path.read_bytes().splitlines()[:3]))
    again = write(tmp_path)
    numbers = [event.seq for event in events_of(tmp_path)]
    assert numbers == [1, 2, 3, 6]
    assert (events_of(tmp_path)[-1].event, events_of(tmp_path)[-1].count) == ("lost", 2)
    again.close()


def test_without_head_and_first_lines_it_refuses_to_guess(tmp_path: Path) -> None:
    write(tmp_path, "a.example", "b.example").close()
    path = segments(tmp_path / "ledger")[0]
    path.write_bytes(path.read_bytes().splitlines()[1] + b"\n")
    (tmp_path / "ledger" / "head.json").unlink()
    with pytest.raises(HostError, match=r"head\.json is missing"):
        open_ledger(tmp_path)


def test_a_new_day_has_a_new_file_and_old_ones_may_go(tmp_path: Path) -> None:
    now = 1_800_000_000.0
    ledger = open_ledger(tmp_path, clock=lambda: now)
    for _ in range(3):
        ledger.append(make_event())
        ledger.commit()
        now += DAY
    ledger.close()
    check_chain(tmp_path)
    files = segments(tmp_path / "ledger")
    assert len(files) == 3
    files[0].unlink()
    again = open_ledger(tmp_path, clock=lambda: now)
    again.append(make_event())
    again.commit()
    assert again.seq == 4
    check_chain(tmp_path, first=2)
    again.close()


def test_a_clock_that_goes_back_goes_on_in_the_newest_file(tmp_path: Path) -> None:
    now = 1_800_000_000.0
    ledger = open_ledger(tmp_path, clock=lambda: now)
    ledger.append(make_event())
    ledger.commit()
    now -= 3 * DAY
    ledger.append(make_event())
    ledger.commit()
    die(ledger)
    again = open_ledger(tmp_path, clock=lambda: now)
    again.append(make_event())
    again.commit()
    assert len(segments(tmp_path / "ledger")) == 1
    check_chain(tmp_path)
    again.close()


def test_a_checkpoint_is_signed_by_the_hosts_key_and_made_once(tmp_path: Path) -> None:
    signer = load_signer("host-1", tmp_path)
    ledger = write(tmp_path, "a.example", "b.example", signer=signer)
    note = ledger.checkpoint()
    assert note is not None
    assert ledger.checkpoint() is None
    text, _, signature = note.partition("\n\n")
    name, encoded = signature.removeprefix("\u2014 ").split()
    raw = base64.b64decode(encoded)
    Ed25519PublicKey.from_public_bytes(signer.public).verify(raw[4:], text.encode() + b"\n")
    assert name == "ironcd/host-1"
    assert text.splitlines() == ["ironcd/host-1", "2", base64.b64encode(root_of(lines_of(tmp_path))).decode()]
    ledger.close()


def test_the_key_stays_and_nobody_else_reads_it(tmp_path: Path) -> None:
    assert load_signer("host-1", tmp_path).public == load_signer("host-1", tmp_path).public
    assert (tmp_path / "ledger-key.pem").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "ledger-key.pub").read_text() == load_signer("host-1", tmp_path).verifier + "\n"


def fill_disk(monkeypatch: pytest.MonkeyPatch, *, after: int = 0) -> None:
    """Make writes end with ENOSPC once ``after`` bytes are written."""
    real = os.pwrite
    room = after

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        nonlocal room
        if len(data) == 8:
            return real(descriptor, data, offset)
        if room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        part = bytes(data[:room])
        room -= len(part)
        return real(descriptor, part, offset)

    monkeypatch.setattr(module.os, "pwrite", pwrite)


@pytest.mark.parametrize("room", [0, 100, 300])
def test_a_full_disk_is_said_and_leaves_no_half_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    ledger = write(tmp_path, "a.example")
    with monkeypatch.context() as patch:
        fill_disk(patch, after=room)
        ledger.append(make_event("b.example"))
        ledger.append(make_event("c.example"))
        with pytest.raises(LedgerFull):
            ledger.commit()
        assert ledger.full
        assert lines_of(tmp_path) == lines_of(tmp_path)[:1]
    ledger.commit()
    assert not ledger.full
    assert [event.host for event in events_of(tmp_path)] == ["a.example", "b.example", "c.example"]
    check_chain(tmp_path)
    ledger.close()


def test_what_does_not_fit_in_memory_either_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    ledger = open_ledger(tmp_path)
    for number in range(10):
        ledger.append(make_event(f"n{number}.example"))
    ledger.commit()
    ledger.commit()
    events = events_of(tmp_path)
    assert [event.event for event in events] == ["open", "open", "open", "lost"]
    assert (events[-1].reason, events[-1].count) == ("ledger_full", 7)
    ledger.close()


async def test_durable_returns_when_it_is_on_disk(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    running = asyncio.create_task(ledger.run())
    for number in range(50):
        ledger.append(make_event(f"n{number}.example"))
        if number % 10 == 0:
            await ledger.durable()
            assert durable_seq(tmp_path / "ledger") == number + 1
    ledger.stop()
    await running
    ledger.close()
    assert ledger.seq == 50


async def test_durable_raises_where_the_disk_is_full_and_recovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RETRY_S", 0.01)
    ledger = open_ledger(tmp_path)
    running = asyncio.create_task(ledger.run())
    with monkeypatch.context() as patch:
        fill_disk(patch)
        ledger.append(make_event("a.example"))
        with pytest.raises(LedgerFull):
            await ledger.durable()
        with pytest.raises(LedgerFull):
            await ledger.durable()
    async with asyncio.timeout(60):
        while ledger.full:  # noqa: ASYNC110 - the ledger tells nobody
            await asyncio.sleep(0.01)
    await ledger.durable()
    assert ledger.seq == 1
    ledger.stop()
    await running
    ledger.close()


async def test_lines_nobody_waits_for_are_written_soon(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    running = asyncio.create_task(ledger.run())
    ledger.append(make_event())
    async with asyncio.timeout(60):
        while ledger.seq == 0:  # noqa: ASYNC110 - nobody waits for it, that is the point
            await asyncio.sleep(0.01)
    ledger.stop()
    await running
    ledger.close()


def test_a_reader_reads_on_from_any_number(tmp_path: Path) -> None:
    now = 1_800_000_000.0
    ledger = open_ledger(tmp_path, clock=lambda: now)
    for number in range(1, 301):
        ledger.append(make_event(f"n{number}.example"))
        if number % 100 == 0:
            ledger.commit()
            now += DAY
    reader = LedgerReader(tmp_path / "ledger")
    for first in (1, 2, 99, 100, 101, 200, 201, 299, 300):
        lines = reader.read(first, 7)
        assert [msgspec.json.decode(line, type=Event).seq for line in lines] == list(range(first, min(first + 7, 301)))
    assert reader.read(301) == []
    assert (reader.first_seq(), reader.last_seq()) == (1, 300)
    segments(tmp_path / "ledger")[0].unlink()
    assert (LedgerReader(tmp_path / "ledger").first_seq(), len(reader.read(1, 1000))) == (101, 200)
    ledger.append(make_event())
    ledger.commit()
    assert len(reader.read(301)) == 1
    ledger.close()


def test_a_reader_is_told_of_nothing_that_could_still_be_lost(tmp_path: Path) -> None:
    ledger = write(tmp_path, "a.example", "b.example")
    os.pwrite(ledger._durable, (1).to_bytes(8, "big"), 0)
    assert len(LedgerReader(tmp_path / "ledger").read(1)) == 1
    ledger.close()


def test_a_flushed_line_outlives_the_process_and_nobody_is_told_of_it_yet(tmp_path: Path) -> None:
    ledger = write(tmp_path, "a.example")
    ledger.append(make_event("b.example"))
    ledger.flush()
    assert len(lines_of(tmp_path)) == 2
    assert len(LedgerReader(tmp_path / "ledger").read(1)) == 1
    die(ledger)
    again = write(tmp_path)
    assert [event.host for event in events_of(tmp_path)] == ["a.example", "b.example"]
    assert len(LedgerReader(tmp_path / "ledger").read(1)) == 2
    again.close()


def test_a_ledger_has_one_writer(tmp_path: Path) -> None:
    ledger = write(tmp_path, "a.example")
    with pytest.raises(HostError, match="another process"):
        open_ledger(tmp_path)
    ledger.close()
    open_ledger(tmp_path).close()


def test_a_reader_of_nothing(tmp_path: Path) -> None:
    assert LedgerReader(tmp_path / "none").read(1) == []
    assert LedgerReader(tmp_path / "none").first_seq() == 0
