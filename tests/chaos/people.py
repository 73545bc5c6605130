"""What admins do while all goes on: close hosts and open them again, have templates made anew, start jobs again.

Each tries until somebody has taken the word, as a person would.  When a host was closed, from the answer on, is written
down for the judge.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import msgspec
from fastapi import HTTPException

from orchestrator.control.drain_api import DrainApi
from orchestrator.control.store import Store
from orchestrator.core.errors import StoreError
from tests.chaos.lot import HOSTS
from tests.chaos.mortal import Mortal

if TYPE_CHECKING:
    from tests.chaos.city import City


DUE_S = 600.0
"""Longer than any drain here goes on after its deadline, and than it takes until the last host has heard of its end."""


class Closed(msgspec.Struct):
    """A host that was to get nothing new, between two moments; ``how``: ``cordon`` or ``drain``."""

    host: str
    how: str
    since: float
    until: float = float("inf")


class People:
    def __init__(self, city: City) -> None:
        self.city = city
        self.closed: list[Closed] = []
        self.due: dict[str, list[float]] = {}
        """By host, when its jobs had to have ended."""
        store = self._store = Store(city.memory.client(Mortal("people")), "t:")
        self._drains = DrainApi(store, hosts=frozenset(HOSTS), clock=city.now)

    async def cordon(self, host: str, for_s: float) -> None:
        await self._until_done(lambda: self._store.cordon(host, "chaos"))
        await self._keep_closed(host, "cordon", for_s, lambda: self._store.uncordon(host))

    async def drain(self, host: str, for_s: float, deadline_s: float) -> None:
        await self._until_done(lambda: self._drains.drain(host, deadline_s=deadline_s, why="chaos"))
        self.due.setdefault(host, []).append(self.city.now() + deadline_s)
        await self._keep_closed(host, "drain", for_s, lambda: self._drains.undrain(host))

    def had_to_end(self, host: str) -> bool:
        """Whether jobs of ``host`` may end now because it is, or just was, to be empty."""
        return any(0.0 <= self.city.now() - due <= DUE_S for due in self.due.get(host, ()))

    async def rebuild_templates(self, host: str) -> None:
        await self._until_done(lambda: self._store.rebuild_templates(host, self.city.now()))

    def forgotten(self) -> None:
        """Redis was emptied, and with it what people had said of hosts that hadn't heard of it."""
        for host in self.city.hosts:
            known = host.decided()
            if known.cordoned is None:
                self._open(host.name, "cordon")
            if known.drain is None:
                self._open(host.name, "drain")

    async def _keep_closed(self, host: str, how: str, for_s: float, back: Callable[[], Awaitable[object]]) -> None:
        self.closed.append(Closed(host, how, self.city.now()))
        await asyncio.sleep(for_s)
        self._open(host, how)
        await self._until_done(back)
        self._open(host, how)  # whoever closed it in between did so before

    def _open(self, host: str, how: str) -> None:
        for closed in self.closed:
            if (closed.host, closed.how) == (host, how):
                closed.until = min(closed.until, self.city.now())

    async def _until_done(self, ask: Callable[[], Awaitable[object]]) -> None:
        while True:
            try:
                await ask()
            except (HTTPException, StoreError):
                await asyncio.sleep(5.0)
            else:
                return
