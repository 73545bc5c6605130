"""The machine's cores, ports and caches, as a bench needs them."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

CACHE = Path("/var/cache/ironcd/peers")
"""Where peers are installed: outside the checkout, kept between runs."""
BUILD = Path(__file__).resolve().parent.parent / "build"


def cores() -> tuple[int, int]:
    """The core that what is measured runs on, and the one that the load comes from (the same on a one-core machine)."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


def on_core(core: int, argv: list[str]) -> list[str]:
    """``argv``, to run with all its threads on one core."""
    return ["taskset", "--cpu-list", str(core), *argv]


@contextlib.contextmanager
def this_process_on(core: int) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def scratch(name: str) -> Iterator[Path]:
    """A folder below ``build/``, so on a real disk and not in memory; removed afterwards."""
    BUILD.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"bench-{name}-", dir=BUILD))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
