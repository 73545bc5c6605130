"""Where the App is installed, as GitHub says: what a payload claims of itself is checked against it."""

from __future__ import annotations

import asyncio

from orchestrator.control.github import GitHub, Installation

FRESH_S = 600.0
AGAIN_S = 10.0
"""The list isn't asked for more often, however many unknown ids come in."""


class Installations:
    def __init__(self, github: GitHub) -> None:
        self._github = github
        self._known: dict[int, Installation] = {}
        self._at = float("-inf")
        self._lock = asyncio.Lock()

    async def get(self, installation: int, repo: str, now: float) -> Installation | None:
        """The installation of that id (0: the one that ``repo`` is under); None where GitHub says that it isn't ours.

        Raises `GitHubFailure` where GitHub doesn't answer.
        """
        found = self._find(installation, repo)
        if found is None or now - self._at >= FRESH_S:
            await self._refresh(now, patience=AGAIN_S if found is None else FRESH_S)
            found = self._find(installation, repo)
        return found

    async def all(self, now: float) -> list[Installation]:
        await self._refresh(now, patience=AGAIN_S)
        return list(self._known.values())

    def forget(self) -> None:
        """Something changed: ask again the next time."""
        self._at = float("-inf")

    def _find(self, installation: int, repo: str) -> Installation | None:
        if installation:
            return self._known.get(installation)
        owner = repo.partition("/")[0].lower()
        return next((known for known in self._known.values() if known.account.lower() == owner), None)

    async def _refresh(self, now: float, *, patience: float) -> None:
        async with self._lock:
            if now - self._at < patience:
                return
            self._known = {found.id: found for found in await self._github.installations()}
            self._at = now
