"""Walks through a ledger's lines and holds them against one another: the chain, the numbers, the tree.

- A record's leaf hash stands in the next record (``prev``).  Where the two differ it is the earlier one that was touched, and
  the tree goes on with the hash that the later one names: the next checkpoint then tells whether that is so.
- One missing record's leaf hash is known from the next one's ``prev``, so the tree goes on; behind more than one it is lost
  and only the chain is followed.
- Lines that come before their turn are held back for a while: a record that was moved isn't one that was removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from orchestrator.audit.days import Line
from orchestrator.audit.findings import Finding, Kind, Report
from orchestrator.audit.tombstones import Gone, stand_in
from orchestrator.core.merkle import Frontier, leaf_hash

HELD = 5000
SILENCE_S = 180.0
"""A gateway that runs writes a record each minute."""
SLACK_S = 3600.0
"""Records are numbered as they are written, which needn't be in the order of their times."""
_NOTES = 20


class _Link(msgspec.Struct):
    seq: int
    ts: float
    prev: str = ""
    event: str = ""
    reason: str = ""
    gone: Gone | None = None


class _Record(NamedTuple):
    link: _Link
    line: Line
    leaf: bytes


_decoder = msgspec.json.Decoder(_Link)


class Walk:
    """``grown(size, root)`` is called as the tree grows, for the sizes in ``stops``; ``cutoff`` is the time before which
    records may have been deleted; ``gaps`` are the runs of numbers that are known never to have come.
    """

    def __init__(
        self,
        report: Report,
        tree: Frontier,
        prev: str,
        *,
        stops: set[int],
        grown: Callable[[int, bytes], None],
        cutoff: float,
        gaps: Iterable[tuple[int, int]] = (),
    ) -> None:
        self.report = report
        self.tree: Frontier | None = tree
        self.expected = tree.size + 1
        self.place: Line | None = None
        self.latest = self.unsigned_from = 0.0
        """Times of the last record, and of the first one behind the last of ``stops``."""
        self._pending: tuple[bytes, int, Line | None] | None = None
        self._prev = prev
        self._stops = stops
        self._newest = max(stops, default=0)
        self._grown = grown
        self._cutoff = cutoff
        self._gaps = list(gaps)
        self._held: dict[int, _Record] = {}
        self._jumped: list[_Record] = []
        self._late: list[_Record] = []
        self._broken: Line | None = None
        self._stopped = False
        self._highest = 0

    def take(self, line: Line) -> None:
        """The next line of the files."""
        self.place = line
        try:
            link = _decoder.decode(line.data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            self._no_record(line)
            return
        record = _Record(link, line, leaf_hash(line.data))
        first = link.gone.first if link.gone is not None else link.seq
        self._settle_broken(first, line)
        late, self._highest = first < self._highest, max(first, self._highest)
        if first < self.expected or first in self._held:
            self._find("repeated", f"record {first} is there already", line, first)
        elif first > self.expected:
            self._held[first] = record
            (self._late if late else self._jumped).append(record)
            if len(self._held) >= HELD:
                self._drain()
        else:
            if late:
                self._late.append(record)
            self._accept(record)
            self._catch_up()

    def end(self) -> None:
        """No more lines: what was held back is taken, and the last leaf goes into the tree."""
        while self._held:
            self._drain()
        if self._broken is not None:
            text = "the last line is no record" if self._broken.whole else "the last line is torn"
            self._find("unreadable", text, self._broken, self.expected)
        self._flush()

    def _no_record(self, line: Line) -> None:
        if self._broken is not None:
            self._find("unreadable", "this line is no record", self._broken, self.expected)
        self._broken = line

    def _settle_broken(self, first: int, line: Line) -> None:
        broken, self._broken = self._broken, None
        if broken is None:
            return
        if first == self.expected and line.data.startswith(broken.data):
            self._note(f"{broken.path.name}:{broken.number}: a write was cut short, and made again in the next line")
        else:
            self._find("unreadable", f"record {self.expected} can't be read any more", broken, self.expected)

    def _catch_up(self) -> None:
        while self.expected in self._held:
            self._accept(self._held.pop(self.expected))
        if not self._held:
            self._tell_moved()

    def _drain(self) -> None:
        """What is missing isn't coming: go on with the first record that there is."""
        first = min(self._held)
        self._missing(self.expected, first - 1, self._held[first])
        self._accept(self._held.pop(first))
        self._catch_up()

    def _tell_moved(self) -> None:
        """Of those that came too early and those that came too late, the fewer were moved."""
        jumped, late = self._jumped, self._late
        self._jumped, self._late = [], []
        if not late:
            return
        for record in jumped if len(jumped) < len(late) else late:
            self._find("reordered", f"record {record.link.seq} stands in another place", record.line, record.link.seq)

    def _missing(self, first: int, last: int, behind: _Record) -> None:
        self._flush()
        unreadable = any(f.kind == "unreadable" and f.seq == first for f in self.report.findings)
        known = any(low <= first and last <= high for low, high in self._gaps)
        if known:
            self._find("gap", f"{_records(first, last)} never came from the host", behind.line, first, last)
        elif not (unreadable and first == last):
            self._find("removed", f"{_records(first, last)} missing before this line", behind.line, first, last)
        if first == last and behind.link.gone is None and len(behind.link.prev) == 64:
            self._pending = (bytes.fromhex(behind.link.prev), first, None)
        else:
            self.tree = None
        self._prev = behind.link.prev

    def _accept(self, record: _Record) -> None:
        link = record.link
        if link.gone is not None:
            self._accept_gone(record, link.gone)
        else:
            self._check_prev(record)
            self._flush()
            self._pending = (record.leaf, link.seq, record.line)
            self._prev = record.leaf.hex()
            self.report.records += 1
            self.expected = link.seq + 1
        self._listen(link)
        self.report.first = self.report.first or (link.gone.first if link.gone is not None else link.seq)
        self.report.last = link.seq

    def _check_prev(self, record: _Record) -> None:
        if record.link.prev == self._prev:
            return
        before = record.link.seq - 1
        if self._pending is None:
            self._find(
                "edited", f"record {record.link.seq} doesn't follow the one before", record.line, record.link.seq
            )
            return
        _, seq, line = self._pending
        text = f"record {before} isn't what it was: record {before + 1} names another hash"
        self._find("edited", text, line or record.line, before)
        if len(record.link.prev) == 64 and set(record.link.prev) <= set("0123456789abcdef"):
            self._pending = (bytes.fromhex(record.link.prev), seq, line)

    def _accept_gone(self, record: _Record, gone: Gone) -> None:
        self._flush()
        if record.link.ts > self._cutoff or self.latest > self._cutoff + SLACK_S:
            text = f"{_records(gone.first, gone.last)} deleted before their time"
            self._find("early", text, record.line, gone.first, gone.last)
        if self.tree is not None:
            try:
                stand_in(self.tree, gone)
            except ValueError as error:
                self._find("edited", str(error), record.line, gone.first, gone.last)
                self.tree = None
            else:
                self._reached()
        self._prev = gone.leaf
        self.report.deleted += gone.last - gone.first + 1
        self.expected = gone.last + 1

    def _flush(self) -> None:
        if self._pending is None:
            return
        leaf, _, _ = self._pending
        self._pending = None
        if self.tree is not None:
            self.tree.append(leaf)
            self._reached()

    def _reached(self) -> None:
        if self.tree is not None and self.tree.size in self._stops:
            self._grown(self.tree.size, self.tree.root())

    def _listen(self, link: _Link) -> None:
        if self.latest and link.ts - self.latest > SILENCE_S and link.gone is None and not self._stopped:
            self._note(
                f"silent for {link.ts - self.latest:.0f} s before record {link.seq}: the gateway was killed or stood still"
            )
        self._stopped = link.gone is not None or (link.event == "mark" and link.reason == "gateway_stopped")
        if link.seq > self._newest and not self.unsigned_from:
            self.unsigned_from = link.ts
        self.latest = link.ts

    def _find(self, kind: Kind, text: str, line: Line, seq: int, last: int = 0) -> None:
        self.report.findings.append(Finding(kind, text, str(line.path), line.number, seq, last or seq))

    def _note(self, text: str) -> None:
        if len(self.report.notes) < _NOTES:
            self.report.notes.append(text)


def _records(first: int, last: int) -> str:
    return f"record {first} is" if first == last else f"records {first} to {last} are"
