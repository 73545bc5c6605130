"""Reading on from a place: the lines of all ledgers in the order in which they came, each once.

A place is the number of the last record that was read of each ledger.  Numbers grow within a ledger and no record comes
after a later one, so a place needs no clock, holds over restarts of whoever reads and of who serves, and can be given from
one to the other.  Where in its file a ledger was read up to is kept beside it, so reading on costs what is new and not what
is there; where that isn't known (a place that was given, a day that was sealed meanwhile) it is found by bisection.
"""

from __future__ import annotations

import base64
import binascii
import heapq
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import msgspec

from orchestrator.audit import days as day_files
from orchestrator.audit.frames import Frames
from orchestrator.audit.streams import is_stream
from orchestrator.audit.tombstones import Gone

Place = Mapping[str, int]
"""Ledger to the number of its last record that was read; 0 or nothing for none."""


class BadPlace(ValueError):
    pass


class Ledgers(Protocol):
    """What is read of `orchestrator.audit.ledger.Ledger`."""

    @property
    def folder(self) -> Path: ...

    def streams(self) -> list[str]: ...

    def next_seq(self, stream: str) -> int: ...


class Came(NamedTuple):
    """A record that came in: its ledger, its number there, and its line."""

    stream: str
    seq: int
    line: bytes


class _Numbered(NamedTuple):
    """``first`` is less than ``seq`` for a line that stands for several records, which retention deleted."""

    first: int
    seq: int
    line: bytes


class _Head(msgspec.Struct):
    seq: int
    gone: Gone | None = None


_head = msgspec.json.Decoder(_Head)


class _Spot(NamedTuple):
    """Up to where a day's open file was read."""

    path: Path
    offset: int


def now_at(ledgers: Ledgers) -> dict[str, int]:
    """The place behind everything that came so far."""
    return {stream: ledgers.next_seq(stream) - 1 for stream in ledgers.streams()}


def encode(place: Place) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(dict(place))).decode("ascii").rstrip("=")


def decode(text: str) -> dict[str, int]:
    """Raises `BadPlace`."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        place = msgspec.json.decode(raw, type=dict[str, int])
    except (msgspec.MsgspecError, binascii.Error, ValueError) as error:
        raise BadPlace(f"not a place of ours: {text[:80]!r}") from error
    if not all(is_stream(stream) and seq >= 0 for stream, seq in place.items()):
        raise BadPlace(f"not a place of ours: {text[:80]!r}")
    return place


class Tail:
    """For one reader.  ``place`` is behind what `read` gave last."""

    def __init__(self, ledgers: Ledgers, place: Place) -> None:
        self.place = dict(place)
        self._ledgers = ledgers
        self._spots: dict[str, _Spot] = {}
        self._turn = 0
        """Which ledger comes first: one with much to say doesn't keep the others waiting."""

    def read(self, limit: int) -> list[Came]:
        """What came since, ``limit`` lines at most; empty once there is no more.  Raises OSError."""
        found: list[Came] = []
        streams = self._ledgers.streams()
        first = self._turn % max(1, len(streams))
        for stream in streams[first:] + streams[:first]:
            last = self._ledgers.next_seq(stream) - 1
            if len(found) < limit and self.place.get(stream, 0) < last:
                found += self._of(stream, last, limit - len(found))
        self._turn += 1
        return found

    def _of(self, stream: str, last: int, limit: int) -> list[Came]:
        """At most ``limit`` lines of one ledger, up to number ``last``."""
        found: list[Came] = []
        for lines, jumps in (
            (self._on(stream), False),
            (self._from_place(stream), False),
            (self._anywhere(stream, limit), True),
        ):
            for first, seq, line in lines:
                place = self.place.get(stream, 0)
                if not place < seq <= last:
                    continue
                if first > place + 1 and not jumps:
                    break  # what lies between never came, or stands in another file
                found.append(Came(stream, seq, line))
                self.place[stream] = seq
                if len(found) >= limit:
                    return found
            if self.place.get(stream, 0) >= last:
                return found
        self.place[stream] = last  # what isn't in any file isn't coming
        return found

    def _on(self, stream: str) -> Iterator[_Numbered]:
        """What was appended to the file that was read last."""
        spot = self._spots.get(stream)
        if spot is None:
            return
        try:
            with spot.path.open("rb") as file:
                yield from self._appended(stream, file, spot)
        except FileNotFoundError:
            del self._spots[stream]

    def _appended(self, stream: str, file: BinaryIO, spot: _Spot) -> Iterator[_Numbered]:
        file.seek(spot.offset)
        offset = spot.offset
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            self._spots[stream] = _Spot(spot.path, offset)
            yield from _numbered(line[:-1])

    def _from_place(self, stream: str) -> Iterator[_Numbered]:
        """From the day on that has the first record behind the place."""
        folder, wanted = self._ledgers.folder / stream, self.place.get(stream, 0) + 1
        known = day_files.days(folder)
        at = len(known)
        for day in reversed(known):
            at -= 1
            if (_first_of(folder, day) or wanted + 1) <= wanted:
                break
        for day in known[at:]:
            yield from self._day(stream, folder, day)

    def _day(self, stream: str, folder: Path, day: str) -> Iterator[_Numbered]:
        sealed, fresh = day_files.sealed_file(folder, day), day_files.open_file(folder, day)
        wanted = self.place.get(stream, 0) + 1
        if sealed.exists():
            yield from _sealed_from(sealed, wanted)
        try:
            with fresh.open("rb") as file:
                yield from self._appended(stream, file, _Spot(fresh, _offset_of(file, wanted)))
        except FileNotFoundError:
            return

    def _anywhere(self, stream: str, limit: int) -> Iterator[_Numbered]:
        """In any file: a clock that was set back has later records in an earlier day's."""
        self._spots.pop(stream, None)
        folder, behind = self._ledgers.folder / stream, self.place.get(stream, 0)
        lines = (line for day in day_files.days(folder) for line in day_files.lines(folder, day))
        numbered = (one for line in lines for one in _numbered(line) if one.seq > behind)
        yield from heapq.nsmallest(limit + 1, numbered)


def _numbered(line: bytes) -> Iterator[_Numbered]:
    """The number of ``line``, where it is a record."""
    try:
        head = _head.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return
    yield _Numbered(head.gone.first if head.gone is not None else head.seq, head.seq, line)


def _first_of(folder: Path, day: str) -> int | None:
    """The number of a day's first record; None where it has none."""
    return next((one.first for line in day_files.lines(folder, day) for one in _numbered(line)), None)


def _sealed_from(path: Path, wanted: int) -> Iterator[_Numbered]:
    try:
        lines = Frames(path).since(wanted)
    except ValueError:
        lines = (line.data for line in day_files.read(path))
    return (one for line in lines for one in _numbered(line))


def _offset_of(file: BinaryIO, wanted: int) -> int:
    """Where in an open day's file a line begins that no record behind ``wanted`` stands before."""
    low, high = 0, file.seek(0, 2)
    while high - low > day_files.MAX_LINE:
        middle = (low + high) // 2
        file.seek(middle)
        file.readline()  # the rest of the line in whose middle this is
        line = file.readline()
        while line and day_files.seq_of(line) is None and file.tell() < high:
            line = file.readline()
        seq = day_files.seq_of(line)
        if seq is not None and seq < wanted:
            low = file.tell() - len(line)
        else:
            high = middle
    return low
