"""Whose key it is, which ledger a batch goes into, and the checkpoints beside it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orchestrator.audit import Ledger
from orchestrator.audit.checkpoints import kept
from orchestrator.audit.notes import BadNote, parse_key, parse_note, verify
from orchestrator.audit.streams import LIMIT, BadBatch, about
from orchestrator.core.wire import LedgerBatch
from orchestrator.egress.checkpoint import Signer

from .conftest import batch, event


def signer(name: str = "h1") -> Signer:
    return Signer(name, Ed25519PrivateKey.generate())


def signed(sent: LedgerBatch, by: Signer, *notes: str) -> LedgerBatch:
    return msgspec.structs.replace(sent, public_key=by.verifier, checkpoints=notes)


async def test_the_first_key_is_pinned_and_another_ones_lines_go_elsewhere(ledger: Ledger) -> None:
    first, second = signer(), signer()
    await ledger.receive(signed(batch(event(1), event(2)), first))
    assert (await ledger.receive(signed(batch(event(1, reason="other")), second))).next_seq == 2
    assert (await ledger.receive(signed(batch(event(3)), first))).next_seq == 4
    assert ledger.streams() == ["h1", "h1~2"]
    assert ledger.incidents == ["ledger_begun_anew"]
    assert [about(ledger.folder / name).key for name in ledger.streams()] == [first.verifier, second.verifier]
    assert ledger.next_seq("h1") == 4
    assert ledger.next_seq("h1~2") == 2


async def test_a_key_is_pinned_to_the_ledger_that_had_none(ledger: Ledger) -> None:
    await ledger.receive(batch(event(1)))
    first = signer()
    await ledger.receive(signed(batch(event(2)), first))
    assert ledger.streams() == ["h1"]
    assert about(ledger.folder / "h1").key == first.verifier


async def test_a_ledger_begun_anew_with_the_same_key_loses_nothing(ledger: Ledger, tmp_path: Path) -> None:
    key = signer()
    await ledger.receive(signed(batch(event(1), event(2), event(3)), key))
    anew = signed(batch(event(1, reason="other"), event(2)), key)
    assert (await ledger.receive(anew)).next_seq == 3
    assert ledger.streams() == ["h1", "h1~2"]
    again = Ledger(tmp_path / "egress")
    assert (await again.receive(anew)).next_seq == 3
    assert (await again.receive(signed(batch(event(3)), key))).next_seq == 4
    assert again.streams() == ["h1", "h1~2"]


async def test_the_same_lines_from_the_start_are_no_new_ledger(ledger: Ledger) -> None:
    key = signer()
    for _ in range(2):
        await ledger.receive(signed(batch(event(1), event(2)), key))
    assert ledger.streams() == ["h1"]


@pytest.mark.parametrize("key", ["nonsense", "ironcd/h1+00000000+AAAA", signer("h2").verifier])
async def test_a_key_that_is_none_or_another_hosts(key: str, ledger: Ledger) -> None:
    with pytest.raises(BadBatch):
        await ledger.receive(msgspec.structs.replace(batch(event(1)), public_key=key))
    assert ledger.streams() == []


async def test_a_host_cant_begin_ledgers_without_end(ledger: Ledger) -> None:
    for number in range(2, LIMIT + 1):
        (ledger.folder / f"h1~{number}").mkdir(parents=True)
        (ledger.folder / f"h1~{number}" / "about.json").write_bytes(b'{"key":"other"}')
    await ledger.receive(signed(batch(event(1)), signer()))
    with pytest.raises(BadBatch, match="began more than"):
        await ledger.receive(signed(batch(event(1)), signer()))


async def test_checkpoints_are_kept_once_and_answered(ledger: Ledger, tmp_path: Path) -> None:
    key = signer()
    notes = [key.note(size, bytes(32)) for size in (1, 2, 2)]
    other = key.note(2, b"\x01" * 32)
    assert (await ledger.receive(signed(batch(event(1)), key, *notes))).checkpoint == 2
    again = Ledger(tmp_path / "egress")
    assert (await again.receive(signed(LedgerBatch("h1", 2, ()), key, notes[0], notes[1], other))).checkpoint == 2
    assert [place.kept.note for place in kept(ledger.folder / "h1") if place.kept] == [notes[0], notes[1], other]


async def test_what_is_no_checkpoint_is_left_out_and_lines_go_on(ledger: Ledger) -> None:
    ack = await ledger.receive(signed(batch(event(1)), signer(), "nonsense", "x" * 5000))
    assert (ack.next_seq, ack.checkpoint) == (2, 0)


def test_notes_are_verified() -> None:
    key, other = signer(), signer()
    text = key.note(5, bytes(32))
    note = parse_note(text)
    verify(note, parse_key(key.verifier))
    assert (note.origin, note.size, note.root) == ("ironcd/h1", 5, bytes(32))
    with pytest.raises(BadNote, match="another key"):
        verify(note, parse_key(other.verifier))
    with pytest.raises(BadNote, match="doesn't fit"):
        verify(parse_note(text.replace("\n5\n", "\n6\n")), parse_key(key.verifier))
    with pytest.raises(BadNote, match="speaks for"):
        verify(note, parse_key(signer("h2").verifier))


@pytest.mark.parametrize("change", [lambda t: t[:-1], lambda t: t + "x", lambda t: t.replace("\n5\n", "\n05\n")])
def test_notes_of_another_form(change) -> None:
    with pytest.raises(BadNote):
        parse_note(change(signer().note(5, bytes(32))))
