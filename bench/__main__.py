"""``python -m bench [BENCH...]``: measure, show the table, write ``build/bench.json``.

Exit status: 0 where every bar holds, 1 where one doesn't or a figure couldn't be measured, 2 for a bench that isn't there.
"""

from __future__ import annotations

import logging
import sys

import structlog
from rich.console import Console

from bench import registry, report
from bench.rows import Row, collect

WIDTH = 140
"""Of the table where it isn't written to a terminal."""


def main(names: list[str]) -> int:
    # Processes are killed here on purpose; their supervisor's warnings about it are no news.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    unknown = [name for name in names if name not in registry.NAMES]
    if unknown:
        console.print(f"no bench is called {unknown[0]!r}; there are: {', '.join(registry.NAMES)}", highlight=False)
        return 2
    rows: list[Row] = []
    for name in names or registry.NAMES:
        console.rule(f"[bold]{name}")
        rows += collect(registry.bench(name), console)
        report.write(rows)
    report.show(rows, console)
    console.print(f"written to {report.FILE}", highlight=False, soft_wrap=True)
    return 0 if all(one.passed for one in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
