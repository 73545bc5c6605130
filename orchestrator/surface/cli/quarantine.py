"""``ironcd quarantine``: hosts and images that get no new runner because starts on them failed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from orchestrator.surface.cli.options import GLOBAL, AsJson

app = typer.Typer(help="Quarantine: hosts and images on which starts failed.", no_args_is_help=True)


@app.command("list")
def list_quarantine(*, as_json: AsJson = False) -> None:
    """List the hosts and images that get no new runner because starts on them failed, and why.

    Example: [bold]ironcd quarantine list[/bold]
    """
    from orchestrator.surface.api_client import ApiClient
    from orchestrator.surface.cli.terminal import print_json, print_table

    held = ApiClient.of(GLOBAL.settings()).get("quarantine")["quarantine"]
    if as_json:
        print_json(held)
        return
    rows = ((one["subject"], _time(one["since"]), _time(one["until"]) or "it is lifted", one["reason"]) for one in held)
    print_table(("subject", "since", "until", "reason"), rows)


@app.command("lift")
def lift(subject: Annotated[str, typer.Argument(help="host:NAME or image:DIGEST, as `list` names it.")]) -> None:
    """Give a host or image new runners again, before its quarantine ends by itself.

    Example: [bold]ironcd quarantine lift host:metal-1[/bold]
    """
    from orchestrator.surface.api_client import ApiClient

    ApiClient.of(GLOBAL.settings()).post("quarantine/lift", {"subject": subject})
    typer.echo(f"{subject} gets new runners again")


def _time(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC" if at else ""
