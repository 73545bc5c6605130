"""Takes connections off a listener, in turns, and leaves the queue alone for a moment where there is no room."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable

import structlog

AT_ONCE = 64
"""Connections taken in one go, before others get their turn."""
NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
REST_S = 0.5

_log = structlog.get_logger()


class Acceptor:
    """Calls ``taken(client, guest)`` with each connection's non-blocking socket and the address it comes from."""

    def __init__(self, listener: socket.socket, taken: Callable[[socket.SocketType, str], None]) -> None:
        self._listener = listener
        self._taken = taken
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._watch()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()

    def _watch(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                # What `accept` calls, without what it wraps around it in Python; the type stubs leave it out.
                descriptor, (guest, _) = self._listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001 - as above
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # Out of descriptors or memory: what is open must be able to go on, so don't try again at once.
                _log.error("accept_failed", error=str(error), no_room=error.errno in NO_ROOM)
                self._loop.remove_reader(self._listener.fileno())
                self._loop.call_later(REST_S, self._watch)
                return
            client = socket.SocketType(socket.AF_INET, socket.SOCK_STREAM, 0, descriptor)
            client.setblocking(False)
            self._taken(client, guest)
