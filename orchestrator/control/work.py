"""The job that RQ runs: look.  It says nothing of what has changed, so one too many is harmless and one lost is late.

The worker's process holds what looking needs (`install`); RQ calls `look_job` in a thread of that process.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

Look = Callable[[], Awaitable[bool]]

LIMIT_S = 240.0
"""A look that takes longer is waited for no more; its lease runs out if it hangs."""

_lock = threading.Lock()
_installed: tuple[asyncio.AbstractEventLoop, Look] | None = None


def install(loop: asyncio.AbstractEventLoop | None, look: Look | None) -> None:
    """Have `look_job` await ``look`` in ``loop``, which runs in another thread; None takes it back."""
    global _installed  # noqa: PLW0603 - RQ finds a job by its module's name, so that is where it must find its means
    with _lock:
        _installed = (loop, look) if loop is not None and look is not None else None


def look_job() -> None:
    """Look once.  Raises RuntimeError outside IronCD's own worker: a plain ``rq worker`` has no credentials."""
    with _lock:
        installed = _installed
    if installed is None:
        raise RuntimeError("look_job runs in IronCD's worker only (orchestrator.control.worker)")
    loop, look = installed
    asyncio.run_coroutine_threadsafe(_as_coroutine(look), loop).result(timeout=LIMIT_S)


async def _as_coroutine(look: Look) -> bool:
    return await look()
