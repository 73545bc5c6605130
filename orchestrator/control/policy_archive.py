"""Every policy that was in force, by its digest: what an event of two years ago was judged by can still be read.

A policy is written before a host is told of it, and never changed: its name is the digest of what is in it, so one that was
touched is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import msgspec
import structlog

from orchestrator.core.policy import Policy
from orchestrator.system.files import write_atomic

POLICIES = "policies"
"""The archive's folder, in the control plane's state_dir."""
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")

log = structlog.get_logger()


class PolicyArchive:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._there: set[str] = set()

    def put(self, policies: Iterable[Policy]) -> None:
        """Keep ``policies``; back once they are on the disk.  Raises OSError."""
        for policy in policies:
            digest = policy.digest
            if digest in self._there:
                continue
            path = self._path(digest)
            if path is not None and not path.exists():
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_atomic(path, msgspec.json.encode(policy, order="deterministic"))
            self._there.add(digest)

    def get(self, digest: str) -> Policy | None:
        """The policy of that digest; None where there is none, or what lies there is another."""
        path = self._path(digest)
        try:
            policy = msgspec.json.decode(path.read_bytes(), type=Policy) if path is not None else None
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            log.error("policy_spoiled", digest=digest, error=str(error))  # noqa: TRY400 - the error says it all
            return None
        if policy is not None and policy.digest != digest:
            log.error("policy_spoiled", digest=digest, error="its digest is another")
            return None
        return policy

    def _path(self, digest: str) -> Path | None:
        found = _DIGEST.fullmatch(digest)
        return self._folder / f"{found[1]}.json" if found is not None else None
