"""Finds where a ledger goes on after its process ended in any way.

The head file (written whole at each checkpoint) says where the ledger stood some time ago; the lines behind that are read,
and each must follow the one before it.  A torn last line is cut off.  A line that doesn't follow, and all behind it, are
set aside (``damaged-N.bin``) for a person to look at: they can't be told from forged ones.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import structlog

from orchestrator.core.errors import HostError
from orchestrator.core.merkle import Frontier, leaf_hash
from orchestrator.system.files import sync_folder, write_atomic
from orchestrator.system.segments import segments

HEAD = "head.json"
_log = structlog.get_logger()


class Head(msgspec.Struct, frozen=True):
    """Where the ledger stood at some moment: enough to go on without reading what came before."""

    size: int
    prev: str
    nodes: tuple[str, ...]
    segment: str
    offset: int


class Position:
    """What the next line builds on: the tree, the last line's leaf hash, and where in which file the line goes."""

    __slots__ = ("frontier", "offset", "prev", "segment")

    def __init__(self, frontier: Frontier, prev: str, segment: str, offset: int) -> None:
        self.frontier = frontier
        self.prev = prev
        self.segment = segment
        self.offset = offset

    def copy(self) -> Position:
        return Position(self.frontier.copy(), self.prev, self.segment, self.offset)

    def follow(self, line: bytes) -> bytes:
        """Take ``line`` (without its newline) as the next one; its leaf hash."""
        leaf = leaf_hash(line)
        self.frontier.append(leaf)
        self.prev = leaf.hex()
        return leaf


class _Link(msgspec.Struct):
    seq: int
    prev: str = ""


_decoder = msgspec.json.Decoder(_Link)


def save_head(folder: Path, at: Position) -> None:
    nodes = tuple(node.hex() for node in at.frontier.nodes)
    head = Head(at.frontier.size, at.prev, nodes, at.segment, at.offset)
    write_atomic(folder / HEAD, msgspec.json.encode(head))


def recover(folder: Path) -> tuple[Position, int]:
    """Where the next line goes, and how many lines the head file knows of that aren't there.

    Raises HostError (``ledger-head-missing``) where the oldest lines are gone and no head file says what they were.
    """
    at = _load_head(folder)
    files = [path for path in segments(folder) if path.name >= at.segment]
    missing = 0
    if at.segment and (not files or files[0].name != at.segment or files[0].stat().st_size < at.offset):
        missing = at.frontier.size - _last_seq(folder, at)
        at.offset = _whole_length(folder / at.segment)
    for path in files:
        if path.name != at.segment:
            at.segment, at.offset = path.name, 0
        if not _replay(path, at):
            _set_aside(folder, path, at)
            break
    return at, missing


def _load_head(folder: Path) -> Position:
    try:
        head = msgspec.json.decode((folder / HEAD).read_bytes(), type=Head)
        frontier = Frontier(head.size, tuple(bytes.fromhex(node) for node in head.nodes))
    except FileNotFoundError:
        pass
    except (msgspec.MsgspecError, ValueError) as error:
        _log.error("ledger_head_unreadable", error=str(error))
    else:
        return Position(frontier, head.prev, head.segment, head.offset)
    files = segments(folder)
    if files:
        with files[0].open("rb") as file:
            line = file.readline()
        if line.endswith(b"\n") and _decoder.decode(line).seq != 1:
            raise HostError(
                f"{folder / HEAD} is missing, and the ledger's first lines are gone",
                code="ledger-head-missing",
                remedy="Restore head.json from a backup, or move the ledger's folder away to begin a new one.",
            )
    return Position(Frontier(), "", "", 0)


def _replay(path: Path, at: Position) -> bool:
    """Follow the lines of ``path`` from ``at`` on.  False where one doesn't follow, or the last is torn."""
    with path.open("rb") as file:
        file.seek(at.offset)
        for line in file:
            if not line.endswith(b"\n") or not _follows(line, at):
                return False
            at.follow(line[:-1])
            at.offset += len(line)
    return True


def _follows(line: bytes, at: Position) -> bool:
    try:
        link = _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return link.seq == at.frontier.size + 1 and link.prev == at.prev


def _set_aside(folder: Path, path: Path, at: Position) -> None:
    """Cut ``path`` at ``at``.  A torn last line was safe for nobody and goes; anything else is kept for people."""
    later = [other for other in segments(folder) if other > path]
    with path.open("r+b") as file:
        file.seek(at.offset)
        rest = file.read()
        if b"\n" in rest or later:
            aside = folder / f"damaged-{at.frontier.size + 1}.bin"
            write_atomic(aside, rest + b"".join(other.read_bytes() for other in later))
            _log.error("ledger_damaged", first_seq=at.frontier.size + 1, kept_in=str(aside), bytes=len(rest))
        else:
            _log.warning("ledger_torn_line_cut", seq=at.frontier.size + 1, bytes=len(rest))
        file.truncate(at.offset)
        os.fsync(file.fileno())
    for other in later:
        other.unlink()
    sync_folder(folder)


def _whole_length(path: Path) -> int:
    if not path.exists():
        return 0
    return path.read_bytes().rfind(b"\n") + 1


def _last_seq(folder: Path, at: Position) -> int:
    """Number of the last whole line that is still there, at or before the head's segment."""
    for path in reversed([path for path in segments(folder) if path.name <= at.segment]):
        lines = path.read_bytes()[: _whole_length(path)].splitlines()
        if lines:
            return _decoder.decode(lines[-1]).seq
    return 0
