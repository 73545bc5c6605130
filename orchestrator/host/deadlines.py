"""When a wish's time is up, by the clock since this host's boot: nobody sets that one, and it goes on while the host sleeps.

The control plane states deadlines by its own clock, and when it said so.  What was left then is what counts: it is reckoned
once, when a deadline is first heard, and stays whatever becomes of either clock afterwards.  A deadline that is moved is
another one, and reckoned anew.  Where no word of the control plane's time is at hand (a wish read off the disk after a
reboot, or a control plane that doesn't tell) the host's own clock has to do, until that word comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec
import structlog

from orchestrator.core.errors import HostError
from orchestrator.core.wire import DesiredRunner
from orchestrator.host.record import Records

log = structlog.get_logger()


class Due(msgspec.Struct, frozen=True):
    """``said``: seconds since the epoch, as it was stated; 0 for never.  ``up``: the same in seconds since this host's boot."""

    said: float = 0.0
    up: float = 0.0
    sure: bool = True
    """Reckoned from the control plane's own time."""


class Dues(msgspec.Struct, frozen=True):
    boot_by: Due = Due()
    end_by: Due = Due()


class Kept(msgspec.Struct, frozen=True):
    """The file.  Of another boot than ``boot``, it says nothing."""

    boot: str
    dues: dict[str, Dues]


def due(known: Due, said: float, *, stated_at: float, own: float, up: float) -> Due:
    """What is known of a deadline ``said``, heard at ``up``.

    ``stated_at``: the control plane's time as it said so, 0 where that isn't known; ``own``: this host's time.  Both in
    seconds since the epoch.
    """
    if known.said == said and (known.sure or not stated_at):
        return known
    if not said:
        return Due()
    return Due(said, up + said - (stated_at or own), sure=bool(stated_at))


class Deadlines:
    def __init__(
        self, path: Path, records: Records, boot: str, clock: Callable[[], float], uptime: Callable[[], float]
    ) -> None:
        self._path = path
        self._records = records
        self._boot = boot
        self._clock = clock
        self._uptime = uptime
        self._known: Mapping[str, Dues] = {}
        self._kept: Mapping[str, Dues] | None = None
        """What is on the disk; None where nothing is, or something else."""

    def load(self) -> None:
        try:
            kept = msgspec.json.decode(self._path.read_bytes(), type=Kept)
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("deadlines_unreadable", error=str(error))
            return
        if kept.boot == self._boot:
            self._known = self._kept = kept.dues

    def hear(self, wishes: Iterable[DesiredRunner], stated_at: float) -> None:
        """Reckon what is new in ``wishes``, which were stated at ``stated_at`` by the control plane's clock (0: not known)."""
        times = {"stated_at": stated_at, "own": self._clock(), "up": self._uptime()}
        before = self._known
        known = {}
        for wish in wishes:
            old = before.get(wish.id, Dues())
            known[wish.id] = Dues(due(old.boot_by, wish.boot_by, **times), due(old.end_by, wish.end_by, **times))
        self._known = known
        if known == self._kept:
            return
        try:
            self._records.write(self._path, msgspec.json.encode(Kept(self._boot, known)))
            self._kept = known
        except HostError as error:
            log.warning("deadlines_unsaved", error=error.message)

    def of(self, wish: DesiredRunner | None) -> DesiredRunner | None:
        """``wish`` with its deadlines in seconds since this host's boot; 0 stays never."""
        if wish is None:
            return None
        found = self._known.get(wish.id, Dues())
        return msgspec.structs.replace(wish, boot_by=_up(found.boot_by), end_by=_up(found.end_by))


def _up(found: Due) -> float:
    """One that was over before this boot is still no 'never'."""
    return max(found.up, 1e-3) if found.said else 0.0
