"""cloud-init's stages, started over its own sockets.

Since 24.3 one process runs all of cloud-init, and each stage waits for a datagram ``start`` on a socket of its own
(``cloudinit/socket.py``).  Its units for systemd send these, each with four programs that do nothing else, and wait for
targets that a machine with one job has no use for.  Here the gate sends all four at once: the sockets are there before the
first stage, and the process takes one after the other.  cloud-init itself is as Debian ships it.
"""

from __future__ import annotations

import contextlib
import os
import socket

STAGES = ("local", "network", "config", "final")
SHARE = "/run/cloud-init/share"


class Stages:
    """``start`` may be called again until it has succeeded."""

    def __init__(self, share: str = SHARE) -> None:
        self._share = share
        self.started = False
        self.done: list[str] = []
        self._links: dict[int, tuple[str, socket.socket]] = {}

    def start(self) -> bool:
        """False where cloud-init isn't listening yet."""
        if self.started or not all(os.path.exists(f"{self._share}/{stage}.sock") for stage in STAGES):
            return self.started
        for stage in STAGES:
            answer = f"{self._share}/{stage}-return.sock"  # cloud-init answers to no other
            with contextlib.suppress(FileNotFoundError):
                os.unlink(answer)
            link = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
            link.bind(answer)
            link.sendto(b"start", f"{self._share}/{stage}.sock")
            self._links[link.fileno()] = (stage, link)
        self.started = True
        return True

    def waiting(self) -> list[int]:
        """Descriptors that become readable when a stage is done."""
        return list(self._links)

    def read(self, descriptor: int) -> str:
        """The stage that is done."""
        stage, link = self._links.pop(descriptor)
        with link, contextlib.suppress(OSError):
            link.recv(4096)
        self.done.append(stage)
        return stage
