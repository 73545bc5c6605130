"""A secret in a file, read again when the file changes, so that it can be rotated without a restart."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from orchestrator.system.log import hide

LOOK_EVERY_S = 1.0


class SecretFile:
    """Call it for the secret now in force; the file is looked at again at most once a second.

    A file that is missing, unreadable or empty holds no secret: the answer is empty, and nothing may match that.
    """

    def __init__(self, path: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = Path(path)
        self._clock = clock
        self._looked = float("-inf")
        self._stamp: tuple[int, int, int] | None = None
        self._secret = b""

    def __call__(self) -> bytes:
        now = self._clock()
        if now - self._looked >= LOOK_EVERY_S:
            self._looked = now
            stamp = _stamp(self.path)
            if stamp != self._stamp:
                self._stamp = stamp
                self._secret = _read(self.path)
        return self._secret


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        seen = os.stat(path)
    except OSError:
        return None
    return seen.st_ino, seen.st_mtime_ns, seen.st_size


def _read(path: Path) -> bytes:
    try:
        secret = path.read_bytes().strip()
    except OSError:
        return b""
    hide(secret.decode("utf-8", "replace"))
    return secret
