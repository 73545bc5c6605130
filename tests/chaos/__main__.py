"""``python -m tests.chaos --jobs 200 --seed 7``: one run over all tiers, and one report as JSON (`tests.chaos.tiers`).

Status 0: all holds.  1: something was wrong; the report says what.  2: it can't be run like this, or not here.
130: interrupted, and everything taken away.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

from tests.chaos import tiers


def main() -> int:
    asked = _parser().parse_args()
    try:
        wanted = tiers.shares(asked.jobs, {tier: getattr(asked, tier) for tier in tiers.TIERS})
    except tiers.BadShares as error:
        return _refuse(str(error))
    if asked.plan:
        sys.stdout.buffer.write(tiers.as_json({"seed": asked.seed, "tiers": tiers.plans(wanted, asked.seed)}))
        return 0
    if reason := tiers.why_not(wanted):
        return _refuse(f"{reason}.  The crowd alone needs nothing: --crowd {sum(wanted.values())}")
    if asked.output is not None:
        asked.output.parent.mkdir(parents=True, exist_ok=True)
        asked.output.unlink(missing_ok=True)
    if asked.journal is not None:
        asked.journal.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = time.monotonic()
    reports = tiers.run_all(wanted, asked.seed, _say, journal=asked.journal, sabotage=asked.sabotage)
    report = tiers.together(reports, asked.seed)
    text = tiers.as_json(report)
    if asked.output is not None:
        asked.output.write_bytes(text)
    sys.stdout.buffer.write(text)
    for tier, found in reports.items():
        for what in [*found.get("wrong", ()), *found.get("foreign_gone", ()), *found.get("unseen", ())][:10]:
            _say(f"{tier}: WRONG {what}")
    _say(f"seed {asked.seed}: {'ok' if report['ok'] else 'FAILED'}, {time.monotonic() - began:.0f} s")
    return 0 if report["ok"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, help=f"of all tiers together ({tiers.JOBS} where nothing else is said)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--crowd", type=int, help="jobs in virtual time, in one process")
    parser.add_argument("--real", type=int, help="jobs of the product's own processes, over libvirt's in-memory driver")
    parser.add_argument("--vms", type=int, help="jobs on real virtual machines")
    parser.add_argument("--plan", action="store_true", help="only say what would be done, and when")
    parser.add_argument("--output", type=Path, help="where the report goes, beside standard output")
    parser.add_argument("--journal", type=Path, help="a folder for every line of what happened, by tier")
    parser.add_argument(
        "--sabotage",
        default="",
        help="do what must be found out, in every tier: lose-a-job, leave-a-disk, touch-a-stranger; more of the crowd: sabotage.py",
    )
    return parser


def _say(what: str) -> None:
    sys.stderr.write(what + "\n")
    sys.stderr.flush()


def _refuse(why: str) -> int:
    _say(f"error: {why}")
    return 2


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
