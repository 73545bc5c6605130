"""Shipping the ledger: lines go to the control plane in order, each until it was acknowledged.

How far it got is on disk (``<state>/shipped.json``), and the control plane has the last word: it answers the number
that it wants next, also where that lies back (it lost something) or ahead (this host was restored from an older state).
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from orchestrator.core.wire import LedgerBatch
from orchestrator.host.control import Control
from orchestrator.host.paths import HostPaths
from orchestrator.system.files import write_atomic
from orchestrator.system.segments import LedgerReader, seq_of

BATCH = 500


class Shipped(msgspec.Struct):
    next_seq: int = 1


class Shipper:
    def __init__(self, host: str, paths: HostPaths, control: Control) -> None:
        self._host = host
        self._control = control
        self._reader = LedgerReader(paths.ledger)
        self._file = paths.shipped
        self._next = _read(self._file)

    def ship(self) -> int:
        """Send one batch; how many lines it had.  Raises HostError where the control plane can't take it."""
        lines = self._reader.read(self._next, BATCH)
        if not lines:
            return 0
        first = seq_of(lines[0].encode())
        wanted = self._control.ledger(LedgerBatch(host=self._host, first_seq=first, lines=tuple(lines)))
        if wanted != self._next:
            self._next = wanted
            write_atomic(self._file, msgspec.json.encode(Shipped(wanted)))
        return len(lines)


def _read(path: Path) -> int:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Shipped).next_seq
    except (OSError, msgspec.MsgspecError):
        return 1
