"""The ledger: every egress event of this host, one line each, in order, and safely on disk.

- One writer.  A line gets its number, the hash of the line before it (``prev``) and its place in the Merkle tree when
  it is written, not when it is handed over: a write that fails leaves no gap.
- `append` never waits.  `flush` hands all that was appended to the kernel, at once: from there on it outlives this process,
  however that ends.  Against a power cut lines are brought to the disk together, at most 50 ms later; `durable` waits for
  that.  Nobody outside the host is told of a line before it is there.
- A full disk raises LedgerFull, and what was half written is cut off again.  Lines wait in memory, up to a bound; what
  doesn't fit is counted and the count becomes a ``lost`` line as soon as there is room.
- After ``kill -9`` the next start cuts off a torn last line (nobody was told that it was safe) and goes on from the last
  whole one.  Lines that the ledger was sure of and that are gone leave a gap that a verifier sees, and a ``lost`` line.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import structlog

from orchestrator.core.errors import HostError, OperationalError
from orchestrator.core.flow import Event, Identity
from orchestrator.egress.checkpoint import Signer
from orchestrator.egress.recovery import Position, recover, save_head
from orchestrator.system.files import append_line, sync_folder
from orchestrator.system.segments import DURABLE, durable_seq

COMMIT_S = 0.05
COMMIT_LINES = 1000
MAX_WAITING = 100_000
"""Lines that wait in memory while the disk is full: about 50 MB."""
_RETRY_S = 1.0

_log = structlog.get_logger()


class LedgerFull(OperationalError):
    """The ledger can't be written.  What asked for a record must not happen."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"the egress ledger can't be written: {why}",
            code="ledger-full",
            remedy="Make room in the host's state directory; flows pass again within a second.",
        )


class Ledger:
    """``folder`` is made where it isn't there.  Raises HostError (``ledger-busy``) where another process has it open."""

    def __init__(
        self, folder: Path, *, gateway: str, signer: Signer | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        self.full = False
        self.lost = 0
        self._gateway = gateway
        self._signer = signer
        self._clock = clock
        self._waiting: list[Event] = []
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._waiters: list[asyncio.Future[None]] = []
        self._stopping = asyncio.Event()
        self._pool = ThreadPoolExecutor(1, "ledger")
        self._file = -1
        self._durable = _lock(folder / DURABLE)
        self._at = self._recover()
        self._safe = self._at.frontier.size
        self._checkpointed = -1

    @property
    def seq(self) -> int:
        """Number of the last line written."""
        return self._at.frontier.size

    def append(self, event: Event) -> None:
        """Hand ``event`` over; its ``seq``, ``prev`` and ``gateway`` are filled in here."""
        if len(self._waiting) >= MAX_WAITING:
            self.lost += 1
            return
        self._waiting.append(event)
        self._wake.set()
        if len(self._waiting) >= COMMIT_LINES:
            self._hurry.set()

    def flush(self) -> None:
        """Hand everything appended so far to the kernel.  Raises LedgerFull where it doesn't take it."""
        if self.full:
            raise LedgerFull("no room at the last try")
        self._flush()

    async def durable(self) -> None:
        """Return once everything appended so far is safely on disk.  Raises LedgerFull where it can't be put there."""
        self.flush()
        if self._safe == self.seq:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(future)
        self._wake.set()
        self._hurry.set()
        await future

    async def run(self) -> None:
        """Bring to the disk what is appended, until `stop`.  Never cancel it: what runs can't be called back."""
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            await self._wake.wait()
            await self._pause()
            self._wake.clear()
            self._hurry.clear()
            waiters, self._waiters = self._waiters, []
            try:
                self._flush()
                await loop.run_in_executor(self._pool, self._sync, os.dup(self._file), self.seq)
            except (OSError, LedgerFull) as error:
                self._failed(waiters, error)
                await asyncio.sleep(0 if self._stopping.is_set() else _RETRY_S)
            else:
                self._done(waiters)

    def stop(self) -> None:
        """Make `run` return once what it is writing is written."""
        self._stopping.set()
        self._wake.set()
        self._hurry.set()

    async def _pause(self) -> None:
        """Let lines gather for a moment; whoever waits for one cuts it short."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(COMMIT_S):
                await self._hurry.wait()

    def commit(self) -> None:
        """Bring what is appended to the disk, here and now.  Raises LedgerFull."""
        self._flush()
        if self._file >= 0:
            self._sync(os.dup(self._file), self.seq)
        self._done([])

    def checkpoint(self) -> str | None:
        """Sign where the ledger stands, once it is safely there; None where nothing changed, or there is no key.

        Raises LedgerFull or OSError where it can't be written.
        """
        self.commit()
        if self._signer is None or self._checkpointed == self.seq:
            return None
        note = self._signer.note(self.seq, self._at.frontier.root())
        line = msgspec.json.encode({"ts": round(self._clock(), 3), "size": self.seq, "note": note}) + b"\n"
        append_line(self.folder / "checkpoints.jsonl", line)
        save_head(self.folder, self._at)
        self._checkpointed = self.seq
        return note

    def close(self) -> None:
        """Write what is left, sign it, and close the files.  A full disk is logged: there is nobody to tell."""
        try:
            self.commit()
            self.checkpoint()
            save_head(self.folder, self._at)
        except (OSError, LedgerFull) as error:
            _log.error("ledger_not_closed_whole", error=str(error), waiting=len(self._waiting))
        self._pool.shutdown()
        for descriptor in (self._file, self._durable):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._durable = -1

    def _flush(self) -> None:
        if self.lost and len(self._waiting) < MAX_WAITING:
            self._waiting.append(self._lost_event(self.lost, "ledger_full"))
            self.lost = 0
        batch, self._waiting = self._waiting, []
        try:
            self._at = self._write(batch, self._at)
        except OSError as error:
            self._waiting = batch
            self._failed([], error)
            raise LedgerFull(os.strerror(error.errno or 0)) from error

    def _sync(self, descriptor: int, seq: int) -> None:
        """Bring the lines up to number ``seq`` to the disk; in the ledger's thread."""
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        os.pwrite(self._durable, seq.to_bytes(8, "big"), 0)
        self._safe = seq

    def _done(self, waiters: Sequence[asyncio.Future[None]]) -> None:
        if self.full:
            _log.warning("ledger_has_room_again", seq=self.seq)
        self.full = False
        for future in waiters:
            if not future.done():
                future.set_result(None)

    def _failed(self, waiters: Sequence[asyncio.Future[None]], error: Exception) -> None:
        if not self.full:
            _log.error("ledger_full", error=str(error), waiting=len(self._waiting))
        self.full = True
        self._wake.set()
        for future in waiters:
            if not future.done():
                future.set_exception(LedgerFull(str(error)))

    def _lost_event(self, count: int, reason: str) -> Event:
        return Event(
            event="lost",
            ts=round(self._clock(), 3),
            seq=0,
            gateway=self._gateway,
            who=Identity(runner=""),
            protocol="other",
            verdict="blocked",
            reason=reason,
            count=count,
        )

    def _write(self, batch: Sequence[Event], at: Position) -> Position:
        """Write ``batch`` behind ``at``; ``at`` itself is left as it is."""
        if not batch and self._file >= 0:
            return at
        new = at.copy()
        today = datetime.fromtimestamp(self._clock(), UTC).strftime("%Y-%m-%d.jsonl")
        if today > new.segment or self._file < 0:
            self._open(max(today, new.segment), new)
        chunk = bytearray()
        for event in batch:
            line = msgspec.json.encode(
                msgspec.structs.replace(event, seq=new.frontier.size + 1, prev=new.prev, gateway=self._gateway)
            )
            new.follow(line)
            chunk += line
            chunk += b"\n"
        try:
            _write_all(self._file, chunk, new.offset)
        except OSError:
            os.ftruncate(self._file, new.offset)
            raise
        new.offset += len(chunk)
        return new

    def _open(self, segment: str, position: Position) -> None:
        if self._file >= 0:
            os.fdatasync(self._file)
            os.close(self._file)
            self._file = -1
        self._file = os.open(self.folder / segment, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        sync_folder(self.folder)
        if segment != position.segment:
            position.segment = segment
            position.offset = os.fstat(self._file).st_size

    def _recover(self) -> Position:
        """Find the end of what was written, cut a torn line off, and say so where lines are missing."""
        at, missing = recover(self.folder)
        missing = max(missing, durable_seq(self.folder) - at.frontier.size)
        if missing > 0:
            _log.error("ledger_lines_missing", count=missing, next_seq=at.frontier.size + 1)
            self.append(self._lost_event(missing, "ledger_damaged"))
        if at.segment:
            _sync_file(self.folder / at.segment)
        os.pwrite(self._durable, at.frontier.size.to_bytes(8, "big"), 0)
        return at


def _lock(path: Path) -> int:
    """Open ``path`` for the one process that may write; the lock goes with the process, however it ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise HostError(
            f"another process writes the ledger in {path.parent}",
            code="ledger-busy",
            remedy="A host has one gateway; end the other one first.",
        ) from error
    return descriptor


def _write_all(descriptor: int, data: bytearray, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _sync_file(path: Path) -> None:
    """Lines that a killed process wrote may be in memory only: they count from here on."""
    if path.exists():
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
