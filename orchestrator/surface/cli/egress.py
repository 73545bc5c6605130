"""``ironcd egress``: what the gateway would make of something, without a machine to run."""

from __future__ import annotations

import difflib
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from orchestrator.surface.cli.options import GLOBAL, AsJson

if TYPE_CHECKING:
    from orchestrator.core.errors import UserError
    from orchestrator.core.policy import Policy
    from orchestrator.core.presets import Preset

app = typer.Typer(
    help="The egress wall: policies, presets, and what the gateway makes of a hello.", no_args_is_help=True
)

_HELLO_LIMIT = 1 << 20


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="Raw bytes as a client sent them (TLS records); - for standard input.")],
) -> None:
    """Print what the gateway makes of a captured ClientHello: the name that it asks for, or the reason to refuse it.

    Ends with status 0 where there is a name, 1 where there is a reason, 2 where FILE can't be read.

    Example: [bold]ironcd egress inspect hello.bin[/bold]
    """
    from orchestrator.egress.inspect import inspect_bytes
    from orchestrator.surface.cli.terminal import print_json_line

    name, reason = inspect_bytes(_read(file))
    print_json_line({"name": name, "reason": reason})
    raise typer.Exit(0 if name is not None else 1)


@app.command()
def presets(
    name: Annotated[
        str, typer.Argument(help="Show this preset's entries, each with its source. Default: list all.")
    ] = "",
    *,
    as_json: AsJson = False,
) -> None:
    """List the presets that a policy can name with version and source, or the entries of one, each with its own.

    Example: [bold]ironcd egress presets node[/bold]
    """
    from orchestrator.surface.cli.terminal import print_json, print_table
    from policies import load_presets

    known = load_presets()
    if not name:
        found = [known.by_name[preset] for preset in known.names]
        if as_json:
            print_json(found)
        else:
            rows = ((p.name, p.version, len(p.entries), p.description, _sources(p)) for p in found)
            print_table(("preset", "#version", "#entries", "what it opens", "source"), rows)
        return
    preset = known.by_name.get(known.aka.get(name, name))
    if preset is None:
        raise _no_preset(name, known.names)
    if as_json:
        print_json(preset)
        return
    unchecked = " (not checked against a document)"
    entries = (
        (e.host or e.cidr, ", ".join(map(str, e.ports)), e.comment, e.source + ("" if e.verified else unchecked))
        for e in preset.entries
    )
    print_table(("host", "ports", "for", "source"), entries, title=f"{preset.name}, version {preset.version}")


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="A policy file, as `.ironcd/policy.yml`; - for standard input.")],
    *,
    organisation: Annotated[
        bool, typer.Option("--organisation", help="It is the organisation's policy, which has more keys.")
    ] = False,
    under: Annotated[
        Path | None,
        typer.Option(help="The organisation's policy that it must keep to. Default: policy.organisation_file."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a policy file, and show what it would come to: every rule with its id and where it is written.

    Ends with status 2 where it is refused, with line, column and remedy of each mistake.

    Example: [bold]ironcd egress check .ironcd/policy.yml[/bold]
    """
    from orchestrator.core.effective import effective_policy
    from orchestrator.core.errors import PolicyErrors
    from orchestrator.core.policy_file import read_policy
    from orchestrator.surface.cli.terminal import print_json
    from policies import load_presets

    known = load_presets()
    above = under or GLOBAL.settings().policy.organisation_file
    try:
        org = None
        if above is not None and not organisation:
            org = read_policy(_read(above), source=str(above), presets=known, scope="org")
        own = read_policy(_read(file), source=str(file), presets=known, scope="org" if organisation else "repo")
        if organisation:
            effective = effective_policy(msgspec.structs.replace(own, repository_file="optional"), None, known.builtin)
        else:
            effective = effective_policy(org, own, known.builtin)
    except PolicyErrors as error:
        if not as_json:
            raise
        print_json({"ok": False, "errors": error.as_list(), "warnings": []})
        raise typer.Exit(error.exit_status) from None
    if as_json:
        print_json(
            {
                "ok": True,
                "errors": [],
                "warnings": own.warnings,
                "rules": len(effective.rules),
                "tests": len(own.tests),
                "digest": effective.digest,
                "policy": effective,
            }
        )
        return
    _show_policy(effective, own.warnings, tests=len(own.tests))


def _sources(preset: Preset) -> str:
    """Where most of its entries come from, and how many other sources there are."""
    counted = Counter(entry.source for entry in preset.entries).most_common()
    if not counted:
        return "the image" if preset.from_image else ""
    return counted[0][0] + (f" and {len(counted) - 1} more" if len(counted) > 1 else "")


def _show_policy(policy: Policy, warnings: Sequence[str], *, tests: int) -> None:
    from orchestrator.surface.cli.terminal import clean, print_table

    for warning in warnings:
        typer.echo(f"warning: {clean(warning)}", err=True)
    rows = (
        (rule.action, rule.host or rule.cidr, ", ".join(map(str, rule.ports)), rule.id, rule.origin)
        for rule in policy.rules
    )
    print_table(("action", "to", "ports", "rule", "written in"), rows)
    held = f"{tests} test{'' if tests == 1 else 's'} held" if tests else "no tests"
    typer.echo(f"\nmode {policy.mode}, profile {policy.profile}, {len(policy.rules)} rules, {held}, {policy.digest}")


def _no_preset(name: str, known: Sequence[str]) -> UserError:
    from orchestrator.core.errors import UserError

    near = difflib.get_close_matches(name, known, n=1)
    return UserError(
        f"no preset is called {name!r}",
        code="preset-unknown",
        remedy=f"Did you mean {near[0]!r}?" if near else "`ironcd egress presets` lists them.",
    )


def _read(file: Path) -> bytes:
    from orchestrator.core.errors import UserError

    try:
        if str(file) == "-":
            return sys.stdin.buffer.read(_HELLO_LIMIT)
        with file.open("rb") as stream:
            return stream.read(_HELLO_LIMIT)
    except OSError as error:
        raise UserError(
            f"cannot read {file}: {error.strerror}", code="file-unreadable", remedy="Name a file that can be read."
        ) from error
