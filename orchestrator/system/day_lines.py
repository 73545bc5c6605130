"""Files of lines, one file a day: appended to, synced, read back in order.

A crash can leave a line without its end: what is appended next begins on a line of its own, and a reader that meets the
torn one skips it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.system.files import sync_folder

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


def day_of(at: float) -> str:
    """The day, in UTC, of a time in seconds since the epoch."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")


def append(folder: Path, day: str, lines: Iterable[bytes]) -> None:
    """Append ``lines`` (without their ends) to the file of ``day``; back once they are on the disk."""
    if not _DAY.fullmatch(day):
        raise ValueError(f"not a day: {day!r}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{day}.jsonl"
    fresh = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        data = (b"\n" if torn else b"") + b"".join(line + b"\n" for line in lines)
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if fresh:
        sync_folder(folder)


def days(folder: Path) -> list[str]:
    """The days that have a file, in order."""
    if not folder.is_dir():
        return []
    return sorted(path.stem for path in folder.glob("*.jsonl") if _DAY.fullmatch(path.stem))


def read(folder: Path, day: str) -> Iterator[bytes]:
    """The whole lines of a day, in order."""
    try:
        with (folder / f"{day}.jsonl").open("rb") as file:
            for line in file:
                if line.endswith(b"\n") and len(line) > 1:
                    yield line[:-1]
    except FileNotFoundError:
        return
