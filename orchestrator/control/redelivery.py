"""Deliveries that never arrived: GitHub sends once, keeps a list for three days, and sends again when asked.

A sweep reads that list back to where the one before had settled everything.  An event of which no attempt was answered
2xx is asked for again: a minute after the latest attempt at first, then after twice as long each time, five times in all.
After that it is given up with an alarm; the job in it is still found by asking for queued jobs.

The cursor stays some minutes behind: an attempt is listed when it has ended, so one may appear below others.  A
redelivery that wasn't needed does no harm, since the receiver knows its guid.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import structlog

from orchestrator.control.github import GitHub, GitHubFailure, HookDelivery, Missing, Refused
from orchestrator.control.records import Swept, Tried
from orchestrator.control.store import Lease, Store

KEPT_S = 3 * 86400
PAGES = 30
AT_ONCE = 25
TIMES = 5
WAIT_S = 60.0
"""Doubled with each try."""
SETTLED_S = 300.0

log = structlog.get_logger()


class Plan(msgspec.Struct, frozen=True):
    """``due``: the latest attempts of events to be asked for, oldest first; ``lost``: guids that are given up now."""

    due: tuple[HookDelivery, ...]
    lost: tuple[str, ...]
    swept: Swept


class Redelivery:
    def __init__(self, store: Store, github: GitHub) -> None:
        self._store = store
        self._github = github

    async def sweep(self, lease: Lease, now: float) -> None:
        """Look once, and ask for what is missing.  Where GitHub doesn't answer, the next sweep goes on.

        Raises StoreError.
        """
        before = await self._store.swept()
        try:
            made = plan(await self._attempts(before.cursor, now), before, now)
        except GitHubFailure as error:
            log.warning("redelivery_waits", error=error.message)
            return
        changes = self._store.changes()
        for guid in made.lost:
            changes.count("redeliveries{result=given_up}")
            log.error("delivery_lost", guid=guid, times=TIMES)
        tried, swept = dict(made.swept.tried), made.swept
        for attempt in made.due:
            result = await self._ask_for(attempt)
            if not result:
                break
            known = tried.get(attempt.guid)
            tried[attempt.guid] = Tried((known.times if known else 0) + 1, now)
            changes.count(f"redeliveries{{result={result}}}")
        swept = msgspec.structs.replace(swept, tried=tried)
        if swept != before:
            changes.put_swept(swept)
        if changes:
            await self._store.commit(lease, changes)

    async def _attempts(self, cursor: int, now: float) -> list[HookDelivery]:
        """All attempts after ``cursor`` that GitHub still keeps, latest first."""
        found: list[HookDelivery] = []
        page = ""
        for _ in range(PAGES):
            seen = await self._github.deliveries(page)
            fresh = [a for a in seen.deliveries if a.id > cursor and now - a.at < KEPT_S]
            found += fresh
            page = seen.cursor
            if not page or len(fresh) < len(seen.deliveries):
                return found
        log.warning("redelivery_cut_short", looked_at=len(found))
        return found

    async def _ask_for(self, attempt: HookDelivery) -> str:
        """What became of it; empty where GitHub doesn't answer now."""
        try:
            await self._github.redeliver(attempt.id)
        except (Refused, Missing) as error:
            log.warning("redelivery_refused", guid=attempt.guid, error=error.message)
            return "refused"
        except GitHubFailure as error:
            log.warning("redelivery_waits", error=error.message)
            return ""
        log.info("redelivery_asked", guid=attempt.guid)
        return "asked"


def plan(attempts: Iterable[HookDelivery], before: Swept, now: float) -> Plan:
    """What to ask for, out of all attempts after the cursor."""
    events: dict[str, list[HookDelivery]] = {}
    for attempt in sorted(attempts, key=lambda attempt: attempt.id):
        events.setdefault(attempt.guid, []).append(attempt)
    missing = {guid: tries for guid, tries in events.items() if not any(attempt.ok for attempt in tries)}
    tried = {guid: known for guid, known in before.tried.items() if guid in missing}
    due, lost = [], []
    for guid, tries in missing.items():
        known = tried.get(guid, Tried(0, 0.0))
        if known.given_up or now - max(known.at, tries[-1].at) < WAIT_S * 2**known.times:
            continue
        if known.times >= TIMES:
            tried[guid] = msgspec.structs.replace(known, given_up=True)
            lost.append(guid)
        else:
            due.append(tries[-1])
    still = [tries[0].id for guid, tries in missing.items() if not (guid in tried and tried[guid].given_up)]
    settled = [a.id for tries in events.values() for a in tries if now - a.at >= SETTLED_S]
    reached = max([before.cursor, *(number for number in settled if number < min(still, default=number + 1))])
    return Plan(tuple(due[:AT_ONCE]), tuple(lost), Swept(reached, tried))
