"""The watch over the wall: what isn't exactly as it was installed takes every link down until it is again.

Another program's ``nft flush ruleset`` would otherwise leave the VMs' links open to the namespace.  There is no way out of
that namespace, but nothing may rest on one wall alone.

A start that a flush falls into waits for the wall to be whole again (`orchestrator.host.start`), and new ones wait until it was whole
for a while: who changes it once may be about to again.
"""

from __future__ import annotations

import msgspec
import structlog

from orchestrator.core.errors import HostError
from orchestrator.core.wire import Failure
from orchestrator.host.links import Wires
from orchestrator.host.wall import Firewall

log = structlog.get_logger()

EVERY_S = 1.0
WHOLE_TIMES = 5
WHOLE_S = 10.0
"""After a drift no VM is started until the wall was found whole so many times in a row, over so long; twice as long each time
that it comes again while the last one is still shown.
"""
SHOWN_S = 300.0
"""People are told of a drift for so long, and at least until VMs are started again."""


class Watch:
    def __init__(self, wall: Firewall, wires: Wires) -> None:
        self._wall = wall
        self._wires = wires
        self._cut: set[str] = set()

    def check(self) -> Failure | None:
        """Compare, and restore where something differs.  The problem to report; None where all was as it should be.

        Raises HostError where it can't be restored: every link is down then, and stays so until a later check can.
        """
        differences = self._wall.drift()
        if not differences and not self._cut:
            return None
        self._cut |= self._wires.down_all()
        log.error("wall_drifted", differences=differences[:10], links_down=len(self._cut))
        self._wall.restore(self._wires.in_namespace())
        self._wires.raise_(sorted(self._cut))
        log.warning("wall_restored", links_up=len(self._cut))
        self._cut.clear()
        return Failure(
            code="wall-drifted",
            message="another program changed the VMs' packet filter; it was restored: " + "; ".join(differences[:3]),
            remedy="Find what writes to nftables in the VMs' namespace: links are cut whenever it does.",
        )


class Aftermath:
    """What is said of a drift once the wall was restored.  Times are of a clock that nobody sets."""

    def __init__(self) -> None:
        self._drift: Failure | None = None
        self._at = self._wait_s = 0.0
        self._whole = 0

    def of(self, found: Failure | None, now: float) -> Failure | None:
        """The problem to show after a check that ``found`` this; None where there is none (any more)."""
        if found is not None:
            self._wait_s = WHOLE_S if self._drift is None else min(2 * self._wait_s, SHOWN_S)
            self._drift, self._at, self._whole = found, now, 0
            return found
        self._whole += 1
        if self._drift is None or not self._is_trusted(now):
            return self._drift
        if now - self._at >= SHOWN_S:
            self._drift = None
            return None
        return msgspec.structs.replace(self._drift, over=True)

    def _is_trusted(self, now: float) -> bool:
        return self._whole >= WHOLE_TIMES and now - self._at >= self._wait_s


def wall_broken(error: HostError) -> Failure:
    return Failure(code="wall-broken", message=f"every VM's link is down: {error.message}", remedy=error.remedy)
