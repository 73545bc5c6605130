"""``ironcd egress mode``, ``list``, ``add`` and ``remove``: the organisation's policy file, changed in place."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.surface.cli.options import GLOBAL, AsJson

if TYPE_CHECKING:
    from orchestrator.core.policy import Rule
    from orchestrator.surface.egress.organisation import Changed, OrganisationFile


class ModeWord(StrEnum):
    warn = "warn"
    enforce = "enforce"


def register(app: typer.Typer) -> None:
    app.command()(mode)
    app.command("list")(list_rules)
    app.command()(add)
    app.command()(remove)


def mode(
    wanted: Annotated[
        ModeWord | None,
        typer.Argument(metavar="[warn|enforce]", help="What the organisation's policy is set to. Default: show it."),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Show or set the mode of the organisation's policy: enforce blocks what no rule names, warn lets it pass on record.

    The organisation's file is changed in place, with its comments. Jobs that run get it at once, and a switch to enforce
    ends their connections that no rule allows.

    Example: [bold]ironcd egress mode enforce[/bold]
    """
    from orchestrator.surface.cli.terminal import print_json

    organisation = _organisation()
    if wanted is None:
        file = organisation.read()
        now, changed = file.mode or "enforce", False
    else:
        done = organisation.set_mode(wanted.value)
        now, changed = wanted.value, done.changed
    if as_json:
        print_json({"mode": now, "changed": changed, "file": str(organisation.path)})
    elif wanted is None:
        typer.echo(now)
    else:
        typer.echo(f"mode {now}" + ("" if changed else " already") + f" ({organisation.path})")


def list_rules(*, as_json: AsJson = False) -> None:
    """List the organisation's rules with the built-in ones and those of presets: id, what it says, where it is written.

    Example: [bold]ironcd egress list --json | jq -r '.rules[] | select(.multi_tenant) | .host'[/bold]
    """
    from orchestrator.surface.cli.terminal import print_json, print_table
    from orchestrator.surface.egress.policies import image_presets
    from policies import load_presets

    settings = GLOBAL.settings()
    if settings.policy.organisation_file is None:
        from orchestrator.core.effective import baseline_policy

        policy, path = baseline_policy(load_presets().builtin), None
    else:
        organisation = _organisation()
        policy, path = organisation.policy(image_presets(settings)), organisation.path
    if as_json:
        print_json(
            {
                "mode": policy.mode,
                "profile": policy.profile,
                "digest": policy.digest,
                "file": str(path) if path else None,
                "rules": [_plain(rule) for rule in policy.rules],
                "private": policy.private,
            }
        )
        return
    print_table(("id", "action", "what", "ports", "written in", "comment"), (_row(rule) for rule in policy.rules))
    typer.echo(f"\nmode {policy.mode}, profile {policy.profile}, {len(policy.rules)} rules, {policy.digest}")
    if path is None:
        typer.echo("There is no organisation policy (policy.organisation_file): these are the built-in rules alone.")


def add(
    *,
    host: Annotated[
        str, typer.Option(help="Name that HTTPS may go to: api.example.com, *.example.com, **.example.com.")
    ] = "",
    cidr: Annotated[str, typer.Option(help="IPv4 range that TCP may go to, as 203.0.113.0/24; with --port.")] = "",
    preset: Annotated[str, typer.Option(help="Preset, as in `ironcd egress presets`.")] = "",
    port: Annotated[list[int] | None, typer.Option(help="Port of --cidr; may be repeated. Default: 443.")] = None,
    comment: Annotated[str, typer.Option(help="Why it is there; kept with the rule.")] = "",
    deny: Annotated[bool, typer.Option("--deny", help="Block it, whatever any list allows.")] = False,
    expect: Annotated[
        bool, typer.Option("--expect", help="Mark its blocks as known and harmless; it stays blocked.")
    ] = False,
    acknowledge: Annotated[
        str, typer.Option(metavar="REASON", help="Why a dangerous host is needed; kept with the rule.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Add a rule to the organisation's policy, at the end of its list; the rest of the file stays as it is.

    What would not be accepted is refused, and the file stays as it was.

    Example: [bold]ironcd egress add --host "*.example.com" --comment "the shop's test systems"[/bold]

    Example: [bold]ironcd egress add --cidr 203.0.113.0/24 --port 22 --comment "deployment over SSH"[/bold]

    Example: [bold]ironcd egress add --host paste.example.com --deny[/bold]
    """
    from orchestrator.core.errors import UserError
    from orchestrator.core.policy_edit import NewEntry

    if sum(map(bool, (host, cidr, preset))) != 1 or (deny and expect):
        raise UserError(
            "a rule has one of --host, --cidr and --preset, and not both --deny and --expect",
            code="bad-option",
            remedy="Give one of them; a rule for each host or range.",
        )
    entry = NewEntry(
        action="deny" if deny else "expect" if expect else "allow",
        host=host,
        cidr=cidr,
        preset=preset,
        ports=tuple(sorted(set(port or ()))),
        comment=comment,
        acknowledge=acknowledge,
    )
    organisation = _organisation()
    _say(organisation, organisation.add(entry), "added", as_json=as_json)


def remove(
    rule_id: Annotated[str, typer.Argument(metavar="ID", help="Of the rule, as `ironcd egress list` shows it: org#3.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Remove a rule from the organisation's policy. The rules that stand after it in the file have other ids then.

    Example: [bold]ironcd egress remove org#3[/bold]
    """
    organisation = _organisation()
    _say(organisation, organisation.remove(rule_id), "removed", as_json=as_json)


def _organisation() -> OrganisationFile:
    from orchestrator.surface.egress.organisation import OrganisationFile
    from policies import load_presets

    return OrganisationFile.of(GLOBAL.settings(), load_presets())


def _say(organisation: OrganisationFile, done: Changed, verb: str, *, as_json: bool) -> None:
    from orchestrator.surface.cli.terminal import clean, print_json
    from orchestrator.surface.egress.organisation import said

    entry = done.entry
    assert entry is not None
    if as_json:
        print_json(
            {
                "changed": done.changed,
                "id": f"org#{entry.number}",
                "action": entry.action,
                "what": said(entry),
                "line": entry.line,
                "file": str(organisation.path),
                "warnings": done.file.warnings,
            }
        )
        return
    what = f"org#{entry.number}: {entry.action} {said(entry)} ({organisation.path}:{entry.line})"
    typer.echo(clean(f"{verb} {what}" if done.changed else f"it is there already: {what}"))
    for warning in done.file.warnings:
        typer.echo(f"warning: {clean(warning)}", err=True)


def _plain(rule: Rule) -> dict[str, object]:
    return {
        "id": rule.id,
        "action": rule.action,
        "host": rule.host,
        "cidr": rule.cidr,
        "ports": list(rule.ports),
        "origin": rule.origin,
        "comment": rule.comment,
        "multi_tenant": rule.multi_tenant,
    }


def _row(rule: Rule) -> tuple[object, ...]:
    ports = ", ".join(map(str, rule.ports)) or "all"
    shared = "shared by many tenants" if rule.multi_tenant else ""
    note = "; ".join(part for part in (rule.comment, shared) if part)
    return rule.id, rule.action, rule.host or rule.cidr, ports, rule.origin, note
