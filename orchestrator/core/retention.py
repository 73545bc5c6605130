"""How long records of egress are kept: by class of record, and by organisation.

*security*: what was blocked or would have been, what a person should look at (a flag), what was lost, and the gateway's own
marks.  *egress*: everything else, which is traffic that a policy allows.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from orchestrator.core.flow import Event
from orchestrator.core.names import same_repo

RecordClass = Literal["egress", "security"]
DAY_S = 86400.0
_COUNTING = frozenset({"repeated", "suppressed"})


class Keep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Days; 0 keeps for ever."""

    egress_days: int = 365
    """Records of allowed traffic."""
    security_days: int = 730
    """Records of what was blocked or would have been, or was flagged or lost."""


class Retention(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keep: Keep = Keep()
    organisations: dict[str, Keep] = {}
    """Those that keep theirs for another time, by login in lower case."""

    def keep_of(self, org: str) -> Keep:
        return self.organisations.get(org.lower(), self.keep)

    def due(self, event: Event) -> float:
        """When ``event`` may go; infinity where it never may."""
        keep = self.keep_of(event.who.org or event.who.repo.partition("/")[0])
        days = keep.egress_days if class_of(event) == "egress" else keep.security_days
        return event.ts + days * DAY_S if days > 0 else math.inf

    def youngest_cutoff(self, now: float) -> float:
        """No record that is younger may have been deleted, whoever's it was."""
        days = [days for keep in (self.keep, *self.organisations.values()) for days in _both(keep) if days > 0]
        return now - min(days) * DAY_S if days else 0.0


class Hold(msgspec.Struct, frozen=True, omit_defaults=True):
    """Keeps what matches all of its fields from being deleted, until somebody removes it.  Empty fields match all."""

    id: str
    reason: str
    at: float = 0.0
    """When it was put on."""
    org: str = ""
    repo: str = ""
    job: int = 0
    runner: str = ""
    gateway: str = ""
    since: float = 0.0
    until: float = 0.0

    def holds(self, event: Event) -> bool:
        who = event.who
        org = who.org or who.repo.partition("/")[0]
        return (
            (not self.org or org.lower() == self.org.lower())
            and (not self.repo or same_repo(who.repo, self.repo))
            and (not self.job or who.job_id == self.job)
            and (not self.runner or who.runner == self.runner)
            and (not self.gateway or event.gateway == self.gateway)
            and (not self.since or event.ts >= self.since)
            and (not self.until or event.ts < self.until)
        )


def class_of(event: Event) -> RecordClass:
    if event.verdict != "allowed" or event.event in {"lost", "mark"} or set(event.flags) - _COUNTING:
        return "security"
    return "egress"


def _both(keep: Keep) -> tuple[int, int]:
    return keep.egress_days, keep.security_days
