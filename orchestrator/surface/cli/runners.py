"""``ironcd runners``: the one-job machines, their phase and where they run."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from orchestrator.surface.cli.options import GLOBAL, AsJson

app = typer.Typer(help="Runners: one-job machines with their registration.", no_args_is_help=True)


@app.command("list")
def list_runners(
    *,
    gone: Annotated[bool, typer.Option("--gone", help="Those that are gone, too.")] = False,
    host: Annotated[str | None, typer.Option(help="Only those on this host.")] = None,
    phase: Annotated[str | None, typer.Option(help="Only those in this phase: WANTED, BOOTING, READY ...")] = None,
    as_json: AsJson = False,
) -> None:
    """List runners with their phase, how long they have been in it, and why they end.

    Example: [bold]ironcd runners list --json[/bold]
    """
    from orchestrator.surface.api_client import ApiClient
    from orchestrator.surface.cli.terminal import print_json, print_table, seconds

    asked = {"gone": "true" if gone else "false", "host": host, "phase": phase.upper() if phase else None}
    runners = ApiClient.of(GLOBAL.settings()).get("runners", asked)["runners"]
    if as_json:
        print_json(runners)
        return
    now = time.time()
    columns = ("runner", "phase", "#for", "class", "host", "repository", "job", "why")
    rows = (
        (r["id"], r["phase"], seconds(now - r["since"]), r["machine"]["name"], r.get("host", ""), r["repo"])
        + (r.get("job_id") or "", r.get("reason") or r.get("waiting", ""))
        for r in runners
    )
    print_table(columns, rows)
