"""``build/security.json``: what each row of the attack table came to, by the tests that are named after it.

A row is listed only where all of its tests ran and passed; one that failed, was skipped, or has none is left out.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.security.lab.rows import ROWS

_NAME = re.compile(r"test_row_(\d\d(?:(?:_and)?_\d\d)*)_")


def rows_of(name: str) -> list[int]:
    """The rows that a test is named after: ``test_row_14_and_62_names_...`` is about 14 and 62."""
    match = _NAME.match(name)
    return [int(row) for row in re.findall(r"\d\d", match[1])] if match else []


class Report:
    def __init__(self, file: Path) -> None:
        self._file = file
        self._passed: dict[int, list[str]] = defaultdict(list)
        self._not: set[int] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.rpartition("::")[2]
        for row in rows_of(name):
            if not report.passed:
                self._not.add(row)
            elif report.when == "call":
                self._passed[row].append(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps(self._rows(), indent=2) + "\n")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        rows = self._rows()
        missing = sorted(set(ROWS) - {row["row"] for row in rows})
        terminalreporter.line(f"{len(rows)} of {len(ROWS)} rows hold; written to {self._file}")
        if missing:
            terminalreporter.line(f"without proof: {', '.join(map(str, missing))}", red=True)

    def _rows(self) -> list[dict[str, object]]:
        return [
            {"row": row, "attack": attack, "result": result, "evidence": self._passed[row]}
            for row, (attack, result) in ROWS.items()
            if self._passed[row] and row not in self._not
        ]
