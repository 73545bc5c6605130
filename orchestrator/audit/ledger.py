"""Where the ledgers of the hosts arrive: appended as they are, one folder a host, one file a day, synced before the ack.

The rules:

1. Lines are kept byte for byte: what proves them (hash chain, checkpoints) is the host's.
2. A line is taken once: what its host ships again is skipped by its sequence number.
3. What is missing is asked for once more; what doesn't come then either is a `Gap`, and shows.
4. The ack says what is wanted next, and is given only when all before it is on the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import structlog

from orchestrator.core.flow import Event
from orchestrator.core.wire import LedgerAck, LedgerBatch
from orchestrator.system import day_lines

LINE_LIMIT = 64 << 10
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

log = structlog.get_logger()


class Gap(msgspec.Struct, frozen=True):
    """Events ``first`` to ``last`` of ``host`` never came; noticed at ``at``."""

    host: str
    first: int
    last: int
    at: float


class _Head(msgspec.Struct):
    """What is read of a line to file it."""

    seq: int
    ts: float


class BadBatch(ValueError):
    """A batch that can't be filed: a line that is no event, too long, or out of order."""


class Ledger:
    """One for each process that receives; a host's batches are filed one after another."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._clock = clock
        self._next: dict[str, int] = {}
        self._asked_back: dict[str, int] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._head = msgspec.json.Decoder(_Head)
        self._news = asyncio.Condition()
        self.received = 0
        """Events filed by this process."""

    async def receive(self, batch: LedgerBatch) -> LedgerAck:
        """File what is new in ``batch``.  Raises `BadBatch`, and OSError where the disk doesn't take it."""
        if not _HOST.fullmatch(batch.host):
            raise BadBatch("the host's name isn't one")
        async with self._locks.setdefault(batch.host, asyncio.Lock()):
            ack = await asyncio.to_thread(self._file, batch)
        async with self._news:
            self._news.notify_all()
        return ack

    def hosts(self) -> list[str]:
        if not self._folder.is_dir():
            return []
        return sorted(path.name for path in self._folder.iterdir() if path.is_dir() and _HOST.fullmatch(path.name))

    def days(self, host: str) -> list[str]:
        return day_lines.days(self._folder / host)

    def lines(self, host: str, day: str) -> Iterator[bytes]:
        """The lines of a host's day as they came."""
        return day_lines.read(self._folder / host, day)

    def next_seq(self, host: str) -> int:
        """The sequence number that is wanted next of ``host``."""
        known = self._next.get(host)
        if known is None:
            known = self._next[host] = self._last_seq(host) + 1
        return known

    def gaps(self, host: str) -> list[Gap]:
        found = []
        for line in day_lines.read(self._gaps_folder, "0000-00-00"):
            try:
                gap = msgspec.json.decode(line, type=Gap)
            except msgspec.MsgspecError:
                continue
            if gap.host == host:
                found.append(gap)
        return found

    async def wait(self, timeout_s: float) -> None:
        """Until something came in, ``timeout_s`` at most."""
        try:
            async with asyncio.timeout(timeout_s), self._news:
                await self._news.wait()
        except TimeoutError:
            return

    @property
    def _gaps_folder(self) -> Path:
        return self._folder / ".gaps"

    def _file(self, batch: LedgerBatch) -> LedgerAck:
        wanted = self.next_seq(batch.host)
        fresh: dict[str, list[bytes]] = {}
        seq = batch.first_seq - 1
        for text in batch.lines:
            line = text.encode("utf-8")
            head = self._read(line, after=seq)
            seq = head.seq
            if seq >= wanted:
                fresh.setdefault(day_lines.day_of(self._clock()), []).append(line)
        if not fresh:
            return LedgerAck(wanted)
        first = self._first_fresh(batch, wanted)
        if first > wanted and self._asked_back.get(batch.host) != wanted:
            self._asked_back[batch.host] = wanted
            return LedgerAck(wanted)
        if first > wanted:
            self._note(Gap(batch.host, wanted, first - 1, self._clock()))
        for day, lines in fresh.items():
            day_lines.append(self._folder / batch.host, day, lines)
            self.received += len(lines)
        self._next[batch.host] = seq + 1
        return LedgerAck(seq + 1)

    def _first_fresh(self, batch: LedgerBatch, wanted: int) -> int:
        heads = (self._head.decode(text.encode("utf-8")).seq for text in batch.lines)
        return next(seq for seq in heads if seq >= wanted)

    def _read(self, line: bytes, *, after: int) -> _Head:
        if len(line) > LINE_LIMIT or b"\n" in line:
            raise BadBatch(f"the line after event {after} isn't one line of at most {LINE_LIMIT} bytes")
        try:
            head = self._head.decode(line)
        except msgspec.MsgspecError as error:
            raise BadBatch(f"the line after event {after} is no event: {error}") from error
        if head.seq <= after:
            raise BadBatch(f"event {head.seq} comes after event {after}")
        return head

    def _last_seq(self, host: str) -> int:
        """Of the last line that can be read; 0 where there is none.  Sequence numbers begin with 1."""
        for day in reversed(self.days(host)):
            last = 0
            for line in self.lines(host, day):
                with contextlib.suppress(msgspec.MsgspecError):
                    last = self._head.decode(line).seq
            if last:
                return last
        return 0

    def _note(self, gap: Gap) -> None:
        log.error("ledger_gap", host=gap.host, first=gap.first, last=gap.last)
        day_lines.append(self._gaps_folder, "0000-00-00", [msgspec.json.encode(gap)])


def event_of(line: bytes, decoder: msgspec.json.Decoder[Event]) -> Event | None:
    """The event of a line; None for one that isn't whole, or of a version that this one can't read."""
    try:
        return decoder.decode(line)
    except msgspec.MsgspecError:
        return None
