"""``python -m tests.chaos.tier crowd --jobs 60 --seed 2 --output FILE``: one tier in this process; `tests.chaos` runs it."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import msgspec
import structlog


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.tier", description=__doc__)
    parser.add_argument("tier", choices=("crowd", "real", "vms"))
    parser.add_argument("--jobs", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--journal", type=Path)
    parser.add_argument("--sabotage", default="")
    parser.add_argument("--then", default="", help="not of the crowd: a sabotage behind the report, judged as well")
    asked = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    asked.output.write_bytes(msgspec.json.encode(_report(asked)))
    return 0


def _report(asked: argparse.Namespace) -> msgspec.Struct:
    if asked.tier == "crowd":
        from tests.chaos import run as crowd

        return crowd.run(asked.jobs, asked.seed, journal=asked.journal, sabotage=asked.sabotage)
    more = {"journal": asked.journal, "sabotage": asked.sabotage, "then": asked.then}
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    if asked.tier == "real":
        from tests.chaos import real_run as real

        return real.run(asked.jobs, asked.seed, told=_told("real"), **more)
    from tests.chaos import vm_run as vms

    return vms.run(asked.jobs, asked.seed, told=_told("vms"), **more)


def _told(tier: str) -> Callable[[str], None]:
    began = time.monotonic()

    def tell(what: str) -> None:
        sys.stderr.write(f"{tier} {time.monotonic() - began:5.0f} s: {what}\n")
        sys.stderr.flush()

    return tell


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """Once: a second signal must not stop what takes everything away."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
