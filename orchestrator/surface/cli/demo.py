"""``ironcd demo``: one job end to end on a real virtual machine, against the simulator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command()(demo)


def demo(
    *,
    jobs: Annotated[
        int, typer.Option(min=1, max=50, help="How many jobs; as many at once as the machine has room for.")
    ] = 1,
    output: Annotated[Path, typer.Option(help="Where the record goes.")] = Path("build/demo.json"),
    cold: Annotated[bool, typer.Option("--cold", help="Boot each machine, instead of cloning a booted one.")] = False,
    keep_logs: Annotated[bool, typer.Option("--keep-logs", help="Keep the logs of a run that went well, too.")] = False,
) -> None:
    """Run a whole job: a simulated GitHub, a real virtual machine, the egress wall, and proof of destruction.

    Needs root. Makes network namespaces and a virtual machine of its own, and removes them, however it ends. Ends with
    status 0 where all that was to be shown is so, else 1.

    Example: [bold]ironcd demo --jobs 5[/bold]
    """
    from orchestrator.surface.demo.run import run_demo

    raise typer.Exit(run_demo(jobs=jobs, output=output, keep_logs=keep_logs, cold=cold))
