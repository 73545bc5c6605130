"""Time that passes only when everybody waits: an event loop whose clock jumps to the next thing to happen.

Nothing here reads the machine's clock, starts a thread or touches a socket, so a run depends on its seed alone.  The
whole process is changed (`install`), which is why such a run is a process of its own.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import selectors
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

EPOCH = 1_800_000_000.0


class Stuck(RuntimeError):
    """Everybody waits, and for nothing."""


class _Jump(selectors.SelectSelector):
    """In place of waiting for sockets, the clock is turned to the moment that is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.passed = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise Stuck
        self.passed += max(0.0, timeout)
        return []


class InThisThread(asyncio.AbstractEventLoop):
    """A loop whose executors are no threads: what they are given is done at once."""

    def run_in_executor(self, _executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """At once, in this thread."""
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - it is the caller's
            done.set_exception(error)
        return done


class Loop(InThisThread, asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.passed


def install(loop: Loop) -> None:
    """Have the whole process tell time by ``loop``."""

    def now() -> float:
        return EPOCH + loop.time()

    class Virtual(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Any:
            return dt.datetime.fromtimestamp(now(), tz)

    waited = 0.0

    def sleep(seconds: float) -> None:
        """A thread waits; the others, of which it would be one, go on, so time doesn't pass for them."""
        nonlocal waited
        waited += seconds

    time.time, time.sleep = now, sleep  # type: ignore[assignment]
    time.monotonic = lambda: loop.time() + waited  # type: ignore[assignment]
    for module in _readers_of_dates():
        module.datetime = Virtual  # type: ignore[attr-defined]


def _readers_of_dates() -> list[ModuleType]:
    """Where githubkit looks how old its proof of being the App is."""
    import githubkit.auth.app
    import githubkit.cache.mem_cache

    return [githubkit.auth.app, githubkit.cache.mem_cache]


def with_fixed_hashes(module: str) -> None:
    """Start ``module`` anew unless hashes are fixed: the order of a set is part of what happens."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        again = [sys.executable, "-m", module, *sys.argv[1:]]
        os.execve(sys.executable, again, {**os.environ, "PYTHONHASHSEED": "0"})
