"""What a job was kept from, or would be, out of the record on this machine: the worker's way to the audit plane."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from orchestrator.audit import Ledger, Query
from orchestrator.audit.search import find
from orchestrator.core.blocked import Blocked, blocked_targets
from orchestrator.core.flow import Event
from orchestrator.core.hazards import host_danger
from orchestrator.core.job import Job
from orchestrator.core.presets import Presets

BEFORE_S = 3600.0
"""A host's clock may be so far off."""
LIMIT = 5000


class BlockedInRecord:
    def __init__(self, folder: Path, presets: Presets) -> None:
        self._ledger = Ledger(folder)
        self._presets = presets

    async def __call__(self, job: Job) -> Sequence[Blocked] | None:
        """None where this machine has no record."""
        if not self._ledger.folder.is_dir():
            return None
        since = (job.started_at or job.created_at) - BEFORE_S
        events: list[Event] = []
        for verdict in ("blocked", "warn"):
            query = Query(job=job.id, verdict=verdict, since=max(0.0, since))
            events += (await asyncio.to_thread(find, self._ledger, query, limit=LIMIT)).events
        return blocked_targets(events, lambda host: host_danger(host, self._presets) is not None)
