"""Which ends of runners are a start that failed, and what of it keeps a host or an image from getting new ones.

The rules stand in `orchestrator.core.quarantine`.  An end counts as a failed start where the runner was BOOTING and its
host or its image may be to blame: not where GitHub was away, the host was lost whole, or nobody wanted the runner any more.
"""

from __future__ import annotations

from datetime import UTC, datetime

import structlog

from orchestrator.control.records import RunnerRecord
from orchestrator.core.quarantine import Fault, Quarantine, Ward, condemn, judged, note, of_host, of_image
from orchestrator.core.runner import Runner

INNOCENT = frozenset(
    {
        "host_lost",
        "vm_lost",
        "vm-vanished",
        "state-lost",
        "host-too-small",
        "wall-disturbed",
        "session_conflict",
        "runner_too_old",
        "job_completed",
        "fenced",
    }
)
"""Ways in which a start ends that say nothing against the host or the image."""
BLAMED = frozenset({"boot_timeout"})
"""Why a runner was fenced while it booted, where that is a start that failed."""
KEEP_LIFTED_S = 3600.0

log = structlog.get_logger()


class Quarantines:
    """The ward during one look.  ``changed`` where it must be written."""

    def __init__(self, ward: Ward, lifted: dict[str, float], now: float) -> None:
        self._now = now
        self._written = ward
        self._lifted = lifted
        self.ward = judged(ward, lifted, now)

    @property
    def changed(self) -> bool:
        return self.ward != self._written

    def written(self) -> None:
        self._written = self.ward

    def stale_lifts(self) -> list[str]:
        return [subject for subject, at in self._lifted.items() if self._now - at >= KEEP_LIFTED_S]

    def ended(self, before: Runner, record: RunnerRecord, *, outage: bool) -> None:
        """A runner has gone from a live phase to its end."""
        after = record.life
        if after.reason == "runner_too_old":
            why = f"GitHub no longer takes its runner ({after.detail}): build the image anew"
            self.ward = condemn(self.ward, record.image, why, self._now)
            log.error("image_too_old", image=record.image, runner=record.id, why=after.detail)
            return
        if before.phase != "BOOTING" or outage or not _is_fault(before, record):
            return
        why = f"{after.reason}: {after.detail}" if after.detail else after.reason
        self.ward = judged(
            note(self.ward, Fault(record.id, self._now, after.host, record.image, why[:300])), self._lifted, self._now
        )

    def host(self, name: str) -> Quarantine | None:
        return self.ward.held.get(of_host(name))

    def image(self, digest: str) -> Quarantine | None:
        return self.ward.held.get(of_image(digest))


def said(quarantine: Quarantine) -> str:
    """For the reason of a job that waits."""
    ends = datetime.fromtimestamp(quarantine.until, UTC)
    until = f"until {ends:%H:%M} UTC" if quarantine.until else "until a person lifts that"
    return f"is in quarantine {until}: {quarantine.reason}"


def _is_fault(before: Runner, record: RunnerRecord) -> bool:
    reason = record.life.reason
    if before.fencing:
        return before.fencing in BLAMED
    if reason == "runner_exited":
        return record.exit_code not in (0, None)
    return reason not in INNOCENT
