"""Tells sessions when their sockets are ready: one epoll of our own below the event loop, edge-triggered.

A descriptor is registered once, for everything, and leaves with its close: a connection costs two system calls here,
however often its sockets change between readable and not.  Whoever is told must read or write until there is no more
(or come back on its own), and must take being told for nothing: a number can be reused while old news is on its way.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable

READABLE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
WRITABLE = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR
ENDED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
"""The peer has sent its last byte, or is gone: reading goes on until it says so itself."""
BROKEN = select.EPOLLHUP | select.EPOLLERR

AT_ONCE = 256
_ALL = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET

Handler = Callable[[int], None]
Failed = Callable[[Exception], None]


class Poller:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._handlers: dict[int, tuple[Handler, Failed]] = {}
        loop.add_reader(self._epoll.fileno(), self._ready)

    def watch(self, descriptor: int, handler: Handler, failed: Failed) -> None:
        """Call ``handler(events)`` whenever ``descriptor`` becomes readable or writable, and once for how it is now.

        ``failed`` gets what it raises: one session's fault must not be the others'.
        """
        self._handlers[descriptor] = (handler, failed)
        self._epoll.register(descriptor, _ALL)

    def change(self, descriptor: int, handler: Handler, failed: Failed) -> None:
        """From now on ``handler`` is told."""
        self._handlers[descriptor] = (handler, failed)

    def forget(self, descriptor: int) -> None:
        """Nobody is told any more.  The caller closes ``descriptor`` at once."""
        self._handlers.pop(descriptor, None)

    def close(self) -> None:
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _ready(self) -> None:
        handlers = self._handlers
        for descriptor, events in self._epoll.poll(0, AT_ONCE):
            entry = handlers.get(descriptor)
            if entry is None:
                continue
            handler, failed = entry
            try:
                handler(events)
            except Exception as error:  # noqa: BLE001 - as `watch` says
                failed(error)
