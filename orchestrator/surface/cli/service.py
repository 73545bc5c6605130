"""``ironcd up`` and ``doctor``: the processes of a machine, and whether it is fit for them."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.surface.cli.options import GLOBAL, AsJson


def register(app: typer.Typer) -> None:
    app.command()(up)
    app.command()(doctor)


def up(
    only: Annotated[
        list[str] | None,
        typer.Option(help="Start only this: redis, control, worker, agent or gateway. May be repeated. Default: all."),
    ] = None,
) -> None:
    """Run IronCD on this machine: control API, worker, agent and gateway, and a Redis of its own where so configured.

    Processes that end are started again. SIGTERM or Ctrl-C stops all in order; virtual machines go on running, and are found again.

    Example: [bold]ironcd --config /etc/ironcd/ironcd.toml up[/bold]

    Example, on a host apart: [bold]ironcd up --only agent --only gateway[/bold]
    """
    from orchestrator.surface.up import run_up

    run_up(GLOBAL.settings(), only=tuple(only or ()))


def doctor(*, as_json: AsJson = False) -> None:
    """Check what IronCD stands on, and say what to do about each thing that is missing.

    Ends with status 1 where a check failed; a warning alone is status 0.

    Example: [bold]ironcd doctor --json[/bold]
    """
    from orchestrator.surface.cli.terminal import print_json, print_table
    from orchestrator.surface.doctor import examine

    findings = examine(GLOBAL.settings())
    if as_json:
        print_json({"ok": all(finding.state != "fail" for finding in findings), "checks": findings})
    else:
        print_table(("", "check", "found", "what to do"), ((f.state, f.check, f.found, f.remedy) for f in findings))
    raise typer.Exit(1 if any(finding.state == "fail" for finding in findings) else 0)
