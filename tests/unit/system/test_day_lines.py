"""Lines that survive crashes in the middle of a write."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.system import day_lines


def test_lines_by_day(tmp_path: Path) -> None:
    day_lines.append(tmp_path / "x", "2026-01-02", [b"a", b"b"])
    day_lines.append(tmp_path / "x", "2026-01-01", [b"c"])
    day_lines.append(tmp_path / "x", "2026-01-02", [b"d"])
    assert day_lines.days(tmp_path / "x") == ["2026-01-01", "2026-01-02"]
    assert list(day_lines.read(tmp_path / "x", "2026-01-02")) == [b"a", b"b", b"d"]
    assert list(day_lines.read(tmp_path / "x", "2026-01-03")) == []
    assert day_lines.days(tmp_path / "nowhere") == []


def test_a_torn_line_spoils_no_other(tmp_path: Path) -> None:
    day_lines.append(tmp_path, "2026-01-01", [b"whole"])
    with (tmp_path / "2026-01-01.jsonl").open("ab") as file:
        file.write(b"to")
    assert list(day_lines.read(tmp_path, "2026-01-01")) == [b"whole"]
    day_lines.append(tmp_path, "2026-01-01", [b"next"])
    assert list(day_lines.read(tmp_path, "2026-01-01")) == [b"whole", b"to", b"next"]


def test_a_day_is_no_path(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a day"):
        day_lines.append(tmp_path, "../x", [b"a"])


def test_days_are_utc() -> None:
    assert day_lines.day_of(1_700_000_000.0) == "2023-11-14"
