"""Where the ledgers of the hosts arrive: appended as they are, one folder a ledger, one file a day, synced before the ack.

The rules:

1. Lines and checkpoints are kept byte for byte: what proves them (hash chain, signatures) is the host's.
2. A line is taken once: what its host ships again is skipped by its sequence number.
3. What is missing is asked for once more; what doesn't come then either is a `Gap`, and shows.
4. The ack says what is wanted next, and is given only when all before it is on the disk.
5. A host with another key, or one that began its ledger anew, gets another folder: see `orchestrator.audit.streams`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import structlog

from orchestrator.audit import days as day_files
from orchestrator.audit.checkpoints import Checkpoints
from orchestrator.audit.engine import Engine
from orchestrator.audit.frames import Frames
from orchestrator.audit.streams import BadBatch, stream_for, streams
from orchestrator.core.flow import Event
from orchestrator.core.wire import LedgerAck, LedgerBatch
from orchestrator.system import day_lines

LINE_LIMIT = 64 << 10
SET_BACK_S = 2 * 86400.0
_GAPS = ".gaps"

log = structlog.get_logger()


class Gap(msgspec.Struct, frozen=True):
    """Events ``first`` to ``last`` of the ledger ``host`` never came; noticed at ``at``."""

    host: str
    first: int
    last: int
    at: float


class _Head(msgspec.Struct):
    """What is read of a line to file it."""

    seq: int
    ts: float


class Ledger:
    """One for each process that receives; a host's batches are filed one after another."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._clock = clock
        self._next: dict[str, int] = {}
        self._last_day: dict[str, str] = {}
        self._asked_back: dict[str, int] = {}
        self._checkpoints: dict[str, Checkpoints] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._head = msgspec.json.Decoder(_Head)
        self._news = asyncio.Condition()
        self.engine = Engine(folder)
        """Searches the days that are sealed."""
        self.incidents: list[str] = []
        """Kinds of what a person must hear of; whoever tells takes them out."""
        self.received = 0
        """Events filed by this process."""

    @property
    def folder(self) -> Path:
        return self._folder

    async def receive(self, batch: LedgerBatch) -> LedgerAck:
        """File what is new in ``batch``.  Raises `BadBatch`, and OSError where the disk doesn't take it."""
        async with self._locks.setdefault(batch.host, asyncio.Lock()):
            ack = await asyncio.to_thread(self._file, batch)
        async with self._news:
            self._news.notify_all()
        return ack

    def streams(self, host: str = "") -> list[str]:
        """The ledgers, each by the name of its folder: of ``host``, or of all hosts."""
        return streams(self._folder, host)

    def days(self, stream: str) -> list[str]:
        return day_files.days(self._folder / stream)

    def lines(self, stream: str, day: str) -> Iterator[bytes]:
        """The lines of a ledger's day as they came."""
        return day_files.lines(self._folder / stream, day)

    def next_seq(self, stream: str) -> int:
        """The sequence number that is wanted next of a ledger."""
        known = self._next.get(stream)
        if known is None:
            known = self._next[stream] = self._last_seq(stream) + 1
        return known

    def gaps(self, stream: str) -> list[Gap]:
        return gaps_of(self._folder, stream)

    async def wait(self, seen: int, timeout_s: float) -> None:
        """Until more than ``seen`` events were `received`, ``timeout_s`` at most."""
        try:
            async with asyncio.timeout(timeout_s), self._news:
                await self._news.wait_for(lambda: self.received != seen)
        except TimeoutError:
            return

    def _file(self, batch: LedgerBatch) -> LedgerAck:
        numbered = self._numbered(batch)
        stream = stream_for(self._folder, batch, self._clock(), self.incidents.append)
        if stream not in self._checkpoints:
            self._checkpoints[stream] = Checkpoints(self._folder / stream)
        next_seq = self._file_lines(stream, numbered)
        return LedgerAck(next_seq, self._checkpoints[stream].take(batch.checkpoints, self._clock()))

    def _file_lines(self, stream: str, numbered: list[tuple[int, bytes]]) -> int:
        wanted = self.next_seq(stream)
        fresh = [(seq, line) for seq, line in numbered if seq >= wanted]
        if not fresh:
            return wanted
        first, last = fresh[0][0], fresh[-1][0]
        if first > wanted and self._asked_back.get(stream) != wanted:
            self._asked_back[stream] = wanted
            return wanted
        if first > wanted:
            self._note(Gap(stream, wanted, first - 1, self._clock()))
        day_lines.append(self._folder / stream, self._day(stream), [line for _, line in fresh])
        self.received += len(fresh)
        self._next[stream] = last + 1
        return last + 1

    def _day(self, stream: str) -> str:
        """The day that lines are filed under now: never one before the last, so that records stand in their order.

        Unless the clock was wrong by more than `SET_BACK_S`: a far day's file would take in all until that day comes.
        """
        now = self._clock()
        last = self._last_day.get(stream)
        if last is None:
            last = max(self.days(stream), default="")
        day = max(day_lines.day_of(now), last) if last <= day_lines.day_of(now + SET_BACK_S) else day_lines.day_of(now)
        self._last_day[stream] = day
        return day

    def _numbered(self, batch: LedgerBatch) -> list[tuple[int, bytes]]:
        seq = batch.first_seq - 1
        numbered = []
        for text in batch.lines:
            line = text.encode("utf-8")
            seq = self._read(line, after=seq).seq
            numbered.append((seq, line))
        return numbered

    def _read(self, line: bytes, *, after: int) -> _Head:
        if len(line) > LINE_LIMIT or b"\n" in line:
            raise BadBatch(f"the line after event {after} isn't one line of at most {LINE_LIMIT} bytes")
        try:
            head = self._head.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise BadBatch(f"the line after event {after} is no event: {error}") from error
        if head.seq <= after:
            raise BadBatch(f"event {head.seq} comes after event {after}")
        return head

    def _last_seq(self, stream: str) -> int:
        """The highest number that there is; 0 where there is none.  Sequence numbers begin with 1.

        It needn't stand in the last day: a clock may have been set back.
        """
        folder, last = self._folder / stream, 0
        for day in reversed(self.days(stream)):
            if last and not _may_exceed(folder, day, last):
                continue
            for line in self.lines(stream, day):
                with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
                    last = max(last, self._head.decode(line).seq)
        return last

    def _note(self, gap: Gap) -> None:
        log.error("ledger_gap", host=gap.host, first=gap.first, last=gap.last)
        self.incidents.append("ledger_gap")
        day_lines.append(self._folder / _GAPS, "0000-00-00", [msgspec.json.encode(gap)])


def _may_exceed(folder: Path, day: str, seq: int) -> bool:
    """Whether a day may have a higher number; looked up in a sealed one's table, without reading its lines."""
    if day_files.open_file(folder, day).exists():
        return True
    try:
        return Frames(day_files.sealed_file(folder, day)).last_first > seq
    except ValueError:
        return True


def gaps_of(folder: Path, stream: str) -> list[Gap]:
    """What never came of a ledger in the record at ``folder``."""
    found = []
    for line in day_lines.read(folder / _GAPS, "0000-00-00"):
        try:
            gap = msgspec.json.decode(line, type=Gap)
        except msgspec.MsgspecError:
            continue
        if gap.host == stream:
            found.append(gap)
    return found


def event_of(line: bytes, decoder: msgspec.json.Decoder[Event]) -> Event | None:
    """The event of a line; None for one that isn't whole, or of a version that this one can't read."""
    try:
        return decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
