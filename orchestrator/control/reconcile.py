"""Looking: passes under the lease until nothing is left to do.  See `orchestrator.control.one_pass` for what a pass does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from ulid import ULID

from orchestrator.control.clock_set import follow_clock
from orchestrator.control.github import GitHub
from orchestrator.control.github_governed import GovernedGitHub
from orchestrator.control.governor import Governor
from orchestrator.control.groups import Groups
from orchestrator.control.installations import Installations
from orchestrator.control.one_pass import Means, Pass
from orchestrator.control.orphans import ORPHAN_S
from orchestrator.control.policies import PolicyBook
from orchestrator.control.policy_archive import POLICIES, PolicyArchive
from orchestrator.control.redelivery import Redelivery
from orchestrator.control.releases import ReleaseWatch
from orchestrator.control.sealed import Seal
from orchestrator.control.search import JobSearch
from orchestrator.control.settings import ControlSettings
from orchestrator.control.store import LEASE_MS, Lease, LeaseLost, Store
from orchestrator.core.clocks import Reckoned, was_set
from orchestrator.core.presets import Presets

PASSES = 20
"""Of one look at most; what is left then is the next one's."""
FULL_AGAIN_S = 60.0
"""Where GitHub has no room for a runner, registrations that nobody has a use for are looked for so often."""


def make_ulid() -> str:
    return str(ULID())


class Reconciler:
    """One for each worker.

    ``make_id`` gives a fresh ULID, ``clock`` the time in seconds since the epoch, ``reckon`` how that clock stands to one
    that nobody sets; without it, a clock that is set isn't noticed.
    """

    def __init__(
        self,
        store: Store,
        github: GitHub,
        settings: ControlSettings,
        presets: Presets,
        seal: Seal,
        *,
        clock: Callable[[], float] = time.time,
        make_id: Callable[[], str] = make_ulid,
        governor: Governor | None = None,
        reckon: Callable[[], Reckoned] | None = None,
    ) -> None:
        governor = governor or Governor(clock=clock)
        urgent = GovernedGitHub(github, governor, urgent=True)
        self._github = github = GovernedGitHub(github, governor)
        self._governor = governor
        self._resumed = False
        self._store = store
        self._clock = clock
        self._reckon = reckon
        self._settings = settings
        book = PolicyBook(
            github, presets, organisation_file=settings.organisation_policy_file, fresh_s=settings.pace.policy_s
        )
        archive = Path(settings.state_dir) / "archive"
        policies = PolicyArchive(Path(settings.state_dir) / POLICIES)
        installations = Installations(github)
        search = self._search = JobSearch(
            store, github, installations, every_s=settings.pace.search_s, share=governor.share
        )
        self._means = Means(
            store,
            github,
            settings,
            book,
            installations,
            seal,
            archive,
            policies,
            make_id,
            search,
            Groups(github),
            urgent,
            governor,
        )
        self._redelivery = Redelivery(store, github)
        self._releases = ReleaseWatch(store, github, installations)
        self._swept = float("-inf")
        self._looked_for_deliveries = float("-inf")
        self._looked_for_orphans = float("-inf")

    async def look(self) -> bool:
        """Look until nothing is left to do.  False where another worker has the lease, or took it over.

        Raises StoreError where Redis is away; whatever was done until then is either recorded or done again.
        """
        lease = await self._store.acquire()
        if lease is None:
            return False
        keeper = asyncio.create_task(self._keep(lease))
        try:
            await self._ask_whether_github_answers()
            for number in range(PASSES):
                now, reckoned = self._time()
                since = now - self._looked_for_orphans
                due, may = number == 0 and since >= ORPHAN_S, since >= FULL_AGAIN_S
                self._looked_for_orphans = now if due else self._looked_for_orphans
                one = Pass(self._means, lease, await self._store.snapshot(), now, sweep=due, may_sweep=may)
                if reckoned is not None and follow_clock(one.world, reckoned):
                    self._swept = self._looked_for_deliveries = float("-inf")  # whenever that was
                again = await one.run()
                self._looked_for_orphans = now if one.sweeps else self._looked_for_orphans
                if not again:
                    break
            await self._sweep(lease)
        except LeaseLost:
            return False
        except ExceptionGroup as group:
            lost, others = group.split(LeaseLost)
            if others is not None:
                raise others from None
            return lost is None
        finally:
            await _end(keeper)
        await self._store.release(lease)
        return True

    async def _ask_whether_github_answers(self) -> None:
        """In an outage, now and then.  What may have been missed in it is looked for as soon as it is over."""
        if not self._resumed:
            since = await self._store.outage_since()
            self._resumed = True
            if since:
                self._governor.resume(since)
        if await self._github.probe():
            self._search.again()
            self._looked_for_deliveries = float("-inf")

    async def _keep(self, lease: Lease) -> None:
        """Renew the lease while GitHub is slow."""
        while True:
            await asyncio.sleep(LEASE_MS / 3000)
            await self._store.renew(lease)

    def _time(self) -> tuple[float, Reckoned | None]:
        """The time, and how the clock stood as it was read."""
        if self._reckon is None:
            return self._clock(), None
        while True:
            before, now, after = self._reckon(), self._clock(), self._reckon()
            if not was_set(before, after):
                return now, after

    async def _sweep(self, lease: Lease) -> None:
        now = self._clock()
        if not self._governor.open_since and now - self._looked_for_deliveries >= self._settings.pace.redelivery_s:
            self._looked_for_deliveries = now
            await self._redelivery.sweep(lease, now)
        if not self._governor.open_since:
            await self._releases.look(lease, now)
        if now - self._swept >= self._settings.pace.sweep_s:
            self._swept = now
            await self._store.trim(lease, self._settings.finished_kept, now=now)
            old = now - self._settings.unserved_days * 86400
            await self._store.trim_unserved(lease, self._settings.unserved_kept, old)


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel ``task`` until it is over: a cancellation that falls into a timeout of the store's client may get lost there."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=1.0)
    if not task.cancelled():
        task.exception()
