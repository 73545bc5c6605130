"""Sealed days: nothing changes for who reads, searches or verifies, whenever the sealing is cut short."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.audit import Ledger, Query, days, seal
from orchestrator.audit.engine import Engine
from orchestrator.audit.seal import alone, seal_all, seal_day
from orchestrator.audit.search import find
from orchestrator.audit.verify import Ask, verify_all
from orchestrator.core.errors import OperationalError
from orchestrator.core.flow import Event, Identity

from .conftest import DAY, event
from .record import DAYS, Made

LATER = DAY + 30 * 86400


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = Engine(tmp_path)
    yield made
    made.close()


def test_days_that_are_over_are_sealed_once(made: Made, engine: Engine, tmp_path: Path) -> None:
    before = [line for day in DAYS for line in days.lines(made.folder, day)]
    assert seal_all(tmp_path, engine, LATER) == 3
    assert seal_all(tmp_path, engine, LATER) == 0
    assert sorted(path.suffix for path in made.folder.iterdir()) == sorted(
        [".zst", ".json", ".parquet"] * 3 + [".json", ".jsonl"]
    )
    assert [line for day in DAYS for line in days.lines(made.folder, day)] == before
    assert days.days(made.folder) == list(DAYS)
    (report,) = verify_all(tmp_path, Ask(), engine=engine)
    assert (report.findings, report.records, report.signed) == ([], 30, 30)


def test_today_stays_open(made: Made, engine: Engine, tmp_path: Path) -> None:
    assert seal_all(tmp_path, engine, DAY + 86400 * 2) == 2  # 2023-11-16, some hours in
    assert days.open_file(made.folder, DAYS[2]).exists()
    assert find(Ledger(tmp_path), Query()).events == find(Ledger(made.folder.parent), Query(gateway="h1")).events


def test_the_files_of_a_sealed_day_are_private(made: Made, engine: Engine) -> None:
    seal_day(made.folder, DAYS[0], engine)
    for path in (days.sealed_file(made.folder, DAYS[0]), days.parquet_file(made.folder, DAYS[0])):
        assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("step", ["write_sealed", "_write_tree", "refresh_parquet", "unlink"])
def test_a_sealing_that_was_cut_short_is_done_again(
    step: str, made: Made, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_args: object, **_kwargs: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if step == "unlink":
            patch.setattr(Path, "unlink", kill)
        elif step == "write_sealed":
            patch.setattr(os, "replace", kill)
        else:
            patch.setattr(seal, step, kill)
        with pytest.raises(Killed):
            seal_day(made.folder, DAYS[0], engine)
    ledger = Ledger(tmp_path)
    assert [event.seq for event in find(ledger, Query()).events] == list(range(1, 31))
    assert verify_all(tmp_path, Ask())[0].intact
    seal_day(made.folder, DAYS[0], engine)
    assert not days.open_file(made.folder, DAYS[0]).exists()
    assert [event.seq for event in find(ledger, Query()).events] == list(range(1, 31))
    assert verify_all(tmp_path, Ask(), engine=engine)[0].intact


def test_lines_that_came_after_the_sealing_are_sealed_too(made: Made, engine: Engine, tmp_path: Path) -> None:
    path = days.open_file(made.folder, DAYS[2])
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole[:6]))
    seal_day(made.folder, DAYS[2], engine)
    path.write_bytes(b"".join(whole[6:]))
    assert [event.seq for event in find(Ledger(tmp_path), Query()).events] == list(range(1, 31))
    seal_day(made.folder, DAYS[2], engine)
    assert list(days.lines(made.folder, DAYS[2])) == [line.rstrip(b"\n") for line in whole]
    assert [event.seq for event in find(Ledger(tmp_path), Query()).events] == list(range(1, 31))


def test_one_process_at_a_time(made: Made, engine: Engine, tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(OperationalError, match="another process"):
        seal_all(tmp_path, engine, LATER)


def test_a_manipulated_sealed_day_is_found(made: Made, engine: Engine, tmp_path: Path) -> None:
    made.write(lambda lines: lines.__setitem__(4, made.edited(5, verdict="allowed")))
    seal_all(tmp_path, engine, LATER)
    (found,) = verify_all(tmp_path, Ask())[0].findings
    assert (found.kind, found.seq, found.line) == ("edited", 5, 5)
    assert found.file.endswith("2023-11-14.jsonl.zst")


def test_an_index_that_says_something_else_is_found(made: Made, engine: Engine, tmp_path: Path) -> None:
    seal_all(tmp_path, engine, LATER)
    days.parquet_file(made.folder, DAYS[0]).write_bytes(days.parquet_file(made.folder, DAYS[1]).read_bytes())
    assert [found.kind for found in verify_all(tmp_path, Ask(), engine=engine)[0].findings] == ["index"]
    days.parquet_file(made.folder, DAYS[0]).write_bytes(b"nonsense")
    assert [found.kind for found in verify_all(tmp_path, Ask(), engine=engine)[0].findings] == ["index"]


def test_a_spoiled_index_is_passed_over_in_a_search(made: Made, engine: Engine, tmp_path: Path) -> None:
    seal_all(tmp_path, engine, LATER)
    days.parquet_file(made.folder, DAYS[0]).write_bytes(b"nonsense")
    assert [event.seq for event in find(Ledger(tmp_path), Query()).events] == list(range(1, 31))


def test_verifying_from_a_sealed_day_on(made: Made, engine: Engine, tmp_path: Path) -> None:
    seal_all(tmp_path, engine, LATER)
    (report,) = verify_all(tmp_path, Ask(since=DAYS[1]))
    assert (report.findings, report.notes, report.first, report.records, report.signed) == ([], [], 11, 20, 30)
    days.sealed_file(made.folder, DAYS[0]).unlink()
    assert verify_all(tmp_path, Ask(since=DAYS[1]))[0].intact
    assert [found.kind for found in verify_all(tmp_path, Ask())[0].findings] == ["removed"]


def test_a_forged_start_fits_no_checkpoint(made: Made, engine: Engine, tmp_path: Path) -> None:
    seal_all(tmp_path, engine, LATER)
    tree = days.tree_file(made.folder, DAYS[1])
    known = msgspec.json.decode(tree.read_bytes())
    tree.write_bytes(msgspec.json.encode({**known, "nodes": ["00" * 32 for _ in known["nodes"]]}))
    assert [found.kind for found in verify_all(tmp_path, Ask(since=DAYS[1]))[0].findings] == ["rewritten"]


def test_the_engine_reads_the_record_and_nothing_else(made: Made, engine: Engine, tmp_path: Path) -> None:
    import duckdb

    outside = tmp_path.parent / "outside.jsonl"
    outside.write_bytes(b'{"event":"open"}\n')
    with pytest.raises(duckdb.Error, match=r"disabled|not allowed|[Pp]ermission"):
        engine.select([], [outside], [], [], 1)


EVENTS = st.builds(
    event,
    seq=st.just(0),
    ts=st.integers(0, 50).map(lambda second: DAY + second / 4),
    verdict=st.sampled_from(["allowed", "warn", "blocked"]),
    host=st.sampled_from(["", "a.example", "b.a.example", "xa.example", "1' OR 1=1 --"]),
    who=st.builds(
        Identity,
        runner=st.sampled_from(["R", "S"]),
        repo=st.sampled_from(["", "o/a", "O/a", "o/b"]),
        job_id=st.integers(0, 3),
    ),
    flags=st.sampled_from([(), ("ech",), ("ech", "multi_tenant")]),
    tls=st.sampled_from([{}, {"alpn": "h2", "records": 1}]),
    bytes_up=st.integers(0, 1 << 40),
    would_block=st.booleans(),
)
QUERIES = st.builds(
    Query,
    job=st.integers(0, 3),
    repo=st.sampled_from(["", "o/a", "O/A", "o/b"]),
    runner=st.sampled_from(["", "R"]),
    host=st.sampled_from(["", "a.example", "*.a.example", "1' OR 1=1 --"]),
    verdict=st.sampled_from(["", "", "blocked"]),
    since=st.sampled_from([0.0, DAY + 5]),
    until=st.sampled_from([0.0, DAY + 10]),
)


@settings(deadline=None, max_examples=25)
@given(events=st.lists(EVENTS, min_size=1, max_size=25), query=QUERIES, limit=st.integers(1, 10))
def test_sealed_or_not_the_answer_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, events: list[Event], query: Query, limit: int
) -> None:
    folder = tmp_path_factory.mktemp("record")
    (folder / "h1").mkdir()
    numbered = [msgspec.structs.replace(one, seq=seq) for seq, one in enumerate(events, start=1)]
    half = len(numbered) // 2
    for day, part in zip(DAYS, (numbered[:half], numbered[half:]), strict=False):
        if part:
            data = b"".join(msgspec.json.encode(one) + b"\n" for one in part)
            (folder / "h1" / f"{day}.jsonl").write_bytes(data)
    ledger = Ledger(folder)
    scanned = pages(ledger, query, limit)
    seal_all(folder, ledger.engine, LATER)
    assert pages(ledger, query, limit) == scanned
    ledger.engine.close()


def pages(ledger: Ledger, query: Query, limit: int) -> list[tuple[Event, ...]]:
    found, cursor = [], ""
    while True:
        page = find(ledger, query, limit=limit, cursor=cursor)
        found.append(page.events)
        cursor = page.cursor
        if not cursor:
            return found
