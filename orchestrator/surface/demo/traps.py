"""Listeners behind the ports of the host's own services, in the VMs' namespace: what reaches one of them broke the wall.

They listen on every address, so a VM's next hop has them as soon as its link exists.
"""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Iterable
from typing import Self

from orchestrator.system import netns


class Traps:
    """``with Traps(namespace, ports) as traps``; `caught` says who came through, one line a connection."""

    def __init__(self, namespace: str, ports: Iterable[int]) -> None:
        self.caught: list[str] = []
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._sockets: list[socket.socket] = []
        with netns.inside(namespace):
            for port in ports:
                listener = socket.create_server(("0.0.0.0", port))  # noqa: S104 - a namespace with no way out
                self._sockets.append(listener)
                self._selector.register(listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._watch, name="traps", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._wake.send(b"x")
        self._thread.join(5)
        for item in (*self._sockets, self._wake, self._woken):
            item.close()
        self._selector.close()

    def _watch(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._woken:
                    return
                listener = key.fileobj
                assert isinstance(listener, socket.socket)
                connection, (source, _port) = listener.accept()
                self.caught.append(f"{source} reached port {listener.getsockname()[1]}")
                connection.close()
