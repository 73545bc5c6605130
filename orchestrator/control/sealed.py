"""JIT configurations at rest: sealed with a key that lies in a file beside the control plane, never in Redis.

Who reads Redis, its append-only file or a backup of it can't become one of our runners.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from orchestrator.system.files import write_atomic


class Seal:
    def __init__(self, key: bytes) -> None:
        self._fernet = Fernet(key)

    @classmethod
    def in_folder(cls, folder: Path) -> Seal:
        """With the key in ``folder``/seal.key; made, readable by its owner only, where there is none."""
        path = folder / "seal.key"
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            fresh = path.with_name(f".seal.key.{os.getpid()}")
            write_atomic(fresh, Fernet.generate_key(), mode=0o600)
            with contextlib.suppress(FileExistsError):
                os.link(fresh, path)
            fresh.unlink()
        return cls(path.read_bytes())

    def seal(self, secret: str) -> bytes:
        return self._fernet.encrypt(secret.encode("ascii"))

    def unseal(self, sealed: bytes) -> str | None:
        """None where it was sealed with another key."""
        try:
            return self._fernet.decrypt(sealed).decode("ascii")
        except InvalidToken:
            return None
