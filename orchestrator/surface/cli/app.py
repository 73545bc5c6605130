"""The tree of commands."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.surface.cli import (
    audit,
    audit_record,
    demo,
    egress,
    egress_explain,
    egress_import,
    egress_learn,
    egress_rules,
    hosts,
    hosts_drain,
    image,
    jobs,
    quarantine,
    runners,
    service,
    simulate,
    templates,
)
from orchestrator.surface.cli.options import GLOBAL

app = typer.Typer(
    name="ironcd",
    help="Ephemeral KVM virtual machines for GitHub Actions jobs, each behind an egress wall of its own.",
    epilog="Exit status: 0 it worked; 1 the machine or a service stands in the way, or a check failed; 2 what was asked for "
    "can't be done as asked. Errors say what to do about them.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    config: Annotated[
        Path | None,
        typer.Option(help="Configuration file. Default: $IRONCD_CONFIG, or /etc/ironcd/ironcd.toml where it exists."),
    ] = None,
) -> None:
    GLOBAL.config = config


@app.command()
def version(
    *,
    short: Annotated[bool, typer.Option("--short", help="The number alone.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Print the version of IronCD, and of what it stands on.

    Example: [bold]ironcd version --json[/bold]
    """
    number = metadata.version("ironcd")
    if short:
        typer.echo(number)
        return
    parts = {"ironcd": number, "python": sys.version.split()[0]}
    parts |= {name: metadata.version(name) for name in ("githubkit", "rq", "redis", "libvirt-python")}
    if as_json:
        from orchestrator.surface.cli.terminal import print_json

        print_json(parts)
    else:
        typer.echo("\n".join(f"{name} {value}" for name, value in parts.items()))


service.register(app)
demo.register(app)
app.add_typer(jobs.app, name="jobs")
app.add_typer(runners.app, name="runners")
hosts_drain.register(hosts.app)
app.add_typer(hosts.app, name="hosts")
app.add_typer(quarantine.app, name="quarantine")
audit_record.register(audit.app)
app.add_typer(audit.app, name="audit")
egress_rules.register(egress.app)
egress_explain.register(egress.app)
egress_learn.register(egress.app)
egress_import.register(egress.app)
app.add_typer(egress.app, name="egress")
app.add_typer(image.app, name="image")
app.add_typer(templates.app, name="templates")
app.add_typer(simulate.app, name="simulate")
