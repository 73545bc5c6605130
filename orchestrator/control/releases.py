"""GitHub's releases of its runner: asked for once a day, and held against the images that hosts have.

What follows from a version's age stands in `orchestrator.core.runner_release`.  GitHub Enterprise Server has no such
repository; there nothing is known, and nothing is blocked.
"""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from orchestrator.control.github import GitHub, GitHubFailure
from orchestrator.control.installations import Installations
from orchestrator.control.store import Lease, Store
from orchestrator.core.runner_release import DAY_S, Releases, admit, learn, why_not
from orchestrator.core.wire import Image

AGAIN_S = 3600.0
"""After GitHub didn't answer."""

log = structlog.get_logger()


class Rollout:
    """Which images are in use, during one look.  ``first``: nothing is known of what was in use before."""

    def __init__(self, releases: Releases, now: float, *, first: bool) -> None:
        self.releases = self._written = releases
        self._now = now
        self._first = first

    @property
    def changed(self) -> bool:
        return self.releases != self._written

    def written(self) -> None:
        self._written = self.releases

    def seen(self, images: Iterable[Image]) -> None:
        """Hosts have these."""
        found = {image.digest: image.runner_version for image in images}
        self.releases = admit(self.releases, found, self._now, all_of_them=self._first)

    def why_not(self, image: Image) -> str:
        return why_not(self.releases, image.digest, image.runner_version, self._now)


class ReleaseWatch:
    def __init__(self, store: Store, github: GitHub, installations: Installations) -> None:
        self._store = store
        self._github = github
        self._installations = installations
        self._next = 0.0

    async def look(self, lease: Lease, now: float) -> None:
        """Ask GitHub, if it is time.  Raises StoreError."""
        if now < self._next:
            return
        releases = await self._store.releases()
        if now - releases.asked_at < DAY_S:
            self._next = releases.asked_at + DAY_S
            return
        self._next = now + AGAIN_S
        try:
            alive = next((seen for seen in await self._installations.all(now) if not seen.suspended), None)
            if alive is None:
                return
            latest = await self._github.latest_runner(alive.id)
        except GitHubFailure as error:
            log.warning("releases_unread", error=error.message)
            return
        version, published = (latest.version, latest.published) if latest is not None else ("", 0.0)
        changes = self._store.changes()
        changes.put_releases(learn(releases, version, published, now))
        await self._store.commit(lease, changes)
        log.info("runner_release", latest=version)
