"""The webhook's secrets, out of files, so that one can be rotated without a restart and without a refused delivery.

Two are in force at once: put the new one in the second file, change it at GitHub, then move it to the first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.core.errors import ConfigurationError
from orchestrator.system.log import hide

LOOK_EVERY_S = 1.0


class SecretFiles:
    """Call it for the secrets now in force; the files are looked at again at most once a second.

    A file that is missing or empty counts as no secret; with none at all every delivery is refused.
    """

    def __init__(self, paths: Sequence[str], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._paths = tuple(Path(path) for path in paths)
        self._clock = clock
        self._looked = float("-inf")
        self._stamps: tuple[tuple[int, int, int] | None, ...] = ()
        self._secrets: tuple[bytes, ...] = ()

    def __call__(self) -> tuple[bytes, ...]:
        now = self._clock()
        if now - self._looked >= LOOK_EVERY_S:
            self._looked = now
            stamps = tuple(_stamp(path) for path in self._paths)
            if stamps != self._stamps:
                self._stamps = stamps
                self._secrets = tuple(secret for secret in map(_read, self._paths) if secret)
        return self._secrets

    def require(self) -> None:
        """Raises ConfigurationError (code ``webhook-secret-missing``) where no file holds a secret."""
        if not self():
            raise ConfigurationError(
                "no webhook secret: " + (", ".join(map(str, self._paths)) or "no file is named"),
                code="webhook-secret-missing",
                remedy="Write the secret that the GitHub App's webhook has into the file, mode 0600.",
            )


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
