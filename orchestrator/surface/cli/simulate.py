"""``ironcd simulate``: a GitHub on loopback to try IronCD with, and what goes wrong with it on demand.

``ironcd simulate outage --for 5m`` is ``ironcd simulate fault outage --for 5m``: the name of a fault is a command.  And
``ironcd simulate ./folder`` is ``ironcd simulate github ./folder``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from orchestrator.surface.cli.options import GLOBAL, AsJson

At = Annotated[str, typer.Option(help="Where the simulator's API is. Default: github.api_url of the configuration.")]


class _Words(TyperGroup):
    """Takes a fault's name, or a folder, for a command."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        word = args[0] if args else ""
        if word and self.get_command(ctx, word) is None and not word.startswith("-"):
            args = ["github" if "/" in word or word.startswith(".") else "fault", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Words,
    help="A GitHub on loopback to try IronCD with, and faults to rehearse incidents with: [bold]ironcd simulate outage[/bold].",
    no_args_is_help=True,
)
faults = typer.Typer(help="The simulator's faults: what there is, what is in force.", no_args_is_help=True)
app.add_typer(faults, name="faults")


@app.command("github")
def run_github(
    folder: Annotated[Path, typer.Argument(help="Where its keys and what it says of itself go; made where missing.")],
    *,
    port: Annotated[int, typer.Option(help="Of its API on loopback; 0 for any.")] = 0,
    webhook_url: Annotated[str, typer.Option(help="Where it delivers to.")] = "http://127.0.0.1:8470/webhook",
    repository: Annotated[
        list[str] | None, typer.Option(help="Of its organisation `acme`. May be repeated. Default: app.")
    ] = None,
) -> None:
    """Run a GitHub on loopback: App, runners, jobs and signed deliveries.

    FOLDER/ready.json says where it is once it answers; app.pem and webhook-secret there are what github.private_key_file
    and github.webhook_secret_files are to name.

    Example: [bold]ironcd simulate github /tmp/github --port 8480[/bold]
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


@app.command("fault")
def inject(
    name: Annotated[str, typer.Argument(help="Of the fault: see `ironcd simulate faults list`.")],
    *,
    after: Annotated[str, typer.Option("--in", help="When it begins from now: 30s, 2m.")] = "0s",
    lasts: Annotated[str, typer.Option("--for", help="How long it lasts: 90s, 5m, 1h.")] = "",
    count: Annotated[int, typer.Option(help="How often it happens at most; 0 for no limit.", min=0)] = 0,
    chance: Annotated[float, typer.Option(help="Of each time that it could happen.", min=0.0, max=1.0)] = 1.0,
    by: Annotated[str, typer.Option(help="How late, where it is about lateness: 3m.")] = "0s",
    repository: Annotated[str, typer.Option(help="OWNER/NAME. Default: all.")] = "",
    at: At = "",
) -> None:
    """Have the running simulator misbehave. The word `fault` may be left out.

    Without --for and --count it happens as often or lasts as long as `ironcd simulate faults list` says.

    Example: [bold]ironcd simulate outage --for 5m[/bold]

    Example: [bold]ironcd simulate delivery-late --by 3m --count 4 --repository acme/app[/bold]
    """
    order = {"in_s": _seconds(after, "--in"), "chance": chance, "by_s": _seconds(by, "--by"), "repository": repository}
    if lasts:
        order["for_s"] = _seconds(lasts, "--for")
    if count:
        order["count"] = count
    _known(name)
    _ask("POST", f"/_sim/faults/{name}", at, order)
    typer.echo(f"{name} is declared; `ironcd simulate faults show` says what is in force")


@faults.command("list")
def list_faults(*, as_json: AsJson = False) -> None:
    """List the faults that there are, with the failure that each rehearses (docs/operations/rehearse.md).

    Example: [bold]ironcd simulate faults list[/bold]
    """
    from orchestrator.simulator.github.catalogue import CATALOGUE
    from orchestrator.surface.cli.terminal import print_json, print_table

    rows = [(name, known.row, _extent(known.count, known.for_s), known.what) for name, known in CATALOGUE.items()]
    if as_json:
        print_json([dict(zip(("fault", "row", "extent", "what"), row, strict=True)) for row in rows])
    else:
        print_table(("fault", "#row", "unless said", "what"), rows)


@faults.command("show")
def show(*, as_json: AsJson = False, at: At = "") -> None:
    """Show what is in force, and how often each fault has happened.

    Example: [bold]ironcd simulate faults show[/bold]
    """
    from orchestrator.surface.cli.terminal import print_json, print_table

    found = _ask("GET", "/_sim/faults", at)
    if as_json:
        print_json(found)
        return
    kinds = ("responses", "deliveries", "quirks", "acts")
    names = {part.get("name") or kind for kind in kinds for part in found[kind]} | found["used"].keys()
    on = {part.get("name") or kind for kind in kinds for part in found[kind]}
    rows = [(name, "in force" if name in on else "over", found["used"].get(name, 0)) for name in sorted(names)]
    print_table(("fault", "state", "#happened"), rows)


@faults.command("load")
def load(file: Annotated[Path, typer.Argument(help="Faults in YAML.")], *, at: At = "") -> None:
    """Declare all faults of a file; their times count from now.

    Example: [bold]ironcd simulate faults load friday.yml[/bold]
    """
    import msgspec

    from orchestrator.core.errors import UserError
    from orchestrator.simulator.github.fault_file import read_faults

    try:
        text = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}", code="fault-file", remedy="Name a file of faults.") from error
    orders = read_faults(text, source=str(file))
    for order in orders:
        asked = {key: value for key, value in msgspec.to_builtins(order).items() if key != "fault"}
        _ask("POST", f"/_sim/faults/{order.fault}", at, asked)
    typer.echo(f"{len(orders)} faults are declared")


@faults.command("end")
def end(
    name: Annotated[str, typer.Argument(help="Of one fault. Default: all.")] = "",
    at: At = "",
) -> None:
    """End faults, and undo what they did where that can be undone.

    Example: [bold]ironcd simulate faults end outage[/bold]
    """
    if name:
        _known(name)
    _ask("DELETE", f"/_sim/faults?name={name}" if name else "/_sim/faults", at)
    typer.echo("ended")


def _known(name: str) -> None:
    from orchestrator.simulator.github.catalogue import CATALOGUE, unknown

    if name not in CATALOGUE:
        raise unknown(name)


def _extent(count: int | None, lasts: float | None) -> str:
    return f"for {lasts:.0f} s" if lasts is not None else f"{count} times" if count != 1 else "once"


def _seconds(text: str, option: str) -> float:
    from orchestrator.core.errors import UserError
    from orchestrator.simulator.github.fault_file import seconds_of

    found = seconds_of(text)
    if found is None:
        raise UserError(
            f"{option} {text!r} isn't a time", code="bad-option", remedy="Write 90s, 5m or 1h, a day at most."
        )
    return found


def _ask(method: str, path: str, at: str, content: dict[str, Any] | None = None) -> Any:
    """What the simulator answers.  Raises UserError where it isn't there, or where what is at that address isn't one."""
    import httpx

    from orchestrator.core.errors import OperationalError, UserError

    base = (at or str(GLOBAL.settings().github.api_url)).rstrip("/")
    if httpx.URL(base).host not in ("127.0.0.1", "localhost"):
        raise UserError(
            f"{base} is not a simulator on this machine",
            code="no-simulator",
            remedy="Start one with `ironcd simulate github FOLDER`, and name its address with --at.",
        )
    try:
        answer = httpx.request(method, base + path, json=content, timeout=10, trust_env=False)
    except httpx.HTTPError as error:
        raise OperationalError(
            f"no simulator answers at {base}: {type(error).__name__}",
            code="no-simulator",
            remedy="Start one with `ironcd simulate github FOLDER`, and name its address with --at.",
        ) from error
    if not answer.is_success:
        raise UserError(
            f"the simulator refuses: {answer.text[:300]}", code="fault-unknown", remedy="Correct the order."
        )
    return answer.json()
