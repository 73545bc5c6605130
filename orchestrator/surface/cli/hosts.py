"""``ironcd hosts``: the machines that run VMs, their room and their problems."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

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
    columns = ("host", "state", "#vcpus", "#memory MiB", "#disk GiB", "accelerator", "#runners", "#warm", "problems")
    print_table(columns, (_row(host) for host in hosts))


@app.command("cordon")
def cordon(
    name: Annotated[str, typer.Argument(help="The host.")],
    why: Annotated[str, typer.Option(help="For whoever wonders.")] = "",
) -> None:
    """Give a host no new runners.  Those it has go on to their end.

    Example: [bold]ironcd hosts cordon metal-1 --why "new kernel"[/bold]
    """
    _order(name, "cordon", {"why": why})
    typer.echo(f"{name} is cordoned: it gets no new runner")


@app.command("uncordon")
def uncordon(name: Annotated[str, typer.Argument(help="The host.")]) -> None:
    """Give a cordoned host new runners again.

    Example: [bold]ironcd hosts uncordon metal-1[/bold]
    """
    _order(name, "uncordon", {})
    typer.echo(f"{name} gets new runners again")


def _order(name: str, order: str, params: dict[str, str | int | float | None]) -> None:
    from orchestrator.surface.api_client import ApiClient

    ApiClient.of(GLOBAL.settings()).post(f"hosts/{quote(name, safe='')}/{order}", params)


def _row(host: dict[str, object]) -> tuple[object, ...]:
    capacity = host.get("capacity")
    room = capacity if isinstance(capacity, dict) else {}
    problems = host.get("problems")
    runners = host.get("runners")
    return (
        host.get("host", host.get("name", "")),
        _state(host),
        room.get("vcpus", ""),
        room.get("memory_mib", ""),
        room.get("disk_gib", ""),
        host.get("accelerator", ""),
        len(runners) if isinstance(runners, list) else "",
        _warm(host),
        "; ".join([*_held(host), *map(_said, problems if isinstance(problems, list) else ())]),
    )


def _said(problem: dict[str, object]) -> str:
    return f"{problem['message']} (over)" if problem.get("over") else str(problem["message"])


def _state(host: dict[str, object]) -> str:
    """With the countdown of a host that is being drained."""
    from orchestrator.surface.cli.terminal import seconds

    drain, state = host.get("drain"), str(host.get("state", ""))
    if not isinstance(drain, dict) or drain.get("empty"):
        return state
    why = f" ({drain['why']})" if drain.get("why") else ""
    return f"{state}: {seconds(float(drain['left_s']))} left{why}"


def _warm(host: dict[str, object]) -> str:
    """How many machines wait of how many that should; empty where none should."""
    waiting, wanted = host.get("warm"), host.get("warm_wanted")
    there = len(waiting) if isinstance(waiting, list) else 0
    total = sum(wanted.values()) if isinstance(wanted, dict) else 0
    return f"{there}/{total}" if there or total else ""


def _held(host: dict[str, object]) -> list[str]:
    """Why its runners or images are in quarantine."""
    quarantine, unfit = host.get("quarantine"), host.get("unfit")
    found = [str(quarantine["reason"])] if isinstance(quarantine, dict) else []
    images = unfit if isinstance(unfit, dict) else {}
    found += [f"image {name}: {why}" for name, why in images.items()]
    ages = host.get("runner_ages")
    known = ages.items() if isinstance(ages, dict) else ()
    return found + [f"image {name}: {age['text']}" for name, age in known if age["text"] and name not in images]
