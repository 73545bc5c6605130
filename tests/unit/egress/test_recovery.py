from __future__ import annotations

from pathlib import Path

from orchestrator.egress.recovery import recover


def test_a_line_with_bytes_that_are_no_text_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "2026-01-01.jsonl").write_bytes(b'{"seq":1,"prev":""}\n{"seq":2,"prev":"\xff\xfe"}\n')
    at, missing = recover(tmp_path)
    assert (at.frontier.size, missing) == (1, 0)
    assert (tmp_path / "damaged-2.bin").read_bytes() == b'{"seq":2,"prev":"\xff\xfe"}\n'
