"""The webhook's secrets, out of files, so that one can be rotated without a restart and without a refused delivery.

Two are in force at once: put the new one in the second file, change it at GitHub, then move it to the first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from orchestrator.core.errors import ConfigurationError
from orchestrator.system.secret_file import SecretFile


class SecretFiles:
    """Call it for the secrets now in force.  With none at all every delivery is refused."""

    def __init__(self, paths: Sequence[str], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._files = tuple(SecretFile(path, clock=clock) for path in paths)

    def __call__(self) -> tuple[bytes, ...]:
        return tuple(secret for secret in (file() for file in self._files) if secret)

    def require(self) -> None:
        """Raises ConfigurationError (code ``webhook-secret-missing``) where no file holds a secret."""
        if not self():
            raise ConfigurationError(
                "no webhook secret: " + (", ".join(str(file.path) for file in self._files) or "no file is named"),
                code="webhook-secret-missing",
                remedy="Write the secret that the GitHub App's webhook has into the file, mode 0600.",
            )
