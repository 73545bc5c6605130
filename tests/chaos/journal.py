"""What happened, line by line: two runs of one seed have the same lines."""

from __future__ import annotations

import errno
import hashlib
import sys
import traceback
from collections.abc import Callable
from typing import Any

import httpx

from orchestrator.core.errors import IronCDError


def is_foreseen(error: BaseException | None) -> bool:
    """Errors of ours, which have a remedy; and that a disk is full."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_foreseen(inner) for inner in error.exceptions)
    return isinstance(error, IronCDError) or (isinstance(error, OSError) and error.errno == errno.ENOSPC)


class Journal:
    def __init__(self, now: Callable[[], float], lines: list[str] | None = None) -> None:
        self._now = now
        self._sum = hashlib.sha256()
        self._lines = lines
        self.faults: list[str] = []
        """What must never happen."""

    def note(self, what: str) -> None:
        line = f"{self._now():.3f} {what}"
        self._sum.update(line.encode() + b"\n")
        if self._lines is not None:
            self._lines.append(line)

    def fault(self, what: str) -> None:
        self.faults.append(f"{self._now():.0f} {what}")
        self.note(f"FAULT {what}")

    def broke(self, who: str, error: BaseException) -> None:
        """An error that nobody foresaw, with where it came from."""
        if not is_foreseen(error):
            self.fault(f"{who} broke: {''.join(traceback.format_exception(error))[-1800:]}")

    def call(self, request: httpx.Request, answer: httpx.Response) -> None:
        self.note(f"github {request.method} {request.url.path} {answer.status_code}")

    def log(self, _logger: Any, method: str, event: dict[str, Any]) -> dict[str, Any]:
        """As a processor of structlog's: the product's own log, and what it says of errors that it didn't foresee."""
        import structlog

        words = " ".join(f"{key}={event[key]}" for key in ("runner", "phase", "reason", "job", "code") if key in event)
        self.note(f"{method} {event.get('event')} {words}")
        if event.get("exc_info") or method == "exception":
            self.unforeseen(str(event.get("event")))
        raise structlog.DropEvent

    def unforeseen(self, what: str) -> None:
        if not is_foreseen(sys.exc_info()[1]):
            self.fault(f"{what}: {traceback.format_exc()[-1800:]}")

    @property
    def digest(self) -> str:
        return self._sum.hexdigest()
