"""``ironcd up``, ``doctor`` and ``simulate``: the processes of a machine, and whether it is fit for them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.surface.cli.options import GLOBAL, AsJson


def register(app: typer.Typer) -> None:
    app.command()(up)
    app.command()(doctor)
    app.command()(simulate)


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


def simulate(
    folder: Annotated[Path, typer.Argument(help="Where its keys and what it says of itself go; made where missing.")],
    *,
    port: Annotated[int, typer.Option(help="Of its API on loopback; 0 for any.")] = 0,
    webhook_url: Annotated[str, typer.Option(help="Where it delivers to.")] = "http://127.0.0.1:8470/webhook",
    repository: Annotated[
        list[str] | None, typer.Option(help="Of its organisation `acme`. May be repeated. Default: app.")
    ] = None,
) -> None:
    """Run a GitHub on loopback to try IronCD with: App, runners, jobs and signed deliveries.

    FOLDER/ready.json says where it is once it answers; app.pem and webhook-secret there are what github.private_key_file
    and github.webhook_secret_files are to name.

    Example: [bold]ironcd simulate /tmp/github --port 8480[/bold]
    """
    import json
    import os
    import sys

    from orchestrator.system.files import write_atomic

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    config = {
        "ready_file": str(folder / "ready.json"),
        "private_key_file": str(folder / "app.pem"),
        "webhook_secret_file": str(folder / "webhook-secret"),
        "port": port,
        "webhook_url": webhook_url,
        "repositories": repository or ["app"],
    }
    write_atomic(folder / "simulator.json", json.dumps(config, indent=2).encode())
    arguments = [sys.executable, "-m", "orchestrator.simulator", "--config", str(folder / "simulator.json")]
    os.execv(sys.executable, arguments)  # noqa: S606 - an argument list, and no shell is wanted
