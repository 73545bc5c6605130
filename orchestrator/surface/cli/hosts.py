"""``ironcd hosts``: the machines that run VMs, their room and their problems."""

from __future__ import annotations

import typer

from orchestrator.surface.cli.options import GLOBAL, AsJson

app = typer.Typer(help="Hosts: the machines that run VMs.", no_args_is_help=True)


@app.command("list")
def list_hosts(*, as_json: AsJson = False) -> None:
    """List hosts with their room, accelerator, and what stands in their way.

    Example: [bold]ironcd hosts list[/bold]
    """
    from orchestrator.surface.api_client import ApiClient
    from orchestrator.surface.cli.terminal import print_json, print_table

    hosts = ApiClient.of(GLOBAL.settings()).get("hosts")["hosts"]
    if as_json:
        print_json(hosts)
        return
    columns = ("host", "state", "#vcpus", "#memory MiB", "#disk GiB", "accelerator", "#runners", "problems")
    print_table(columns, (_row(host) for host in hosts))


def _row(host: dict[str, object]) -> tuple[object, ...]:
    capacity = host.get("capacity")
    room = capacity if isinstance(capacity, dict) else {}
    problems = host.get("problems")
    runners = host.get("runners")
    return (
        host.get("host", host.get("name", "")),
        host.get("state", ""),
        room.get("vcpus", ""),
        room.get("memory_mib", ""),
        room.get("disk_gib", ""),
        host.get("accelerator", ""),
        len(runners) if isinstance(runners, list) else "",
        "; ".join(str(problem["message"]) for problem in problems) if isinstance(problems, list) else "",
    )
