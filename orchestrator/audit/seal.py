"""Seals days that are over: compresses their lines, notes where the tree stood, and makes the search engine's file.

Each step leaves whole files or none and finds out by itself what is still to be done, so it may be killed at any moment and
is simply run again.  The lines are the record: their open file goes only once the compressed one was read back and holds
the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import structlog
import zstandard

from orchestrator.audit import days, frames
from orchestrator.audit.engine import Engine
from orchestrator.audit.streams import streams
from orchestrator.audit.verify import Start
from orchestrator.core.errors import OperationalError
from orchestrator.core.merkle import Frontier, leaf_hash
from orchestrator.system.day_lines import day_of
from orchestrator.system.files import sync_folder, write_atomic

GRACE_S = 600.0
"""A day is sealed so long after it ended: a batch that was being filed at midnight belongs to it."""

_CHUNK = 1 << 20

log = structlog.get_logger()


class DayTree(msgspec.Struct, frozen=True):
    """Where the tree stood before a day's first line (what verifying needs) and behind its last one."""

    size: int
    prev: str
    nodes: tuple[str, ...]
    end: Start


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let one process at a time rewrite what is sealed in ``folder``.  Raises OperationalError (``audit-busy``)."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise OperationalError(
            f"another process is sealing or deleting in {folder}",
            code="audit-busy",
            remedy="Wait for it to end; it takes minutes at most.",
        ) from error
    finally:
        os.close(descriptor)


def seal_all(folder: Path, engine: Engine, now: float) -> int:
    """Seal what is to be sealed in every ledger of ``folder``; how many days that were."""
    today = day_of(now - GRACE_S)
    count = 0
    with alone(folder):
        for name in streams(folder):
            for day in days.days(folder / name):
                if day < today:
                    count += seal_day(folder / name, day, engine)
    return count


def seal_day(folder: Path, day: str, engine: Engine) -> bool:
    """False where nothing was to be done.  Raises OSError; a day that the engine can't read stays searchable by its lines."""
    fresh, sealed = days.open_file(folder, day), days.sealed_file(folder, day)
    todo = fresh.exists()
    if todo:
        if not sealed.exists() or _has_more(folder, day):
            write_sealed(sealed, _as_it_is(folder, day))
        fresh.unlink()
        sync_folder(folder)
    if not days.tree_file(folder, day).exists():
        _write_tree(folder, day)
    return refresh_parquet(folder, day, engine) or todo


def refresh_parquet(folder: Path, day: str, engine: Engine) -> bool:
    """Make a sealed day's Parquet file where there is none or an older one; whether it was made."""
    sealed, parquet = days.sealed_file(folder, day), days.parquet_file(folder, day)
    if parquet.exists() and parquet.stat().st_mtime_ns >= sealed.stat().st_mtime_ns:
        return False
    import duckdb

    try:
        engine.make(sealed, parquet)
    except duckdb.Error as error:
        log.error("parquet_not_made", folder=folder.name, day=day, error=str(error)[:500])  # noqa: TRY400 - says it all
        return False
    return True


def write_sealed(path: Path, lines: Iterable[bytes]) -> None:
    """Write ``lines``, each with its end, compressed to ``path``, and read them back before they count."""
    part = path.with_name(f".{path.name}.part")
    wanted = hashlib.sha256()
    with part.open("wb") as file:
        os.fchmod(file.fileno(), 0o600)
        for content in frames.write(file, lines):
            wanted.update(content)
        file.flush()
        os.fsync(file.fileno())
    found = hashlib.sha256()
    with (
        part.open("rb") as written,
        zstandard.ZstdDecompressor().stream_reader(written, read_across_frames=True) as reader,
    ):
        while chunk := reader.read(_CHUNK):
            found.update(chunk)
    if found.digest() != wanted.digest():
        raise OSError(f"{part} doesn't hold what was written to it")
    os.replace(part, path)
    sync_folder(path.parent)


def _as_it_is(folder: Path, day: str) -> Iterator[bytes]:
    """A day's lines to the byte: also a torn one stays, and verifying tells of it."""
    return (line.data + (b"\n" if line.whole else b"") for line in days.placed(folder, day))


def _has_more(folder: Path, day: str) -> bool:
    """Whether lines came after the day was sealed.  If none did, a crash kept the open file from being removed."""
    fresh = days.open_file(folder, day)
    return any(line.path == fresh for line in days.placed(folder, day))


def _write_tree(folder: Path, day: str) -> None:
    """Where the tree stood, for a ledger without holes up to there; what lies behind a hole is verified from the start."""
    start = _end_before(folder, day)
    if start is None:
        return
    tree = Frontier(start.size, tuple(bytes.fromhex(node) for node in start.nodes))
    prev = start.prev
    for line in days.lines(folder, day):
        if days.seq_of(line) != tree.size + 1:
            return
        leaf = leaf_hash(line)
        tree.append(leaf)
        prev = leaf.hex()
    end = Start(tree.size, prev, tuple(node.hex() for node in tree.nodes))
    whole = DayTree(start.size, start.prev, start.nodes, end)
    write_atomic(days.tree_file(folder, day), msgspec.json.encode(whole))


def _end_before(folder: Path, day: str) -> Start | None:
    before = [other for other in days.days(folder) if other < day]
    if not before:
        return Start(0, "", ())
    try:
        return msgspec.json.decode(days.tree_file(folder, before[-1]).read_bytes(), type=DayTree).end
    except (OSError, msgspec.MsgspecError):
        return None
