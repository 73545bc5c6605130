"""What is over goes, what is held stays, and the proof of the rest holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.audit import Ledger, Query, days, retain
from orchestrator.audit.engine import Engine
from orchestrator.audit.retain import add_hold, load_holds, remove_hold
from orchestrator.audit.seal import seal_all
from orchestrator.audit.search import find
from orchestrator.audit.verify import Ask, verify_all
from orchestrator.core.errors import OperationalError, UserError
from orchestrator.core.retention import DAY_S, Hold, Keep, Retention

from .conftest import DAY
from .record import DAYS, Made

YEAR = DAY + 366 * DAY_S
TWO_YEARS = DAY + 731 * DAY_S
KEPT = Retention()


@pytest.fixture
def made(tmp_path: Path) -> Made:
    made = Made(tmp_path)
    engine = Engine(tmp_path)
    seal_all(tmp_path, engine, YEAR)
    engine.close()
    return made


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = Engine(tmp_path)
    yield made
    made.close()


def run(
    folder: Path, engine: Engine, now: float, retention: Retention = KEPT, **options: bool
) -> list[tuple[str, int, int, int]]:
    done = retain.retain(folder, engine, retention, now, **options)
    return [(one.day, one.egress, one.security, one.held) for one in done]


def look(folder: Path, engine: Engine, now: float):
    (report,) = verify_all(folder, Ask(cutoff=KEPT.youngest_cutoff(now)), engine=engine)
    return report


def seqs(folder: Path) -> list[int]:
    return [event.seq for event in find(Ledger(folder), Query()).events]


def test_young_records_stay(made: Made, engine: Engine, tmp_path: Path) -> None:
    assert run(tmp_path, engine, DAY + 300 * DAY_S) == []
    assert seqs(tmp_path) == list(range(1, 31))


def test_each_class_has_its_time_and_the_proof_holds(made: Made, engine: Engine, tmp_path: Path) -> None:
    assert run(tmp_path, engine, YEAR) == [(day, 8, 0, 0) for day in DAYS]
    assert seqs(tmp_path) == [5, 10, 15, 20, 25, 30]  # blocked ones
    report = look(tmp_path, engine, YEAR)
    assert (report.findings, report.deleted, report.records, report.checkpoints) == ([], 24, 6, 5)
    assert run(tmp_path, engine, YEAR) == []
    assert run(tmp_path, engine, TWO_YEARS) == [(day, 0, 2, 0) for day in DAYS]
    report = look(tmp_path, engine, TWO_YEARS)
    assert (report.findings, report.deleted, report.records, report.checkpoints) == ([], 30, 0, 5)
    assert seqs(tmp_path) == []


def test_nothing_of_what_was_deleted_is_left(made: Made, engine: Engine, tmp_path: Path) -> None:
    run(tmp_path, engine, YEAR)
    for day in DAYS:
        left = b"".join(days.lines(made.folder, day)) + days.parquet_file(made.folder, day).read_bytes()
        assert b"site1.example" not in left
        assert b"site12.example" not in left


def test_a_dry_run_tells_and_does_nothing(made: Made, engine: Engine, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in made.folder.iterdir()}
    assert run(tmp_path, engine, YEAR, dry_run=True) == [(day, 8, 0, 0) for day in DAYS]
    assert {path: path.read_bytes() for path in made.folder.iterdir()} == before


def test_an_edit_beside_tombstones_is_found(made: Made, engine: Engine, tmp_path: Path) -> None:
    run(tmp_path, engine, YEAR)
    path = days.sealed_file(made.folder, DAYS[1])
    lines = list(days.lines(made.folder, DAYS[1]))
    at = next(number for number, line in enumerate(lines) if b'"seq":15' in line and b'"gone"' not in line)
    lines[at] = lines[at].replace(b'"blocked"', b'"allowed"')
    retain.write_sealed(path, (line + b"\n" for line in lines))
    assert {found.kind for found in look(tmp_path, engine, YEAR).findings} & {"rewritten", "edited"}


def test_a_tombstone_cant_hide_a_young_record(made: Made, engine: Engine, tmp_path: Path) -> None:
    run(tmp_path, engine, DAY + 20 * DAY_S, Retention(Keep(egress_days=10)))
    report = look(tmp_path, engine, DAY + 20 * DAY_S)
    assert {found.kind for found in report.findings} == {"early"}
    assert sum(found.last - found.seq + 1 for found in report.findings) == 24


def test_an_organisation_has_its_own_times(made: Made, engine: Engine, tmp_path: Path) -> None:
    longer = Retention(organisations={"acme": Keep(egress_days=0, security_days=0)})
    assert run(tmp_path, engine, TWO_YEARS, longer) == []
    other = Retention(Keep(0, 0), organisations={"acme": Keep(egress_days=30)})
    assert run(tmp_path, engine, YEAR, other) == [(day, 8, 0, 0) for day in DAYS]


@pytest.mark.parametrize(
    ("hold", "kept"),
    [
        (Hold("case", "suit", repo="acme/app"), 24),
        (Hold("case", "suit", job=11), 24),
        (Hold("case", "suit", org="ACME", until=DAY + 8.5), 7),
        (Hold("case", "suit", repo="acme/other"), 0),
        (Hold("case", "suit", gateway="h2"), 0),
    ],
)
def test_a_hold_keeps_what_it_matches(made: Made, engine: Engine, tmp_path: Path, hold: Hold, kept: int) -> None:
    add_hold(tmp_path, hold)
    done = run(tmp_path, engine, YEAR)
    assert sum(held for *_, held in done) == kept
    assert len(seqs(tmp_path)) == 6 + kept
    assert look(tmp_path, engine, YEAR).intact
    remove_hold(tmp_path, "case")
    run(tmp_path, engine, YEAR)
    assert len(seqs(tmp_path)) == 6
    assert look(tmp_path, engine, YEAR).intact


def test_holds(tmp_path: Path) -> None:
    add_hold(tmp_path, Hold("a", "x"))
    with pytest.raises(UserError):
        add_hold(tmp_path, Hold("a", "y"))
    with pytest.raises(UserError):
        remove_hold(tmp_path, "b")
    assert [hold.reason for hold in load_holds(tmp_path)] == ["x"]


def test_holds_that_cant_be_read_stop_everything(made: Made, engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "holds.json").write_bytes(b"[{")
    with pytest.raises(OperationalError):
        run(tmp_path, engine, YEAR)
    assert seqs(tmp_path) == list(range(1, 31))


def test_a_crash_before_the_index_was_made_anew_is_mended(
    made: Made, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(retain, "refresh_parquet", lambda *_args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(tmp_path, engine, YEAR)
    assert 1 not in seqs(tmp_path)
    run(tmp_path, engine, YEAR)
    assert look(tmp_path, engine, YEAR).intact
    assert b"site1.example" not in days.parquet_file(made.folder, DAYS[0]).read_bytes()


def test_a_day_is_looked_at_again_when_something_in_it_may_go(
    made: Made, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, engine, DAY + 300 * DAY_S)
    with monkeypatch.context() as patch:
        patch.setattr(days, "lines", lambda *_args: 1 / 0)
        assert run(tmp_path, engine, DAY + 301 * DAY_S) == []
    assert len(run(tmp_path, engine, DAY + 301 * DAY_S, Retention(Keep(300, 300)))) == 3
    add_hold(tmp_path, Hold("case", "suit"))
    assert len(seqs(tmp_path)) == 0
