"""The inbox: what the receiver writes down of a webhook delivery, where, and what the control plane reads back.

The receiver and the control plane are two programs that meet in Redis.  Everything they must agree on stands here: the
names of the keys, and the form of an entry.  An entry carries what was read of the payload and the payload itself, byte
for byte, so that one which turns out unusable can be kept aside whole.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from orchestrator.core.job import Job

QUEUE = "ironcd"
"""Of RQ.  An entry there says "look", and nothing else: losing it loses nothing."""
LOOK = "orchestrator.control.work.look_job"
SEEN_FOR_S = 4 * 86400
"""How long a delivery id is remembered: GitHub keeps deliveries for redelivery for 3 days."""
HINT_FOR_S = 5
"""How long a hint counts as pending; a worker that died with one in hand delays the next look by no more."""

InstallationAction = Literal["created", "deleted", "suspend", "unsuspend", "changed"]


class InstallationNews(msgspec.Struct, frozen=True, omit_defaults=True):
    """The App was installed somewhere, removed, suspended, or the repositories it may see changed."""

    id: int
    action: InstallationAction
    account: str = ""


class Delivery(msgspec.Struct, frozen=True, omit_defaults=True):
    """One delivery as it lies in the inbox; exactly one of ``job`` and ``installation`` is set."""

    guid: str
    """``X-GitHub-Delivery``: a redelivery keeps it."""
    event: str
    at: float
    """When it was received, seconds since the epoch."""
    job: Job | None = None
    installation: InstallationNews | None = None


class Keys(msgspec.Struct, frozen=True):
    """Names in Redis that both programs use, under one ``prefix``."""

    prefix: str = "ironcd:"

    @property
    def inbox(self) -> str:
        """Stream of entries ``d`` (`Delivery`, JSON) and ``b`` (the payload)."""
        return self.prefix + "inbox"

    @property
    def dead(self) -> str:
        """Stream of deliveries that were signed and can't be used: ``d``, ``b`` (cut), ``why``."""
        return self.prefix + "dead"

    @property
    def counters(self) -> str:
        """Hash of counters that outlive a process: ``name{label=value}`` to a whole number."""
        return self.prefix + "counters"

    @property
    def hint(self) -> str:
        return self.prefix + "hint"

    @property
    def seen(self) -> str:
        """Start of the keys of delivery ids."""
        return self.prefix + "seen:"

    @property
    def foreign(self) -> str:
        """Start of the keys of installation ids which GitHub said aren't ours (kept for an hour)."""
        return self.prefix + "foreign:"
