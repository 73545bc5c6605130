"""The ledger's files, for whoever reads them: the gateway that writes them, and the agent that ships them.

``<folder>/2026-01-31.jsonl`` holds one UTC day's lines, each one JSON object that ends in a newline; sequence numbers grow
by one from line to line and from file to file.  ``<folder>/durable`` holds the number of the last line that is safely on
disk (8 bytes, big-endian): a line past it could still be written anew, with other content, after a power cut, so nobody
is told of it.  The oldest files may be gone (retention); a reader then starts at the first line that there is.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

DURABLE = "durable"
_SEGMENT = re.compile(r"\d{4}-\d{2}-\d{2}\.jsonl")
MAX_LINE = 1 << 16


class _Numbered(msgspec.Struct):
    seq: int


_decoder = msgspec.json.Decoder(_Numbered)


def segments(folder: Path) -> list[Path]:
    """The day files in ``folder``, oldest first."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return [folder / name for name in sorted(names) if _SEGMENT.fullmatch(name)]


def seq_of(line: bytes) -> int:
    """The sequence number of a ledger's line.  Raises ValueError where it is none."""
    try:
        return _decoder.decode(line).seq
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a ledger's line: {error}") from error


def durable_seq(folder: Path) -> int:
    """Number of the last line that is on disk for good; 0 where there is none."""
    try:
        mark = (folder / DURABLE).read_bytes()
    except FileNotFoundError:
        return 0
    return int.from_bytes(mark, "big") if len(mark) == 8 else 0


def ended(folder: Path) -> list[tuple[Path, int]]:
    """The day files that have a later one behind them, oldest first, each with the number of its last line."""
    files = segments(folder)
    found = []
    for path, later in itertools.pairwise(files):
        first = _first(later)
        if first:
            found.append((path, first - 1))
    return found


class LedgerReader:
    """Reads lines by number while the gateway goes on writing.  Keeps its place, so reading on is cheap."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._place: tuple[int, Path, int] | None = None

    def last_seq(self) -> int:
        return durable_seq(self._folder)

    def first_seq(self) -> int:
        """Number of the oldest line still there; 0 where there is none."""
        for path in segments(self._folder):
            first = _first(path)
            if first:
                return first
        return 0

    def read(self, first_seq: int, limit: int = 1000) -> list[str]:
        """Up to ``limit`` lines, without their newlines, from number ``first_seq`` on (or the oldest after it)."""
        last = durable_seq(self._folder)
        place = self._find(first_seq) if first_seq <= last else None
        lines: list[str] = []
        if place is None:
            return lines
        for seq, line, path, end in _lines_from(self._folder, *place):
            if seq > last:
                break
            lines.append(line.decode())
            self._place = (seq + 1, path, end)
            if len(lines) >= limit:
                break
        return lines

    def _find(self, seq: int) -> tuple[Path, int] | None:
        if self._place is not None and self._place[0] == seq and self._place[1].exists():
            return self._place[1], self._place[2]
        chosen: Path | None = None
        for path in segments(self._folder):
            first = _first(path)
            if first and (first <= seq or chosen is None):
                chosen = path
            if first >= seq:
                break
        return None if chosen is None else (chosen, _offset(chosen, seq))


def _lines_from(folder: Path, path: Path, offset: int) -> Iterator[tuple[int, bytes, Path, int]]:
    """Whole lines from ``offset`` of ``path`` on: number, line, the file it is in, and where it ends there."""
    for current in [path, *(other for other in segments(folder) if other > path)]:
        with current.open("rb") as file:
            file.seek(offset if current == path else 0)
            while (line := file.readline(MAX_LINE)).endswith(b"\n"):
                yield seq_of(line), line[:-1], current, file.tell()


def _first(path: Path) -> int:
    with path.open("rb") as file:
        line = file.readline(MAX_LINE)
    return seq_of(line) if line.endswith(b"\n") else 0


def _offset(path: Path, seq: int) -> int:
    """Where the first line with a number of at least ``seq`` begins: a binary search over bytes."""
    with path.open("rb") as file:
        low, high = 0, path.stat().st_size
        while low < high:
            middle = (low + high) // 2
            start, end, number = _line_at_or_after(file, middle)
            if start >= high or number is None or number >= seq:
                high = middle
            else:
                low = end
        return low


def _line_at_or_after(file: BinaryIO, position: int) -> tuple[int, int, int | None]:
    """Start, end and number of the first line that starts at ``position`` or after; no number where there is none."""
    file.seek(max(position - 1, 0))
    if position:
        file.readline(MAX_LINE)
    start = file.tell()
    line = file.readline(MAX_LINE)
    return start, file.tell(), seq_of(line) if line.endswith(b"\n") else None
