"""Looks after the record in the background: seals days that are over, and deletes once a day what needn't be kept any longer.

Both are another process's work (``python -m orchestrator.audit``), at a low priority: compressing a day takes a processor for
minutes, and whoever ships or asks shouldn't wait for it.  It may be killed with the control plane at any moment.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from orchestrator.audit import days
from orchestrator.audit.seal import GRACE_S
from orchestrator.audit.streams import streams
from orchestrator.core.retention import Retention
from orchestrator.system.day_lines import day_of

FIRST_S = 60.0
"""A control plane that was just started has other things to do."""
EVERY_S = 600.0
DELETE_EVERY_S = 86400.0

log = structlog.get_logger()


async def tend(
    folder: Path,
    retention: Retention | None,
    *,
    first_s: float = FIRST_S,
    every_s: float = EVERY_S,
    clock: Callable[[], float] = time.time,
) -> None:
    """Until cancelled.  Nothing is deleted where ``retention`` is None."""
    delete_at = 0.0
    await asyncio.sleep(first_s)
    while True:
        deletes = retention is not None and clock() >= delete_at
        if deletes or await asyncio.to_thread(has_work, folder, clock()):
            await _work(folder, retention if deletes else None)
            delete_at = clock() + DELETE_EVERY_S if deletes else delete_at
        await asyncio.sleep(every_s)


def has_work(folder: Path, now: float) -> bool:
    """Whether a day is over and still open, or has no Parquet file."""
    today = day_of(now - GRACE_S)
    return any(
        days.open_file(folder / name, day).exists() or not days.parquet_file(folder / name, day).exists()
        for name in streams(folder)
        for day in days.days(folder / name)
        if day < today
    )


async def _work(folder: Path, retention: Retention | None) -> None:
    argv = [sys.executable, "-m", "orchestrator.audit", "--folder", str(folder)]
    if retention is not None:
        argv += ["--retention", msgspec.json.encode(retention).decode()]
    process = await asyncio.create_subprocess_exec(*argv, stdin=asyncio.subprocess.DEVNULL)
    try:
        status = await process.wait()
    except asyncio.CancelledError:
        process.terminate()
        await process.wait()
        raise
    if status != 0:
        log.error("record_not_tended", status=status)
