"""An event loop for what never waits: as small as asyncio's tasks allow, since histories are played through it by the thousand.

It has no sockets, threads or signals.  Where everybody waits for a moment, that moment is now; where nobody waits for one, that is
an error.
"""

from __future__ import annotations

import asyncio
import heapq
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar

from tests.chaos.clockwork import InThisThread

_T = TypeVar("_T")
LEFT_OVER = 200
"""So many timers may lie here before those that nobody waits for are thrown away."""


class Stuck(RuntimeError):
    """Everybody waits, and for nothing."""


class AtOnce(InThisThread):
    def __init__(self) -> None:
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[asyncio.TimerHandle] = []
        self._now = 0.0

    def run_until_complete(self, future: Coroutine[Any, Any, _T]) -> _T:  # type: ignore[override]
        events._set_running_loop(self)
        try:
            task = self.create_task(future)
            while not task.done():
                if not self._ready:
                    self._jump()
                self._run(self._ready.popleft())
        finally:
            events._set_running_loop(None)
        return task.result()

    def _run(self, handle: asyncio.Handle) -> None:
        if not handle._cancelled:
            handle._context.run(handle._callback, *handle._args)

    def _jump(self) -> None:
        while self._timers:
            timer = heapq.heappop(self._timers)
            if not timer._cancelled:
                self._now = max(self._now, timer.when())
                self._ready.append(timer)
                return
        raise Stuck

    def close(self) -> None:
        self._ready.clear()
        self._timers.clear()

    def time(self) -> float:
        return self._now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return events._get_running_loop() is self

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        if len(self._timers) > LEFT_OVER:
            self._timers = [timer for timer in self._timers if not timer._cancelled]
            heapq.heapify(self._timers)
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, timer)
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is left out when its turn comes."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=self, name=name, context=context)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Of tasks that a worker left behind when it died: what they raised is nobody's."""
