"""``python -m tests.chaos.many 30:101 30:102``: many runs, each in a process forked from one that has loaded everything.

A run changes what time is for its whole process, so each has one of its own; what all of them need (modules, presets, a
key) is made before the forks.  A report a line goes to standard output, in the order asked for.  ``3:7:leave-a-disk,...``
lets one run come to its end once, and judges it once for each of these sabotages, in a fork of its own each time.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec

from tests.chaos.clockwork import with_fixed_hashes
from tests.chaos.forks import forked


class Wanted(msgspec.Struct, frozen=True):
    jobs: int
    seed: int
    sabotages: tuple[str, ...] = ()


def parse(text: str) -> Wanted:
    """``JOBS:SEED`` or ``JOBS:SEED:SABOTAGE,...``."""
    jobs, seed, *rest = text.split(":")
    return Wanted(int(jobs), int(seed), tuple(rest[0].split(",")) if rest else ())


def play(wanted: Sequence[Wanted], at_once: int) -> list[bytes]:
    """Each run's reports, one a line.  Raises RuntimeError where one didn't come to its end."""
    from tests.chaos.run import prepare, run_judged

    prepare()
    with tempfile.TemporaryDirectory(prefix="ironcd-many-") as folder:
        places = [Path(folder, str(number)) for number in range(len(wanted))]
        left = list(zip(wanted, places, strict=True))
        running: dict[int, Wanted] = {}
        while left or running:
            while left and len(running) < at_once:
                one, place = left.pop(0)
                running[forked(partial(run_judged, one.jobs, one.seed, one.sabotages), place)] = one
            pid, status = os.wait()
            ended = running.pop(pid)
            if status:
                raise RuntimeError(f"{ended}: {places[wanted.index(ended)].read_text()}")
        return [place.read_bytes() for place in places]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.many", description=__doc__)
    parser.add_argument("runs", nargs="+", type=parse, metavar="JOBS:SEED[:SABOTAGE,...]")
    parser.add_argument("--at-once", type=int, default=1)
    arguments = parser.parse_args()
    with_fixed_hashes("tests.chaos.many")
    for report in play(arguments.runs, arguments.at_once):
        sys.stdout.buffer.write(report + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
