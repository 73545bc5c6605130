"""``ironcd egress explain``: which rule decides about a host, and where it is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.surface.cli.options import GLOBAL, AsJson

if TYPE_CHECKING:
    from orchestrator.core.explain import Explanation


def register(app: typer.Typer) -> None:
    app.command()(explain)


def explain(
    host: Annotated[str, typer.Argument(help="Host name or IPv4 address that a job wants to reach.")],
    *,
    repo: Annotated[
        str,
        typer.Option(
            help="Repository (owner/name): its default branch at GitHub as it is now, under the organisation's policy of now."
        ),
    ] = "",
    job: Annotated[int, typer.Option(help="The policy that this job got (GitHub's id), in place of --repo.")] = 0,
    file: Annotated[
        Path | None,
        typer.Option(help="A repository's policy file in place of --repo; under the organisation's policy."),
    ] = None,
    under: Annotated[
        Path | None, typer.Option(help="The organisation's policy for --file. Default: policy.organisation_file.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port that it wants to reach.")] = 443,
    as_json: AsJson = False,
) -> None:
    """Say whether a job may reach a host: the rule that wins, where it is written, and what to write if none does.

    Without --repo, --job and --file it is the organisation's policy that is asked. Ends with status 0 where the host is
    allowed, 1 where it is blocked or would be, 2 where the question can't be answered.

    Example: [bold]ironcd egress explain registry.example.com --repo acme/shop[/bold]

    Example: [bold]ironcd egress explain registry.example.com --job 48213 --json[/bold]

    Example: [bold]ironcd egress explain 203.0.113.7 --port 22 --file .ironcd/policy.yml[/bold]
    """
    from orchestrator.core.errors import UserError
    from orchestrator.core.explain import target_of
    from orchestrator.core.host_pattern import HostProblem
    from orchestrator.surface.cli.terminal import print_json

    if sum((bool(repo), bool(job), file is not None)) > 1:
        raise UserError("--repo, --job and --file name several policies", code="bad-option", remedy="Give one of them.")
    try:
        target = target_of(host, port)
    except HostProblem as problem:
        raise UserError(problem.message, code="bad-option", remedy=f"{problem.remedy}.") from problem
    made, source = _asked(target, repo, job, file, under)
    if as_json:
        print_json(_plain(made, source))
    else:
        _show(made, source)
    raise typer.Exit(0 if made.decision.verdict == "allowed" else 1)


def _asked(target: Any, repo: str, job: int, file: Path | None, under: Path | None) -> tuple[Explanation, str]:
    from orchestrator.core import explain as core
    from orchestrator.surface.api_client import ApiClient
    from orchestrator.surface.egress import policies
    from orchestrator.surface.egress.organisation import OrganisationFile
    from policies import load_presets

    settings, presets = GLOBAL.settings(), load_presets()
    if repo or job:
        client = ApiClient.of(settings)
        given = policies.given_now(client, repo) if repo else policies.given_then(client, job)
        return core.explain(given.policy, target, presets), given.source
    images = policies.image_presets(settings)
    unknown = "" if images is not None else "; what apt, node and pypi add isn't known: there is no image here"
    if file is None:
        organisation = OrganisationFile.of(settings, presets)
        source = f"the organisation's policy ({organisation.path}){unknown}"
        return core.explain(organisation.policy(images), target, presets, images), source
    org = policies.above(settings, under, presets, images)
    own = policies.read_file(file, "repo", presets, images)
    source = str(file) + (f" under {org.source}" if org is not None else "") + unknown
    return core.explain_files(org, own, target, presets, images), source


def _show(made: Explanation, source: str) -> None:
    from orchestrator.core.explain import where
    from orchestrator.surface.cli.terminal import clean

    decision = made.decision
    verdict = "would be blocked" if decision.would_block else decision.verdict
    lines = [f"{made.target.shown}, port {made.target.port}: {verdict}", f"  {made.because}"]
    if made.rule is not None and made.rule.comment:
        lines.append(f"  its comment: {made.rule.comment}")
    lines += [f"  {where(rule)} {_verb(rule.action)} it too" for rule in made.also]
    lines += [f"  {note}" for note in made.notes]
    if "multi_tenant" in decision.flags:
        lines.append("  anyone can rent a name or a place there: its connections are flagged multi_tenant")
    if "expected" in decision.flags:
        lines.append("  it is listed under expect: its blocks are known and harmless")
    if made.danger:
        lines.append(f"  careful: {made.danger}")
    if made.presets:
        lines.append(f"  presets that have it: {', '.join(made.presets)}")
    if made.to_allow:
        lines.append(f"  to allow it, write under allow: - {made.to_allow}")
    lines.append(f"  asked: {source}; mode {made.mode}")
    typer.echo("\n".join(clean(line) for line in lines))


def _verb(action: str) -> str:
    return {"allow": "allows", "deny": "denies"}.get(action, "expects a block of")


def _plain(made: Explanation, source: str) -> dict[str, object]:
    return {
        "host": made.target.host,
        "address": made.target.address,
        "port": made.target.port,
        "verdict": made.decision.verdict,
        "reason": made.decision.reason,
        "would_block": made.decision.would_block,
        "flags": made.decision.flags,
        "mode": made.mode,
        "because": made.because,
        "rule": made.rule,
        "also": made.also,
        "presets": made.presets,
        "danger": made.danger,
        "to_allow": made.to_allow,
        "notes": made.notes,
        "source": source,
    }
