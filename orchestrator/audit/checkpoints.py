"""The signed checkpoints that came with a ledger, beside its lines: ``checkpoints.jsonl``, as the host has it.

They are kept as they came, also those whose signature doesn't fit: `orchestrator.audit.verify` judges.  What isn't a
checkpoint at all is left out and logged.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog

from orchestrator.audit import days
from orchestrator.audit.notes import BadNote, parse_note
from orchestrator.system.files import append_line, sync_folder

FILE = "checkpoints.jsonl"
_TAIL = 64 << 10

log = structlog.get_logger()


class Kept(msgspec.Struct, frozen=True):
    """``ts`` is when the host wrote it, in its own file, and when it came, in the control plane's."""

    ts: float
    size: int
    note: str


class Place(NamedTuple):
    path: Path
    number: int
    kept: Kept | None
    """None: the line can't be read."""


def kept(folder: Path) -> Iterator[Place]:
    """The checkpoints in ``folder`` in the order in which they came."""
    path = folder / FILE
    return read(path) if path.exists() else iter(())


def newest(folder: Path) -> Kept | None:
    """The last one that can be read, looked for at the end of the file."""
    try:
        with (folder / FILE).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
            return msgspec.json.decode(line, type=Kept)
    return None


def read(path: Path) -> Iterator[Place]:
    for line in days.read(path):
        try:
            yield Place(path, line.number, msgspec.json.decode(line.data, type=Kept))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            yield Place(path, line.number, None)


class Checkpoints:
    """Those of one ledger, for the process that receives them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._newest: Kept | None = None
        for place in kept(folder):
            self._newest = place.kept or self._newest

    @property
    def size(self) -> int:
        return self._newest.size if self._newest is not None else 0

    def take(self, notes: Iterable[str], now: float) -> int:
        """Keep what is new of ``notes``; the size of the newest one, once it is on the disk.  Raises OSError."""
        fresh: list[Kept] = []
        newest = self._newest
        for text in notes:
            try:
                size = parse_note(text).size
            except BadNote as error:
                log.error("checkpoint_refused", folder=self._folder.name, error=str(error))  # noqa: TRY400 - it says all
                continue
            if newest is None or size > newest.size or (size == newest.size and text != newest.note):
                newest = Kept(round(now, 3), size, text)
                fresh.append(newest)
        if fresh:
            path = self._folder / FILE
            made = not path.exists()
            append_line(path, b"".join(msgspec.json.encode(one) + b"\n" for one in fresh))
            if made:
                sync_folder(self._folder)
            self._newest = newest
        return self.size
