"""Who calls: a host by its own token, an admin by the admin's.  Compared in constant time, whichever fits."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from fastapi import HTTPException, Request

from orchestrator.system.secret_file import SecretFile

_REFUSED = {"WWW-Authenticate": "Bearer"}


class HostTokens:
    """Call it with a request for the name of the host that sends it; 401 for anyone else."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self._files = {host: SecretFile(path) for host, path in files.items()}

    def __call__(self, request: Request) -> str:
        given = _digest(_bearer(request))
        found = ""
        for host, file in self._files.items():
            secret = file()
            if hmac.compare_digest(_digest(secret), given) and secret:
                found = host
        if not found:
            raise HTTPException(401, "unauthorized", headers=_REFUSED)
        return found

    @property
    def hosts(self) -> frozenset[str]:
        return frozenset(self._files)


class AdminToken:
    """Call it with a request; 401 unless it carries the admin's token."""

    def __init__(self, path: str) -> None:
        self._file = SecretFile(path)

    def __call__(self, request: Request) -> None:
        secret = self._file()
        if not (hmac.compare_digest(_digest(secret), _digest(_bearer(request))) and secret):
            raise HTTPException(401, "unauthorized", headers=_REFUSED)


def _bearer(request: Request) -> bytes:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip().encode("latin-1", "replace") if scheme.lower() == "bearer" else b""


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
