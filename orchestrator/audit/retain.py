"""Deletes records whose time is over, and leaves what proves that the others are whole.

Only sealed days are touched.  Of a deleted record its hash goes into a tombstone (`orchestrator.audit.tombstones`); its
content is gone from the lines and from the search engine's file.  What a hold matches stays.  ``deletions.jsonl`` says when
how many went.  A line that can't be read as an event stays: nothing is deleted that wasn't understood.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from orchestrator.audit import checkpoints, days
from orchestrator.audit.engine import Engine
from orchestrator.audit.seal import alone, refresh_parquet, write_sealed
from orchestrator.audit.streams import streams
from orchestrator.audit.tombstones import Grave, Tombstone
from orchestrator.core.errors import OperationalError, UserError
from orchestrator.core.flow import Event
from orchestrator.core.merkle import leaf_hash
from orchestrator.core.retention import Hold, Retention, class_of
from orchestrator.system.files import append_line, write_atomic

HOLDS = "holds.json"
DELETIONS = "deletions.jsonl"
NEVER = 1e15

_events = msgspec.json.Decoder(Event)
_stones = msgspec.json.Decoder(Tombstone)


class Deleted(msgspec.Struct, omit_defaults=True):
    """What goes, or went, of one day of a ledger."""

    ledger: str
    day: str
    at: float
    egress: int = 0
    security: int = 0
    held: int = 0
    """Whose time is over and that a hold keeps."""

    @property
    def records(self) -> int:
        return self.egress + self.security


def retain(
    folder: Path, engine: Engine, retention: Retention, now: float, *, dry_run: bool = False
) -> Iterator[Deleted]:
    """Delete what is over in every ledger of ``folder``, a day at a time.  Raises OperationalError."""
    with alone(folder):
        holds = load_holds(folder)
        for name in streams(folder):
            for day in days.days(folder / name):
                if _is_to_be_looked_at(folder / name, day, retention, now):
                    thinning = _Thinning(folder / name, day, retention, holds, now)
                    if thinning.done.records or thinning.done.held:
                        if thinning.done.records and not dry_run:
                            thinning.carry_out(engine)
                        yield thinning.done
                    if not dry_run:
                        refresh_parquet(folder / name, day, engine)  # a crash may have left the one with all records
                        thinning.note_next()


class Next(msgspec.Struct, frozen=True):
    """When a day is to be looked at again, as long as the configuration stays the same: a year's days aren't read each day."""

    at: float
    retention: Retention


def _next_file(folder: Path, day: str) -> Path:
    return folder / f"{day}.next.json"


def _is_to_be_looked_at(folder: Path, day: str, retention: Retention, now: float) -> bool:
    if not days.sealed_file(folder, day).exists() or days.open_file(folder, day).exists():
        return False
    try:
        known = msgspec.json.decode(_next_file(folder, day).read_bytes(), type=Next)
    except (OSError, msgspec.MsgspecError):
        return True
    stale = days.sealed_file(folder, day).stat().st_mtime_ns > _next_file(folder, day).stat().st_mtime_ns
    return stale or known.retention != retention or now >= known.at


class _Thinning:
    """One day: looked through once to see whether anything goes, and once more to let it go."""

    def __init__(self, folder: Path, day: str, retention: Retention, holds: Sequence[Hold], now: float) -> None:
        self._folder, self._day, self._now = folder, day, now
        self._retention, self._holds = retention, holds
        self.done = Deleted(folder.name, day, now)
        self._next = NEVER
        for line in days.lines(folder, day):
            self._judge(line, self.done)

    def carry_out(self, engine: Engine) -> None:
        stops = {place.kept.size for place in checkpoints.kept(self._folder) if place.kept is not None}
        append_line(self._folder / DELETIONS, msgspec.json.encode(self.done) + b"\n")
        write_sealed(days.sealed_file(self._folder, self._day), self._thinned(stops))
        refresh_parquet(self._folder, self._day, engine)

    def note_next(self) -> None:
        """To be called once all else is on the disk."""
        write_atomic(_next_file(self._folder, self._day), msgspec.json.encode(Next(self._next, self._retention)))

    def _thinned(self, stops: set[int]) -> Iterator[bytes]:
        grave: Grave | None = None
        for line in days.placed(self._folder, self._day):
            stone = _stone(line.data)
            event = None if stone is not None else self._judge(line.data, Deleted("", "", 0.0))
            if stone is None and event is None:
                if grave is not None:
                    yield _line(grave)
                    grave = None
                yield line.data + (b"\n" if line.whole else b"")
                continue
            first = stone.gone.first if stone is not None else event.seq if event is not None else 0
            if grave is None or grave.last in stops or first != grave.last + 1:
                if grave is not None:
                    yield _line(grave)
                grave = Grave(first)
            if stone is not None:
                grave.take_over(stone)
            elif event is not None:
                grave.take(leaf_hash(line.data), event.ts)
        if grave is not None:
            yield _line(grave)

    def _judge(self, data: bytes, counted: Deleted) -> Event | None:
        """The event in ``data`` where it goes, and None where it stays; counted either way."""
        try:
            event = _events.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
        due = self._retention.due(event)
        if self._now <= due:
            self._next = min(self._next, due)
            return None
        if any(hold.holds(event) for hold in self._holds):
            counted.held += 1
            self._next = min(self._next, self._now)
            return None
        if class_of(event) == "egress":
            counted.egress += 1
        else:
            counted.security += 1
        return event


def _stone(data: bytes) -> Tombstone | None:
    if b'"gone"' not in data:
        return None
    try:
        return _stones.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _line(grave: Grave) -> bytes:
    return msgspec.json.encode(grave.close()) + b"\n"


def load_holds(folder: Path) -> list[Hold]:
    """Raises OperationalError where they can't be read: then nothing may be deleted."""
    try:
        return msgspec.json.decode((folder / HOLDS).read_bytes(), type=list[Hold])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.MsgspecError) as error:
        raise OperationalError(
            f"the holds in {folder / HOLDS} can't be read: {error}",
            code="holds-unreadable",
            remedy="Restore that file; nothing is deleted until it can be read.",
        ) from error


def add_hold(folder: Path, hold: Hold) -> None:
    with alone(folder):
        holds = load_holds(folder)
        if any(other.id == hold.id for other in holds):
            raise UserError(f"there is a hold {hold.id} already", code="hold-exists", remedy="Give it another name.")
        _save(folder, [*holds, hold])


def remove_hold(folder: Path, name: str) -> Hold:
    """Raises UserError where there is none of this name."""
    with alone(folder):
        holds = load_holds(folder)
        gone = next((hold for hold in holds if hold.id == name), None)
        if gone is None:
            raise UserError(
                f"there is no hold {name}", code="not-found", remedy="`ironcd audit hold list` shows what there is."
            )
        _save(folder, [hold for hold in holds if hold.id != name])
        return gone


def _save(folder: Path, holds: list[Hold]) -> None:
    write_atomic(folder / HOLDS, msgspec.json.encode(holds))
