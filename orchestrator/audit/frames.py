"""Compressed lines that can be read in the middle: frames of some hundred lines, and at the end a table of where each begins.

The file is plain zstd to every other reader: frames one after another, and a skippable frame that says which number each
frame's first line has.  The search engine finds *which* records are wanted from a few columns; the records themselves are
then read here, which takes a frame for each instead of every column of everything.
"""

from __future__ import annotations

import bisect
import itertools
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
import zstandard

LINES = 256
LEVEL = 3
"""Higher ones take twice the time and save a twentieth: most of a line that isn't repeated is hashes."""
_SKIPPABLE = 0x184D2A50
_HEAD = struct.Struct("<II")
_ENTRY = struct.Struct("<QQ")
_TAIL = struct.Struct("<I8s")
_MARK = b"icframes"
_FRAME_LIMIT = 64 << 20


class _Numbered(msgspec.Struct):
    seq: int


_decoder = msgspec.json.Decoder(_Numbered)


def write(file: BinaryIO, lines: Iterable[bytes]) -> Iterator[bytes]:
    """Write ``lines``, each with its end; yields what each frame holds, once it is written."""
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
    table: list[tuple[int, int]] = []
    offset = seq = 0
    for block in _blocks(lines):
        seq = next((number for line in block if (number := _seq(line)) is not None), seq)
        content = b"".join(block)
        frame = compressor.compress(content)
        file.write(frame)
        table.append((seq, offset))
        offset += len(frame)
        yield content
    entries = b"".join(_ENTRY.pack(*entry) for entry in table)
    payload = entries + _TAIL.pack(len(table), _MARK)
    file.write(_HEAD.pack(_SKIPPABLE, len(payload)) + payload)


class Frames:
    """The lines of one file, by their numbers."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError for a file without a table, and OSError."""
        self._path = path
        with path.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(max(0, end - _TAIL.size))
            tail = file.read()
            count, mark = _TAIL.unpack(tail) if len(tail) == _TAIL.size else (0, b"")
            size = count * _ENTRY.size
            start = end - _TAIL.size - size
            if mark != _MARK or start < 0:
                raise ValueError(f"{path} has no table of its frames")
            file.seek(start)
            table = list(_ENTRY.iter_unpack(file.read(size)))
        self._firsts = [seq for seq, _ in table]
        self._offsets = [offset for _, offset in table] + [start - _HEAD.size]

    @property
    def last_first(self) -> int:
        """The highest number that a frame begins with; 0 where there is none."""
        return max(self._firsts, default=0)

    def lines(self, seqs: Iterable[int]) -> dict[int, bytes]:
        """The lines of these numbers, as far as they are there and stand where the table says.  Raises ValueError."""
        wanted = sorted(set(seqs))
        found: dict[int, bytes] = {}
        with self._path.open("rb") as file:
            for number, group in itertools.groupby(wanted, self._frame_of):
                if number < 0:
                    continue
                found |= _picked(self._content(file, number).split(b"\n"), self._firsts[number], set(group))
        return found

    def since(self, seq: int) -> Iterator[bytes]:
        """The lines from the frame on that number ``seq`` belongs in, without their ends.  Raises ValueError."""
        with self._path.open("rb") as file:
            for number in range(max(0, self._frame_of(seq)), len(self._firsts)):
                yield from self._content(file, number).split(b"\n")

    def _frame_of(self, seq: int) -> int:
        return bisect.bisect_right(self._firsts, seq) - 1

    def _content(self, file: BinaryIO, number: int) -> bytes:
        begin, end = self._offsets[number], self._offsets[number + 1]
        file.seek(begin)
        try:
            return zstandard.ZstdDecompressor().decompress(file.read(end - begin), max_output_size=_FRAME_LIMIT)
        except zstandard.ZstdError as error:
            raise ValueError(f"{self._path}: {error}") from error


def _picked(lines: list[bytes], first: int, wanted: set[int]) -> dict[int, bytes]:
    """Those ``wanted`` of a frame that begins with number ``first``.  Most frames have no gap: a line is where it should be."""
    found = {seq: lines[seq - first] for seq in wanted if first <= seq < first + len(lines)}
    if len(found) == len(wanted) and all(_seq(line) == seq for seq, line in found.items()):
        return found
    return {seq: line for line in lines if (seq := _seq(line)) is not None and seq in wanted}


def _blocks(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    rest = iter(lines)
    while block := list(itertools.islice(rest, LINES)):
        yield block


def _seq(line: bytes) -> int | None:
    try:
        return _decoder.decode(line).seq
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
