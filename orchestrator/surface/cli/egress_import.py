"""``ironcd egress import``: policies of other products, written as ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.surface.cli.options import AsJson

importing = typer.Typer(help="Policies of other products, written as ours.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(importing, name="import")


@importing.callback()
def group() -> None:
    """Policies of other products, written as ours."""


@importing.command("harden-runner")
def harden_runner(
    workflows: Annotated[
        list[Path], typer.Argument(metavar="WORKFLOW...", help="Workflow files that use it; - for standard input.")
    ],
    *,
    as_json: AsJson = False,
) -> None:
    """Print a policy with the endpoints that harden-runner's steps allow (allowed-endpoints).

    Ports other than 443, dangerous hosts and what can't be read stand in it as comments, each with what to do. Ends with
    status 1 where no step of harden-runner is found.

    Example: [bold]ironcd egress import harden-runner .github/workflows/ci.yml > .ironcd/policy.yml[/bold]
    """
    from orchestrator.core.errors import UserError
    from orchestrator.core.harden_runner import as_policy, read_workflow
    from orchestrator.core.policy_file import read_policy
    from orchestrator.surface.cli.terminal import clean, print_json
    from policies import load_presets

    presets = load_presets()
    steps = tuple(step for path in workflows for step in read_workflow(_text(path), str(path)))
    if not steps:
        typer.echo("no step uses step-security/harden-runner", err=True)
        raise typer.Exit(1)
    made = as_policy(steps, presets)
    policy = made.policy()
    try:
        read_policy(policy, source="the policy", presets=presets)
    except UserError as error:
        raise AssertionError(f"an import must be a policy that is accepted: {error.message}") from error
    if as_json:
        refused = [{"endpoint": endpoint, "why": why} for endpoint, why in made.refused]
        print_json(
            {
                "policy": policy,
                "mode": made.mode,
                "steps": made.steps,
                "entries": made.entries,
                "builtin": made.builtin,
                "refused": refused,
                "notes": made.notes,
            }
        )
        return
    typer.echo("\n".join(clean(line) for line in policy.splitlines()))


def _text(path: Path) -> str:
    import sys

    from orchestrator.core.errors import UserError
    from orchestrator.core.harden_runner import SIZE_LIMIT

    try:
        if str(path) == "-":
            return sys.stdin.buffer.read(SIZE_LIMIT + 1).decode("utf-8")
        with path.open("rb") as file:
            return file.read(SIZE_LIMIT + 1).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it isn't UTF-8"
        raise UserError(
            f"cannot read {path}: {why}", code="file-unreadable", remedy="Name a file that can be read."
        ) from error
