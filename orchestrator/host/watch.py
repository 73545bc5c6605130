"""The watch over the wall: what isn't exactly as it was installed takes every link down until it is again.

Another program's ``nft flush ruleset`` would otherwise leave the VMs' links open to the namespace.  There is no way out of
that namespace, but nothing may rest on one wall alone.
"""

from __future__ import annotations

import structlog

from orchestrator.core.errors import HostError
from orchestrator.core.wire import Failure
from orchestrator.host.links import Wires
from orchestrator.host.wall import Firewall

log = structlog.get_logger()

EVERY_S = 1.0


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


def wall_broken(error: HostError) -> Failure:
    return Failure(code="wall-broken", message=f"every VM's link is down: {error.message}", remedy=error.remedy)
