"""Installation tokens: one request for each installation however many wait for it, renewed before they end.

githubkit's own cache is shared by the whole process whatever server or key is used, lets twenty first calls fetch
twenty tokens, and never drops a token that GitHub has revoked.  This one does none of that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import datetime

import msgspec

from orchestrator.system.log import hide

EARLY_S = 300.0


class Token(msgspec.Struct, frozen=True):
    value: str
    ends_at: float

    def __repr__(self) -> str:
        return f"Token(ends_at={self.ends_at})"


class Tokens:
    """``fetch`` asks GitHub for a new token of an installation: its value, and its ISO 8601 time of expiry."""

    def __init__(
        self, fetch: Callable[[int], Awaitable[tuple[str, str]]], *, clock: Callable[[], float] = time.time
    ) -> None:
        self._fetch = fetch
        self._clock = clock
        self._tokens: dict[int, Token] = {}
        self._locks: dict[int, asyncio.Lock] = {}

    async def get(self, installation: int) -> Token:
        async with self._locks.setdefault(installation, asyncio.Lock()):
            token = self._tokens.get(installation)
            if token is None or token.ends_at - EARLY_S <= self._clock():
                value, ends = await self._fetch(installation)
                hide(value)
                token = self._tokens[installation] = Token(value, datetime.fromisoformat(ends).timestamp())
            return token

    def drop(self, installation: int, token: Token) -> None:
        """GitHub doesn't take ``token`` any more."""
        if self._tokens.get(installation) == token:
            del self._tokens[installation]
