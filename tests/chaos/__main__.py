"""``python -m tests.chaos --jobs 200 --seed 7``: one run, its report as JSON; ends with status 1 where something was wrong."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, help="where the report goes, beside standard output")
    parser.add_argument("--journal", type=Path, help="where every line of what happened goes")
    parser.add_argument(
        "--sabotage", default="", help="do what must be found out: lose-a-job, leave-a-disk, touch-a-stranger"
    )
    parser.add_argument("--real", action="store_true", help="the shipped processes and real time, as root")
    arguments = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The order of a set is part of what happens: it must be the same in each run.
        os.execve(
            sys.executable, [sys.executable, "-m", "tests.chaos", *sys.argv[1:]], {**os.environ, "PYTHONHASHSEED": "0"}
        )
    began = time.process_time()
    import msgspec

    if arguments.real:
        import structlog

        structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
        from tests.chaos.real_run import run
    else:
        from tests.chaos.run import run

    report = run(arguments.jobs, arguments.seed, journal=arguments.journal, sabotage=arguments.sabotage)
    text = msgspec.json.format(msgspec.json.encode(report), indent=2)
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_bytes(text + b"\n")
    sys.stdout.write(text.decode() + "\n")
    sys.stderr.write(
        f"seed {arguments.seed}: {'ok' if report.ok else 'FAILED'}, {time.process_time() - began:.1f} s of a processor\n"
    )
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
