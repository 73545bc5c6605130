"""Copies of checkpoints in a place that nobody here can change: made once each, and what they find that nothing else does."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from orchestrator.audit import copies
from orchestrator.audit.findings import Report
from orchestrator.audit.verify import Ask, verify_all
from orchestrator.core.merkle import Frontier, leaf_hash

from .conftest import DAY
from .record import Made


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "record")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    return tmp_path / "elsewhere"


def look(made: Made, elsewhere: Path | None, **ask: float) -> list[Report]:
    against = (elsewhere,) if elsewhere is not None else ()
    return verify_all(made.folder.parent, Ask(against=against, **ask))


def kinds(report: Report) -> list[tuple[str, int, int]]:
    return [(found.kind, found.seq, found.last) for found in report.findings]


def copy(made: Made, elsewhere: Path, now: float = DAY) -> int:
    return copies.copy_newest(made.folder.parent, elsewhere, now)


def sizes(elsewhere: Path) -> list[int]:
    return [place.kept.size for place in copies.kept(elsewhere / "h1") if place.kept is not None]


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def write_anew(made: Made, seq: int, *, cut: int = 0) -> None:
    """What somebody does who has root on the control plane and on the host: edit a record, mend the chain behind it, cut off
    the end, and sign all checkpoints again with the host's own key.
    """

    def change(lines: list[bytes]) -> None:
        lines[seq - 1] = made.edited(seq, verdict="allowed", host="harmless.example")
        made.rechained(lines, seq)
        del lines[len(lines) - cut :]
        tree, made.notes = Frontier(), []
        for number, line in enumerate(lines, 1):
            tree.append(leaf_hash(line))
            if number % 6 == 0 or number == len(lines):
                made.notes.append(made.signer.note(number, tree.root()))

    made.write(change)


def test_a_copy_covers_the_record(made: Made, elsewhere: Path) -> None:
    assert copy(made, elsewhere) == 1
    (report,) = look(made, elsewhere)
    assert (report.findings, report.notes, report.elsewhere) == ([], [], 30)


@pytest.mark.parametrize("cut", [0, 6, 12])
def test_a_history_that_was_written_anew_and_signed_by_the_hosts_own_key(made: Made, elsewhere: Path, cut: int) -> None:
    made.write_notes(made.notes[:3])  # up to 18
    copy(made, elsewhere)
    write_anew(made, 11, cut=cut)
    assert look(made, None)[0].intact, "without the copy nothing shows"
    (report,) = look(made, elsewhere)
    assert not report.intact
    assert ("rewritten", 13, 18) in kinds(report) or ("checkpoint", 18, 18) in kinds(report)


def test_written_anew_with_checkpoints_at_other_places(made: Made, elsewhere: Path) -> None:
    copy(made, elsewhere)
    write_anew(made, 11)
    made.write_notes(made.notes[1:4])  # none over 30 records, which is what the copy is of
    (report,) = look(made, elsewhere)
    assert kinds(report) == [("rewritten", 25, 30)]


def test_cut_off_in_the_record_and_in_its_checkpoints(made: Made, elsewhere: Path) -> None:
    copy(made, elsewhere)
    made.write_notes(made.notes[:3])
    for path in sorted(made.folder.glob("????-??-??.jsonl"))[2:]:
        path.unlink()
    (report,) = look(made, elsewhere)
    assert kinds(report) == [("cut-off", 21, 30)]


def test_a_ledger_that_was_removed_as_a_whole(made: Made, elsewhere: Path) -> None:
    copy(made, elsewhere)
    shutil.rmtree(made.folder)
    Made(made.folder.parent, name="h2")
    lost = next(report for report in look(made, elsewhere) if report.ledger == "h1")
    assert [found.kind for found in lost.findings] == ["cut-off"]
    assert verify_all(made.folder.parent, Ask(against=(elsewhere,)), host="h2")[0].ledger == "h2"


def test_no_copy_is_a_finding_unless_the_ledger_has_just_begun(made: Made, elsewhere: Path) -> None:
    elsewhere.mkdir()
    (report,) = look(made, elsewhere)
    assert [found.kind for found in report.findings] == ["elsewhere"]
    (report,) = look(made, elsewhere, fresh_since=0.5)
    assert (report.findings, len(report.notes)) == ([], 1)
    (report,) = look(made, elsewhere, fresh_since=2.0)
    assert [found.kind for found in report.findings] == ["elsewhere"]


def test_another_ledger_of_the_host_has_copies_of_its_own(made: Made, elsewhere: Path) -> None:
    copy(made, elsewhere)
    other = Made(made.folder.parent, name="h1~2", count=4)
    other.signer = made.signer
    (report,) = [one for one in look(made, elsewhere, fresh_since=0.5) if one.ledger == "h1~2"]
    assert "rewritten" not in {found.kind for found in report.findings}


def test_nothing_is_ever_changed(made: Made, elsewhere: Path) -> None:
    """As an object lock has it: no write to a file that is there, no other name for it, no second one of the same."""
    made.write_notes(made.notes[:2])
    copy(made, elsewhere)
    (first,) = (elsewhere / "h1").iterdir()
    before = first.stat().st_mtime_ns, first.read_bytes()
    assert copy(made, elsewhere, DAY + 600) == 0
    made.write_notes(made.notes)
    assert copy(made, elsewhere, DAY + 1200) == 1
    assert (first.stat().st_mtime_ns, first.read_bytes()) == before
    assert sizes(elsewhere) == [12, 30]
    assert [path.name[0] for path in (elsewhere / "h1").iterdir()] == ["0", "0"]


def test_another_checkpoint_of_the_same_size_and_moment_replaces_none(made: Made, elsewhere: Path) -> None:
    copy(made, elsewhere)
    (first,) = (elsewhere / "h1").iterdir()
    before = first.read_bytes()
    write_anew(made, 11)
    assert copy(made, elsewhere) == 0
    assert first.read_bytes() == before


def test_a_copy_that_was_cut_short_is_made_again(made: Made, elsewhere: Path) -> None:
    copy(made, elsewhere)
    (torn,) = (elsewhere / "h1").iterdir()
    torn.write_bytes(torn.read_bytes()[:30])
    assert copy(made, elsewhere, DAY + 600) == 1
    (report,) = look(made, elsewhere)
    assert (report.findings, report.elsewhere) == ([], 30)
    assert "1 of the 2 copies" in report.notes[0]


def test_a_place_that_is_away_keeps_nothing_waiting(made: Made, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told: list[str] = []
    assert copies.copy_newest(made.folder.parent, tmp_path / "file" / "x", DAY, told.append) == 0
    assert told == ["checkpoint_not_copied"]


async def test_copies_are_kept_while_the_control_plane_runs(made: Made, elsewhere: Path) -> None:
    made.write_notes(made.notes[:2])
    task = asyncio.create_task(copies.keep_copies(made.folder.parent, elsewhere, every_s=0.01))
    try:
        await asyncio.to_thread(until, lambda: sizes(elsewhere) == [12])
        made.write_notes(made.notes)
        await asyncio.to_thread(until, lambda: sizes(elsewhere) == [12, 30])
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_a_forged_copy_is_a_finding(made: Made, elsewhere: Path) -> None:
    copy(made, elsewhere)
    (path,) = (elsewhere / "h1").iterdir()
    other = Made(made.folder.parent.parent / "other")
    kept = msgspec.json.encode({"ts": DAY, "size": 30, "note": other.notes[-1]})
    (path.parent / f"{31:020d}-{0:014d}.json").write_bytes(kept)
    (report,) = look(made, elsewhere)
    assert [found.kind for found in report.findings] == ["checkpoint"]
