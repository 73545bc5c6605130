"""Copies of signed checkpoints in a place that is nobody's here: a mounted bucket with object lock, a share of another team.

Whoever owns the control plane can write its record and its checkpoints anew, and with a host's key sign that too.  A copy
that was made before, and that neither can change, shows it.  So a copy is a file of its own, made once under a name that
never was: nothing is appended to, renamed or replaced, which such places don't allow, and don't need to.

``DIR/LEDGER/SIZE-MILLISECONDS.json``: one checkpoint each, in the form of a line of ``checkpoints.jsonl``.  A checkpoint's
root covers all records before it, so one each few minutes is enough: what is unprotected is what came since.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import structlog

from orchestrator.audit import checkpoints
from orchestrator.audit.checkpoints import Kept, Place
from orchestrator.audit.streams import about, is_stream, streams

log = structlog.get_logger()


async def keep_copies(
    folder: Path,
    copies: Path,
    *,
    every_s: float,
    alarm: Callable[[str], None] = lambda _kind: None,
    clock: Callable[[], float] = time.time,
) -> None:
    """Until cancelled.  A place that hangs or is away keeps nobody else waiting, and is tried again the next time.

    ``alarm`` is told ``checkpoint_not_copied`` where one couldn't be copied.
    """
    while True:
        await asyncio.to_thread(copy_newest, folder, copies, clock(), alarm)
        await asyncio.sleep(every_s)


def copy_newest(folder: Path, copies: Path, now: float, alarm: Callable[[str], None] = lambda _kind: None) -> int:
    """Copy the newest checkpoint of each ledger in ``folder``, where there isn't one so new; how many were."""
    count = 0
    for name in streams(folder):
        try:
            newest = checkpoints.newest(folder / name)
            if newest is not None and not _has(copies / name, newest):
                _write(copies / name, newest, now)
                count += 1
        except OSError as error:
            alarm("checkpoint_not_copied")
            log.error("checkpoint_not_copied", ledger=name, to=str(copies), error=str(error))  # noqa: TRY400 - says it all
    return count


def overdue(folder: Path, copies: Path, since: float) -> list[str]:
    """The ledgers in ``folder`` that got a checkpoint after their last copy, which was made before ``since`` or never."""
    late = []
    for name in streams(folder):
        newest = checkpoints.newest(folder / name)
        if newest is None or _has(copies / name, newest):
            continue
        made = max((_made_at(path) for path in (copies / name).glob("*-*.json")), default=about(folder / name).since)
        if made < since:
            late.append(name)
    return late


def _made_at(path: Path) -> float:
    milliseconds = path.stem.partition("-")[2]
    return int(milliseconds) / 1000 if milliseconds.isascii() and milliseconds.isdigit() else 0.0


def _has(folder: Path, newest: Kept) -> bool:
    return any(
        place.kept is not None and place.kept.note == newest.note for place in _read(folder, f"{newest.size:020d}")
    )


def kept(folder: Path) -> Iterator[Place]:
    """The checkpoints that were copied to ``folder``.  One that isn't whole was cut short by a crash, and made again."""
    return _read(folder, "")


def ledgers(copies: Path) -> list[str]:
    """The ledgers that there are copies of."""
    return [path.name for path in sorted(copies.iterdir()) if path.is_dir() and is_stream(path.name)]


def _read(folder: Path, start: str) -> Iterator[Place]:
    for path in sorted(folder.glob(f"{start}*-*.json")):
        try:
            yield Place(path, 1, msgspec.json.decode(path.read_bytes(), type=Kept))
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            yield Place(path, 1, None)


def _write(folder: Path, newest: Kept, now: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{newest.size:020d}-{int(now * 1000):014d}.json"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(newest) + b"\n")
        file.flush()
        os.fsync(file.fileno())
