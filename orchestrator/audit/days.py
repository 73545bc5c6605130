"""One ledger's days on the control plane's disk: open ones that lines are appended to, sealed ones that are compressed.

``2026-01-31.jsonl``      an open day: the lines as they came on that day
``2026-01-31.jsonl.zst``  the same, sealed: the original that proves the record
``2026-01-31.tree.json``  where the tree stood before a sealed day's first line: verifying may begin there
``2026-01-31.parquet``    the same events for the search engine; may be deleted and is made again

A day of both forms was caught between sealing and removing the open one (a crash), or got lines after it was sealed (the
clock was set back): what is in the open file behind the sealed one's last line counts, and the rest is a repetition.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import msgspec
import zstandard

_DAY = re.compile(r"(\d{4}-\d{2}-\d{2})\.jsonl(\.zst)?")
MAX_LINE = 1 << 20
"""Longer ones are cut into pieces that fit nothing, so a file without line ends can't fill the memory."""


class Line(NamedTuple):
    """``number`` counts from 1 in ``path``; ``data`` is without its end; ``whole`` is False for a last line without one."""

    path: Path
    number: int
    data: bytes
    whole: bool


class _Head(msgspec.Struct):
    seq: int


_head = msgspec.json.Decoder(_Head)


def days(folder: Path) -> list[str]:
    """The days that there are lines of, in order."""
    if not folder.is_dir():
        return []
    return sorted({found[1] for path in folder.iterdir() if (found := _DAY.fullmatch(path.name))})


def open_file(folder: Path, day: str) -> Path:
    return folder / f"{day}.jsonl"


def sealed_file(folder: Path, day: str) -> Path:
    return folder / f"{day}.jsonl.zst"


def parquet_file(folder: Path, day: str) -> Path:
    return folder / f"{day}.parquet"


def tree_file(folder: Path, day: str) -> Path:
    return folder / f"{day}.tree.json"


def lines(folder: Path, day: str) -> Iterator[bytes]:
    """The whole lines of a day, in order."""
    return (line.data for line in placed(folder, day) if line.whole and line.data)


def placed(folder: Path, day: str) -> Iterator[Line]:
    """All lines of a day with the place of each, also torn and empty ones."""
    last = 0
    sealed = sealed_file(folder, day)
    if sealed.exists():
        for line in read(sealed):
            last = seq_of(line.data) or last
            yield line
    fresh = open_file(folder, day)
    if not fresh.exists():
        return
    for line in read(fresh):
        if not last or (seq_of(line.data) or 0) > last:
            yield line


def read(path: Path) -> Iterator[Line]:
    """The lines of one file, compressed or not."""
    with path.open("rb") as raw:
        file = _plain(raw) if path.suffix == ".zst" else raw
        number = 0
        while data := file.readline(MAX_LINE):
            number += 1
            whole = data.endswith(b"\n")
            yield Line(path, number, data[:-1] if whole else data, whole)


def seq_of(data: bytes) -> int | None:
    """The number that a line says it has; None where it says none."""
    try:
        return _head.decode(data).seq
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _plain(raw: BinaryIO) -> BinaryIO:
    reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
    return cast("BinaryIO", io.BufferedReader(cast("io.RawIOBase", reader), 1 << 20))
