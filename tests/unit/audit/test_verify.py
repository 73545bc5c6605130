"""Each way to spoil a record is found, and named; a record that nobody touched passes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.audit.findings import Report
from orchestrator.audit.verify import Ask, verify_all, verify_ledger

from .conftest import DAY
from .record import Made


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def look(made: Made, ask: Ask | None = None) -> Report:
    return verify_ledger(made.folder, ask or Ask())


def kinds(report: Report) -> list[tuple[str, int, int]]:
    return [(found.kind, found.seq, found.last) for found in report.findings]


def test_untouched(made: Made) -> None:
    report = look(made)
    assert (report.findings, report.notes) == ([], [])
    assert (report.records, report.first, report.last, report.checkpoints, report.signed) == (30, 1, 30, 5, 30)
    assert report.intact


@pytest.mark.parametrize("seq", [1, 6, 7, 10, 11, 29])
def test_edited(made: Made, seq: int) -> None:
    made.write(lambda lines: lines.__setitem__(seq - 1, made.edited(seq, verdict="warn")))
    (found,) = look(made).findings
    assert (found.kind, found.seq, found.line) == ("edited", seq, (seq - 1) % 10 + 1)
    assert found.file.endswith(f"2023-11-{14 + (seq - 1) // 10}.jsonl")


def test_the_last_one_edited(made: Made) -> None:
    made.write(lambda lines: lines.__setitem__(29, made.edited(30, verdict="warn")))
    assert kinds(look(made)) == [("rewritten", 25, 30)]


@pytest.mark.parametrize("seq", [1, 6, 15, 24])
def test_edited_and_the_chain_mended(made: Made, seq: int) -> None:
    def change(lines: list[bytes]) -> None:
        lines[seq - 1] = made.edited(seq, verdict="warn")
        made.rechained(lines, seq)

    made.write(change)
    first = (seq - 1) // 6 * 6 + 1
    assert kinds(look(made)) == [("rewritten", first, first + 5)]


@pytest.mark.parametrize("seq", [1, 6, 10, 11, 29])
def test_removed(made: Made, seq: int) -> None:
    made.write(lambda lines: lines.pop(seq - 1))
    report = look(made)
    assert kinds(report) == [("removed", seq, seq)]
    assert report.signed == 30  # the next record names what is missing


def test_a_run_removed(made: Made) -> None:
    made.write(lambda lines: lines.__delitem__(slice(9, 14)))
    report = look(made)
    assert kinds(report) == [("removed", 10, 14)]
    assert report.signed == 6
    assert "can't be held against the tree" in report.notes[-1]


def test_the_first_day_removed(made: Made) -> None:
    (made.folder / "2023-11-14.jsonl").unlink()
    assert kinds(look(made)) == [("removed", 1, 10)]


def test_removed_and_renumbered(made: Made) -> None:
    def change(lines: list[bytes]) -> None:
        lines.pop(9)
        for number in range(9, len(lines)):
            lines[number] = made.edited(number + 2, seq=number + 1)
        made.rechained(lines, 9)

    made.write(change)
    assert kinds(look(made)) == [("rewritten", 7, 12), ("cut-off", 30, 30)]


@pytest.mark.parametrize(("first", "second", "told"), [(5, 6, 5), (10, 11, 10), (8, 20, 8)])
def test_reordered(made: Made, first: int, second: int, told: int) -> None:
    def change(lines: list[bytes]) -> None:
        lines[first - 1], lines[second - 1] = lines[second - 1], lines[first - 1]

    made.write(change)
    found = kinds(look(made))
    assert {kind for kind, _, _ in found} == {"reordered"}
    assert told in [seq for _, seq, _ in found] or second in [seq for _, seq, _ in found]


def test_moved_forward(made: Made) -> None:
    made.write(lambda lines: lines.insert(4, lines.pop(19)))
    assert kinds(look(made)) == [("reordered", 20, 20)]


def test_moved_back(made: Made) -> None:
    made.write(lambda lines: lines.insert(19, lines.pop(4)))
    assert kinds(look(made)) == [("reordered", 5, 5)]


def test_repeated(made: Made) -> None:
    made.write(lambda lines: lines.insert(12, lines[7]))
    assert kinds(look(made)) == [("repeated", 8, 8)]


@pytest.mark.parametrize("count", [1, 4, 10, 17])
def test_cut_off(made: Made, count: int) -> None:
    made.write(lambda lines: lines.__delitem__(slice(30 - count, 30)))
    (found,) = look(made).findings
    assert (found.kind, found.seq, found.last) == ("cut-off", 31 - count, 30)
    assert found.line == len(Path(found.file).read_bytes().splitlines())


def test_everything_cut_off(made: Made) -> None:
    made.write(lambda lines: lines.clear())
    assert kinds(look(made)) == [("cut-off", 1, 30)]


def test_cut_off_with_its_checkpoints_shows_beside_one_that_lies_elsewhere(made: Made, tmp_path: Path) -> None:
    elsewhere = tmp_path / "kept.jsonl"
    elsewhere.write_bytes((made.folder / "checkpoints.jsonl").read_bytes())
    made.notes = made.notes[:3]
    made.lines = made.lines[:18]
    made.write()
    assert look(made).intact
    assert kinds(look(made, Ask(against=(elsewhere,)))) == [("cut-off", 19, 30)]


def test_checkpoints_taken_away(made: Made) -> None:
    made.lines = [made.edited(seq, ts=DAY + 60 * seq) for seq in range(1, 31)]
    made.rechained(made.lines, 1)
    made.notes = []
    made.write()
    assert kinds(look(made)) == [("unsigned", 1, 30)]


def test_a_young_tail_waits_for_its_checkpoint(made: Made) -> None:
    made.write_notes(made.notes[:-1])
    report = look(made)
    assert report.intact
    assert report.notes == ["the last 6 records wait for the next checkpoint"]


def test_a_line_that_is_no_record(made: Made) -> None:
    made.write(lambda lines: lines.__setitem__(7, b"{x"))
    assert kinds(look(made)) == [("unreadable", 8, 8)]


def test_a_write_that_a_crash_cut_short_is_no_finding(made: Made) -> None:
    made.write(lambda lines: lines.insert(7, lines[7][:40]))
    report = look(made)
    assert report.intact
    assert "cut short" in report.notes[0]


def test_a_torn_tail(made: Made) -> None:
    path = made.folder / "2023-11-16.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert kinds(look(made)) == [("unreadable", 30, 30), ("cut-off", 30, 30)]


def test_a_checkpoint_that_isnt_the_hosts(made: Made, tmp_path: Path) -> None:
    other = Made(tmp_path / "other")
    made.write_notes([*made.notes, other.notes[2]])
    assert kinds(look(made)) == [("checkpoint", 0, 0)]


def test_a_checkpoint_edited(made: Made) -> None:
    made.write_notes([made.notes[0].replace("\n6\n", "\n7\n"), *made.notes[1:]])
    (found,) = look(made).findings
    assert (found.kind, found.line) == ("checkpoint", 1)
    assert found.file.endswith("checkpoints.jsonl")


def test_a_host_that_signed_two_histories(made: Made) -> None:
    made.write_notes([*made.notes, made.signer.note(30, bytes(32))])
    assert ("checkpoint", 30, 30) in kinds(look(made))


def test_keys(made: Made) -> None:
    assert look(made, Ask(keys={"h1": [made.signer.verifier]})).intact
    assert kinds(look(made, Ask(keys={"h1": ["ironcd/h1+00000000+AA=="]}))) == [("key", 0, 0)]


def test_a_second_ledger_of_a_host_shows(made: Made, tmp_path: Path) -> None:
    other = Made(tmp_path / "elsewhere")
    other.folder.rename(tmp_path / "h1~2")
    first, second = verify_all(tmp_path, Ask(), host="h1")
    assert first.intact
    assert kinds(second) == [("key", 0, 0)]
    trusted = Ask(keys={"h1": [made.signer.verifier, other.signer.verifier]})
    assert all(report.intact for report in verify_all(tmp_path, trusted))


def test_a_gap_that_is_known_is_told_as_one(made: Made) -> None:
    made.write(lambda lines: lines.__delitem__(slice(9, 14)))
    gaps = made.folder.parent / ".gaps"
    gaps.mkdir()
    gap = {"host": "h1", "first": 10, "last": 14, "at": DAY}
    (gaps / "0000-00-00.jsonl").write_bytes(msgspec.json.encode(gap) + b"\n")
    assert kinds(look(made)) == [("gap", 10, 14)]


def test_a_hosts_own_folder(made: Made) -> None:
    own = made.folder.parent / "state" / "ledger"
    own.parent.mkdir()
    made.folder.rename(own)
    (own / "about.json").unlink()
    (own.parent / "ledger-key.pub").write_text(made.signer.verifier + "\n")
    (report,) = verify_all(own, Ask())
    assert (report.host, report.records, report.checkpoints, report.findings) == ("h1", 30, 5, [])


def test_silence_is_noted(made: Made) -> None:
    made.lines[20:] = [made.edited(seq, ts=DAY + 1000 + seq) for seq in range(21, 31)]
    made.rechained(made.lines, 20)
    made.write()
    assert any("silent for 1001 s before record 21" in note for note in look(made).notes)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_change_of_any_byte_is_found(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    made = Made(tmp_path_factory.mktemp("record"), count=12, every=4)
    path = made.folder / f"2023-11-{data.draw(st.integers(14, 16))}.jsonl"
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    assert not look(made).intact
