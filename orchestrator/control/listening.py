"""The API, which hosts report to, writes down every few seconds that it listens: see `orchestrator.core.listening`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from orchestrator.control.store import Store
from orchestrator.core.errors import StoreError

EVERY_S = 5.0

log = structlog.get_logger()


async def listen(store: Store, *, clock: Callable[[], float] = time.time) -> None:
    """Until cancelled."""
    while True:
        try:
            await store.note_listening(clock())
        except StoreError as error:
            log.warning("listening_unnoted", error=error.message)
        await asyncio.sleep(EVERY_S)
