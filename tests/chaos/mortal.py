"""A process that can die at any line that leaves something behind: what it was about to do then isn't done, ever."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable
from typing import Any, TypeVar

_T = TypeVar("_T")


class Killed(BaseException):
    """``kill -9``, as far as one process can have it of another that it plays."""


def is_killed(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(is_killed(inner) for inner in error.exceptions)
    return isinstance(error, Killed)


class Mortal:
    """One process from its start to its death.  `point` stands before and after each thing that takes effect."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.points = 0
        self.dies_in: int | None = None
        """Points left until it dies; None for one that lives on."""
        self.death: asyncio.Event = asyncio.Event()

    def point(self, *_: Any) -> None:
        if not self.alive:
            raise Killed(self.name)
        self.points += 1
        if self.dies_in is not None:
            self.dies_in -= 1
            if self.dies_in <= 0:
                self.die()
                raise Killed(self.name)

    def die(self) -> None:
        self.alive = False
        self.death.set()

    async def living(self, call: Awaitable[_T]) -> _T:
        """``call``, unless it dies in the middle.  Raises `Killed`."""
        task = asyncio.ensure_future(call)
        death = asyncio.ensure_future(self.death.wait())
        try:
            await asyncio.wait({task, death}, return_when=asyncio.FIRST_COMPLETED)
            if self.alive and task.done():
                return task.result()
            raise Killed(self.name)
        finally:
            for one in (task, death):
                one.cancel()
            await asyncio.gather(task, death, return_exceptions=True)


class Guarded:
    """``thing``, used by ``mortal``: there is a point before and after each call."""

    def __init__(self, thing: Any, mortal: Mortal) -> None:
        self._thing = thing
        self._mortal = mortal

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._thing, name)
        if not callable(found):
            return found

        @functools.wraps(found)
        def call(*args: Any, **named: Any) -> Any:
            self._mortal.point(name)
            done = found(*args, **named)
            self._mortal.point(name)
            return done

        return call
