"""``ironcd templates``: the booted machines that jobs' machines are cloned from."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from orchestrator.surface.cli.options import GLOBAL, AsJson

app = typer.Typer(help="Templates: the booted machines that jobs' machines are cloned from.", no_args_is_help=True)


@app.command("list")
def list_templates(*, as_json: AsJson = False) -> None:
    """List the templates of each host: which classes start from them, and why one isn't ready.

    Example: [bold]ironcd templates list[/bold]
    """
    from orchestrator.surface.api_client import ApiClient
    from orchestrator.surface.cli.terminal import print_json, print_table

    found = templates_of(ApiClient.of(GLOBAL.settings()).get("hosts")["hosts"])
    if as_json:
        print_json(found)
        return
    columns = ("host", "template", "classes", "image", "state", "#disk", "#clones", "reason")
    print_table(columns, (_row(template) for template in found))


@app.command("rebuild")
def rebuild(host: Annotated[str, typer.Argument(help="The host.")]) -> None:
    """Have a host make its templates anew, one after the other, where it has room.  Its machines run on; jobs boot cold meanwhile.

    Example: [bold]ironcd templates rebuild metal-1[/bold]
    """
    from orchestrator.surface.api_client import ApiClient

    ApiClient.of(GLOBAL.settings()).post(f"hosts/{quote(host, safe='')}/rebuild-templates", {})
    typer.echo(f"{host} makes its templates anew")


def templates_of(hosts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every template of every host, with the host's name."""
    return [{"host": host.get("host", ""), **template} for host in hosts for template in host.get("templates", [])]


def _row(template: dict[str, Any]) -> tuple[object, ...]:
    from orchestrator.surface.cli.terminal import size

    return (
        template["host"],
        template["key"][:12],
        ", ".join(template["classes"]) or "(none any more)",
        template["image"][:12],
        template["state"],
        size(int(template.get("disk_bytes", 0))),
        template.get("clones", 0),
        template.get("reason", ""),
    )
