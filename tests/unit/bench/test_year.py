"""The year that is searched has its answers, its files are the product's own, and only what is over is deleted."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest

from bench import year
from bench.year import BY_HOST, DAYS, GATEWAYS, NOTHING, Year, ask, retain_a_day
from bench.year_make import day_of, lines, make
from orchestrator.audit import days
from orchestrator.audit.search import find
from orchestrator.core.flow import Event

FIRST = 1_700_000_000 // 86400 * 86400
PER_DAY = 700
"""On each host: more than a job's events, so that runners and jobs begin and end within days."""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Year:
    for name, value in {"DAYS": 5, "DAY": 2, "GATEWAYS": 3, "ASKED": 1, "LIMIT": 100}.items():
        monkeypatch.setattr(year, name, value)
    make(tmp_path, FIRST, 5, PER_DAY, [0, 1, 2])
    made = Year(tmp_path, FIRST, PER_DAY)
    monkeypatch.setattr(made, "job_day", 3)
    monkeypatch.setattr(made, "vm_day", 1)
    return made


def events() -> list[Event]:
    decoder = msgspec.json.Decoder(Event)
    return [
        decoder.decode(line)
        for gateway in range(3)
        for number in range(5)
        for line in lines(gateway, FIRST, number, PER_DAY, random.Random(gateway * 1000 + number))
    ]


def test_each_question_has_its_answer_and_the_peer_finds_it_too(small: Year) -> None:
    made = events()
    assert len(made) == 5 * 3 * PER_DAY
    assert len({(event.gateway, event.seq) for event in made}) == len(made)
    for figure, query, needle in small.questions():
        wanted = sum(query.matches(event) for event in made)
        assert (wanted > 0) == (figure is not NOTHING), figure.name
        _, found = ask(small.ledger, query)
        assert found == min(wanted, 100), figure.name
        assert not needle or small.grep(figure, needle) > 0
    assert {figure.name for figure, *_ in small.questions()} | {"year_retain"} == {f.name for f in year.FIGURES}


def test_the_search_file_is_what_the_product_makes_of_the_lines(small: Year) -> None:
    folder, day = small.folder / "metal-1", day_of(FIRST, 2)
    assert small.ledger.engine.agrees(days.sealed_file(folder, day), days.parquet_file(folder, day))


def test_a_day_that_is_over_goes_and_the_others_stay(small: Year) -> None:
    before = len(events())
    _, deleted = retain_a_day(small)
    blocked = sum(event.verdict == "blocked" for event in events() if event.ts < FIRST + 86400)
    assert deleted == 3 * PER_DAY - blocked
    question = next(query for figure, query, _ in small.questions() if figure is BY_HOST)
    left = find(small.ledger, msgspec.structs.replace(question, host=""), limit=100_000).events
    assert len(left) == before - deleted


def test_the_year_is_one() -> None:
    assert (DAYS, GATEWAYS, year.EVENTS) == (365, 4, 10_000_000)
