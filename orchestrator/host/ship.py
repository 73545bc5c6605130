"""Shipping the ledger: lines and signed checkpoints go to the control plane in order, each until it was acknowledged.

How far it got is on disk (``<state>/shipped.json``), and the control plane has the last word: it answers the number
that it wants next, also where that lies back (it lost something) or ahead (this host was restored from an older state),
and the size of the newest checkpoint that it keeps.  A control plane that answers none is older and is sent none.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from orchestrator.core.wire import LedgerAck, LedgerBatch
from orchestrator.host.control import Control
from orchestrator.host.paths import HostPaths
from orchestrator.system.files import write_atomic
from orchestrator.system.segments import LedgerReader, ended, seq_of

BATCH = 500
KEPT_DAYS = 2
"""At least: the ledger's writer goes on from where it stood at its last checkpoint."""
LOOK_S = 3600.0
CHECKPOINTS = 200
"""At most so many in a batch."""


class Shipped(msgspec.Struct, frozen=True):
    """``next_seq`` is wanted next; checkpoints are acknowledged up to the one of ``checkpoint`` lines, which ends at ``offset``."""

    next_seq: int = 1
    checkpoint: int = 0
    offset: int = 0
    sent: int = 0
    """Number of the last line that was sent."""


class Lag(msgspec.Struct, frozen=True):
    """Lines that the control plane doesn't have, and for how many seconds there have been some without a break."""

    lines: int = 0
    seconds: float = 0.0


class _Checkpoint(msgspec.Struct):
    size: int
    note: str


class Shipper:
    def __init__(
        self, host: str, paths: HostPaths, control: Control, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._host = host
        self._clock = clock
        self._control = control
        self._reader = LedgerReader(paths.ledger)
        self._folder = paths.ledger
        self._checkpoints = paths.ledger / "checkpoints.jsonl"
        self._key = paths.ledger.parent / "ledger-key.pub"
        self._file = paths.shipped
        self._at = _read(self._file)
        self._takes_checkpoints = True
        self._looked_at = 0.0
        self._level_at = clock()

    def ship(self) -> int:
        """Send one batch; how many lines and checkpoints it had.  Raises HostError where the control plane can't take it."""
        if self._reader.last_seq() < self._at.sent:
            self._note(
                Shipped()
            )  # begun anew, or restored from an older state: the control plane sees which by its lines
        lines = self._reader.read(self._at.next_seq, BATCH)
        notes, reach = self._notes() if self._takes_checkpoints else ([], self._at)
        if not lines and not notes:
            self._note(reach)
            self._level_at = self._clock()
            return 0
        first = seq_of(lines[0].encode()) if lines else self._at.next_seq
        ack = self._control.ledger(
            LedgerBatch(self._host, first, tuple(lines), checkpoints=tuple(notes), public_key=self._public_key())
        )
        sent = seq_of(lines[-1].encode()) if lines else self._at.sent
        self._note(msgspec.structs.replace(self._after(ack, reach), sent=sent))
        if ack.next_seq > sent and len(lines) < BATCH:
            self._level_at = self._clock()
        return len(lines) + len(notes)

    def lag(self) -> Lag:
        """How far the control plane is behind, also while shipping fails.  Any thread may ask."""
        lines = max(0, self._reader.last_seq() - self._at.next_seq + 1)
        return Lag(lines, max(0.0, self._clock() - self._level_at) if lines else 0.0)

    def let_go(self, days: int, now: float) -> int:
        """Delete day files that are older than ``days`` and whose lines and checkpoints the control plane has; how many.

        Looks once an hour.
        """
        if days <= 0 or now - self._looked_at < LOOK_S:
            return 0
        self._looked_at = now
        oldest = datetime.fromtimestamp(now, UTC).date() - timedelta(days=max(days, KEPT_DAYS))
        count = 0
        for path, last in ended(self._folder):
            if path.stem >= oldest.isoformat() or last >= self._at.next_seq or last > self._at.checkpoint:
                break
            path.unlink()
            count += 1
        return count

    def _notes(self) -> tuple[list[str], Shipped]:
        """The notes that are to be sent, and where the reading of them ended."""
        try:
            file = self._checkpoints.open("rb")
        except FileNotFoundError:
            return [], self._at
        notes: list[str] = []
        size, offset = self._at.checkpoint, self._at.offset
        with file:
            file.seek(offset)
            while len(notes) < CHECKPOINTS and (line := file.readline()).endswith(b"\n"):
                offset += len(line)
                found = _checkpoint(line)
                if found is not None and found.size > size:
                    size = found.size
                    notes.append(found.note)
        return notes, msgspec.structs.replace(self._at, checkpoint=size, offset=offset)

    def _after(self, ack: LedgerAck, reach: Shipped) -> Shipped:
        """Where to go on.  Checkpoints that were acknowledged and are gone there are read from the first one on again."""
        if ack.checkpoint is None:
            self._takes_checkpoints = False
            return msgspec.structs.replace(self._at, next_seq=ack.next_seq)
        lost = ack.checkpoint < self._at.checkpoint
        return Shipped(ack.next_seq, ack.checkpoint, 0 if lost else reach.offset)

    def _note(self, at: Shipped) -> None:
        if at != self._at:
            self._at = at
            write_atomic(self._file, msgspec.json.encode(at))

    def _public_key(self) -> str:
        """Read anew each time: the gateway makes it at its first start."""
        try:
            return self._key.read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return ""


def _checkpoint(line: bytes) -> _Checkpoint | None:
    try:
        return msgspec.json.decode(line, type=_Checkpoint)
    except msgspec.MsgspecError:
        return None


def _read(path: Path) -> Shipped:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Shipped)
    except (OSError, msgspec.MsgspecError):
        return Shipped()
