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


@app.command("remove")
def remove(
    name: Annotated[
        str, typer.Argument(help="A class's name, or the first digits of a template's digest.", metavar="TEMPLATE")
    ],
    host: Annotated[str, typer.Argument(help="Of this host only.")] = "",
    *,
    as_json: AsJson = False,
) -> None:
    """Have hosts remove a template.  Machines that run from it run on.

    A class with [bold]start = "clone"[/bold] has it made anew where there is room; its jobs boot cold meanwhile.  To be rid of it for
    good, set [bold]start = "cold"[/bold] or take the class away first.  One of a size that a job asked for by label comes back with the
    next such job.

    Example: [bold]ironcd templates remove ironcd[/bold]

    Example: [bold]ironcd templates remove 3f1c09aa metal-1[/bold]
    """
    from orchestrator.surface.api_client import ApiClient
    from orchestrator.surface.cli.terminal import print_json

    client = ApiClient.of(GLOBAL.settings())
    found = named(templates_of(client.get("hosts")["hosts"]), name, host)
    for template in found:
        client.post(f"hosts/{quote(template['host'], safe='')}/remove-template", {"key": template["key"]})
    if as_json:
        print_json([{part: template[part] for part in ("host", "key", "classes")} for template in found])
        return
    for template in found:
        classes = ", ".join(template["classes"])
        then = f", and makes it anew where there is room: {classes} starts from it" if classes else ""
        typer.echo(f"{template['host']} removes {template['key'][:12]}{then}")


def named(templates: list[dict[str, Any]], name: str, host: str) -> list[dict[str, Any]]:
    """Those of a class of that name, else the one, on each host, whose digest begins with it.  ``host`` empty: of all.

    Raises UserError (``template-unknown``) where there is none, or where the digest is more than one's.
    """
    from orchestrator.core.errors import UserError

    there = [template for template in templates if host in ("", template["host"])]
    found = [template for template in there if name in template["classes"]]
    found = found or [template for template in there if name and template["key"].startswith(name.lower())]
    if not found:
        raise UserError(
            f"{f'{host} has no' if host else 'no host has a'} template {name!r}",
            code="template-unknown",
            remedy="`ironcd templates list` shows them by class and by the first digits of their digests.",
        )
    if len({template["key"] for template in found if name not in template["classes"]}) > 1:
        raise UserError(
            f"{name!r} is the beginning of more than one template's digest",
            code="template-unknown",
            remedy="Give more of its digits: `ironcd templates list --json` shows them all.",
        )
    return found


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
