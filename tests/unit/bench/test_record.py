"""The history that is searched is what it says: chained lines, spread over days and hosts, with an answer to each question."""

from __future__ import annotations

from pathlib import Path

import msgspec

from bench.record import DAYS, HOSTS, History
from orchestrator.audit import Ledger, Query
from orchestrator.audit.search import find
from orchestrator.audit.verify import Ask, verify_all
from orchestrator.core.flow import Event


def test_history(tmp_path: Path) -> None:
    history = History(tmp_path, DAYS * HOSTS * 400, 1_700_000_000 // 86400 * 86400)
    events = list(history.make())
    assert len(events) == DAYS * HOSTS * 400
    reports = verify_all(tmp_path, Ask())
    assert [report.ledger for report in reports] == [f"metal-{number}" for number in range(HOSTS)]
    assert {found.kind for report in reports for found in report.findings} <= {"unsigned"}
    decoded = [msgspec.json.decode(line, type=Event) for *_, line in events]
    for _, query, _, _, needle in history.questions():
        wanted = sum(query.matches(event) for event in decoded)
        assert 0 < wanted < len(decoded) / 10
        assert len(find(Ledger(tmp_path), query, limit=10).events) == min(wanted, 10)
        assert sum(needle in line for *_, line in events) >= wanted
    assert find(Ledger(tmp_path), Query(gateway="metal-0"), limit=1).events
