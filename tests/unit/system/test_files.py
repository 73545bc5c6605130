"""Files are whole or not there, whatever was left of them before."""

from __future__ import annotations

import pytest

from orchestrator.system.files import append_line


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b"new\n"),
        (b"one\n", b"one\nnew\n"),
        (b"one\ntorn", b"one\nnew\n"),
        (b"torn", b"new\n"),
        (b"one\n" + b"x" * 200_000, b"one\nnew\n"),
        (b"y" * 200_000 + b"\n", b"y" * 200_000 + b"\nnew\n"),
    ],
)
def test_a_line_is_appended_behind_the_last_whole_one(tmp_path, before, after):
    path = tmp_path / "lines"
    path.write_bytes(before)
    append_line(path, b"new\n")
    assert path.read_bytes() == after
