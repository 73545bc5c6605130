"""Where the App is installed, as GitHub says: what a payload claims of itself is checked against it.

GitHub tells when that changes.  That news may be lost, so it is asked for anyway: each ten minutes, each minute where the App is
suspended somewhere that matters, and at once where what an installation is asked for was refused (`ask`).
"""

from __future__ import annotations

import asyncio

from orchestrator.control.github import GitHub, Installation

FRESH_S = 600.0
SUSPENDED_S = 60.0
AGAIN_S = 10.0
"""The list isn't asked for more often, however many unknown ids come in."""


class Installations:
    def __init__(self, github: GitHub) -> None:
        self._github = github
        self._known: dict[int, Installation] = {}
        self._at = float("-inf")
        self._lock = asyncio.Lock()
        self._asked = 0
        """So many times."""
        self._answered = 0
        """The last of these that was answered."""
        self._back: dict[int, Installation] = {}

    async def get(self, installation: int, repo: str, now: float) -> Installation | None:
        """The installation of that id (0: the one that ``repo`` is under); None where GitHub says that it isn't ours.

        Raises `GitHubFailure` where GitHub doesn't answer.
        """
        found = self._find(installation, repo)
        patience = SUSPENDED_S if found is not None and found.suspended else FRESH_S
        if found is None or now - self._at >= patience:
            await self._refresh(now, patience=AGAIN_S if found is None else patience)
            found = self._find(installation, repo)
        return found

    async def ask(self, installation: int, now: float) -> Installation | None:
        """As `get`, by an answer to a question that was asked after this call.  Who asks meanwhile waits for the next one."""
        asked = self._asked
        async with self._lock:
            if self._answered <= asked:
                await self._list(now)
        return self._find(installation, "")

    async def all(self, now: float) -> list[Installation]:
        await self._refresh(now, patience=AGAIN_S)
        return list(self._known.values())

    def forget(self) -> None:
        """Something changed: ask again the next time."""
        self._at = float("-inf")

    def came_back(self) -> list[Installation]:
        """Those that weren't there or were suspended before the last answers, and aren't now; each is told once."""
        back, self._back = self._back, {}
        return list(back.values())

    def _find(self, installation: int, repo: str) -> Installation | None:
        if installation:
            return self._known.get(installation)
        owner = repo.partition("/")[0].lower()
        return next((known for known in self._known.values() if known.account.lower() == owner), None)

    async def _refresh(self, now: float, *, patience: float) -> None:
        async with self._lock:
            if now - self._at < patience:
                return
            await self._list(now)

    async def _list(self, now: float) -> None:
        self._asked += 1
        number = self._asked
        known = {found.id: found for found in await self._github.installations()}
        if self._answered:
            standing = {one.id for one in self._known.values() if not one.suspended}
            self._back |= {one.id: one for one in known.values() if not one.suspended and one.id not in standing}
        self._known, self._at, self._answered = known, now, number
