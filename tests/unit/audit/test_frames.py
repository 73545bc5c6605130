"""Lines in the middle of a compressed file, and a file that is plain zstd to everybody else."""

from __future__ import annotations

from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.audit import days, frames
from orchestrator.audit.frames import LINES, Frames
from orchestrator.audit.seal import write_sealed


def lines(count: int, first: int = 1) -> list[bytes]:
    return [b'{"seq":%d,"x":"%d"}' % (seq, seq * 7) for seq in range(first, first + count)]


def made(folder: Path, content: list[bytes]) -> Path:
    path = folder / "2026-01-01.jsonl.zst"
    write_sealed(path, (line + b"\n" for line in content))
    return path


@pytest.mark.parametrize("count", [1, LINES - 1, LINES, LINES + 1, 5 * LINES + 3])
def test_each_line_is_found_by_its_number(count: int, tmp_path: Path) -> None:
    content = lines(count, first=40)
    read = Frames(made(tmp_path, content))
    assert read.lines(range(40, 40 + count)) == dict(enumerate(content, start=40))
    assert read.lines([39 + count]) == {39 + count: content[-1]}
    assert read.lines([0, 39, 40 + count]) == {}


def test_it_is_plain_zstd(tmp_path: Path) -> None:
    content = lines(3 * LINES)
    path = made(tmp_path, content)
    assert [line.data for line in days.read(path)] == content
    with path.open("rb") as file:
        reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        assert reader.read().splitlines() == content


@settings(deadline=None, max_examples=30)
@given(seqs=st.lists(st.integers(1, 2000), unique=True, min_size=1, max_size=50))
def test_numbers_with_holes_and_lines_without_one(tmp_path_factory: pytest.TempPathFactory, seqs: list[int]) -> None:
    content = [line for seq in sorted(seqs) for line in (b"no record", b'{"seq":%d}' % seq)]
    read = Frames(made(tmp_path_factory.mktemp("f"), content))
    assert read.lines(range(1, 2001)) == {seq: b'{"seq":%d}' % seq for seq in sorted(seqs)}


def test_a_file_without_a_table(tmp_path: Path) -> None:
    path = tmp_path / "x.zst"
    for content in (b"", b"short", zstandard.compress(b"line\n" * 100)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="no table"):
            Frames(path)


def test_a_spoiled_frame_is_an_error(tmp_path: Path) -> None:
    path = made(tmp_path, lines(LINES))
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x|zst"):
        Frames(path).lines([5])


def test_what_a_frame_holds_is_what_was_written(tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as file:
        assert b"".join(frames.write(file, [b"a\n", b"b\n"])) == b"a\nb\n"
