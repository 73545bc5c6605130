"""Signed ``workflow_job`` deliveries, made before they are timed: GitHub's own example payload, each with a job of its own."""

from __future__ import annotations

import copy
import hashlib
import hmac
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

EXAMPLES = Path(__file__).resolve().parent.parent / "tests" / "data" / "webhook-examples.json"


class Signed(NamedTuple):
    guid: str
    job: int
    body: bytes
    signature: str

    def headers(self) -> list[tuple[str, str]]:
        """As GitHub sends them."""
        return [
            ("Accept", "*/*"),
            ("Content-Type", "application/json"),
            ("User-Agent", "GitHub-Hookshot/044aadd"),
            ("X-GitHub-Delivery", self.guid),
            ("X-GitHub-Event", "workflow_job"),
            ("X-GitHub-Hook-ID", "292430182"),
            ("X-GitHub-Hook-Installation-Target-ID", "79929171"),
            ("X-GitHub-Hook-Installation-Target-Type", "integration"),
            ("X-Hub-Signature-256", self.signature),
        ]


def example() -> dict[str, Any]:
    """A real ``queued`` payload of an installed App."""
    payloads: list[dict[str, Any]] = json.loads(EXAMPLES.read_text(encoding="utf-8"))["workflow_job"]
    return next(
        payload
        for payload in payloads
        if payload["action"] == payload["workflow_job"]["status"] == "queued" and "installation" in payload
    )


class Deliveries:
    """Makes deliveries that no receiver has seen.  ``secret`` signs them, ``labels`` are their jobs'.

    ``repo`` (``owner/name``, an organisation's) and ``installation`` replace the example's.
    """

    def __init__(
        self, secret: str, *, labels: tuple[str, ...] = ("ironcd",), repo: str = "", installation: int = 0
    ) -> None:
        self._secret = secret.encode()
        self._payload = copy.deepcopy(example())
        self._payload["workflow_job"]["labels"] = list(labels)
        if repo:
            self._payload["repository"]["full_name"] = repo
            self._payload["repository"]["owner"] |= {"login": repo.split("/", maxsplit=1)[0], "type": "Organization"}
            self._payload["installation"]["id"] = installation
        self._made = 0

    def make(self, count: int) -> list[Signed]:
        return list(self._each(count))

    def _each(self, count: int) -> Iterator[Signed]:
        for _ in range(count):
            self._made += 1
            job = 50_000_000_000 + self._made
            self._payload["workflow_job"]["id"] = job
            body = json.dumps(self._payload, separators=(",", ":")).encode()
            digest = hmac.new(self._secret, body, hashlib.sha256).hexdigest()
            guid = f"72d3162e-cc78-11e3-81ab-{self._made:012x}"
            yield Signed(guid, job, body, f"sha256={digest}")
