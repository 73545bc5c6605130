"""``ironcd egress suggest`` and ``replay``: policies beside what jobs really did."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from orchestrator.surface.cli.options import GLOBAL, AsJson

if TYPE_CHECKING:
    from orchestrator.core.flow import Event
    from orchestrator.core.policy import Policy
    from orchestrator.core.presets import Presets
    from orchestrator.core.replay import Replayed
    from orchestrator.core.suggest import Suggestion
    from orchestrator.surface.egress.policies import ImagePresets

From = Annotated[
    Path | None,
    typer.Option("--from", help="Events from this file or folder of JSON lines, in place of the control plane's."),
]
Until = Annotated[str | None, typer.Option(help="Events up to then: 1h, 7d, or 2026-05-01T12:00:00Z.")]
PRESENT = Path(".ironcd/policy.yml")


class ScopeWord(StrEnum):
    repo = "repo"
    org = "org"


def register(app: typer.Typer) -> None:
    app.command()(suggest)
    app.command()(replay)


def suggest(
    *,
    repo: Annotated[str, typer.Option(help="Repository (owner/name) whose jobs are looked at.")],
    since: Annotated[str, typer.Option(help="Events from then on: 24h, 14d, or 2026-05-01T12:00:00Z.")] = "14d",
    until: Until = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help=f"The repository's policy as it is. Default: {PRESENT}, where it is here; else the default branch's at "
            "GitHub, and with --from none."
        ),
    ] = None,
    diff: Annotated[
        bool, typer.Option("--diff", help="Print a diff against that file in place of a whole one.")
    ] = False,
    include_hazards: Annotated[
        bool, typer.Option("--include-hazards", help="Propose dangerous hosts too; each needs a reason of yours.")
    ] = False,
    preset_hosts: Annotated[
        int, typer.Option(min=1, help="A preset stands for its hosts where so many of them were seen, or all.")
    ] = 2,
    source: From = None,
    as_json: AsJson = False,
) -> None:
    """Propose the smallest policy that would have let through what a repository's jobs were refused.

    What a rule denies, dangerous hosts and what no rule can open are left out, each with the reason. Read it before you
    commit it: whoever could run code in a job could have it look for any host.

    Example: [bold]ironcd egress suggest --repo acme/shop --since 14d --diff | git apply[/bold]
    """
    from orchestrator.core.seen import images_seen, seen_by_jobs
    from orchestrator.core.suggest import suggest as propose
    from orchestrator.surface.api_client import ApiClient
    from orchestrator.surface.cli.terminal import clean, print_json
    from orchestrator.surface.egress import policies
    from policies import load_presets

    presets = load_presets()
    seen = seen_by_jobs(_events(repo, since, until, source))
    images = policies.image_presets(GLOBAL.settings()) or images_seen(seen)
    path = file if file is not None else PRESENT if PRESENT.is_file() else None
    if path is not None:
        text = policies.read_text(path).decode("utf-8")
    else:
        text = "" if source is not None else policies.text_now(ApiClient.of(GLOBAL.settings()), repo)
    present = _alone(text, str(path or PRESENT), presets, images)
    made = propose(
        seen,
        presets,
        present=present,
        images=images,
        preset_hosts=preset_hosts,
        hazards=include_hazards,
    )
    whole = _whole(text, made)
    if as_json:
        print_json(
            {"file": str(path) if path else None, "policy": whole, "diff": _diff(text, whole, path), **_plain(made)}
        )
        return
    shown = _diff(text, whole, path) if diff else whole
    typer.echo("\n".join(clean(line) for line in shown.splitlines()))
    if text or diff:
        from orchestrator.core.suggest import left_out_lines

        for line in left_out_lines(made):
            typer.echo(clean(line), err=True)
    for warning in _under_organisation(whole, presets, images):
        typer.echo(f"warning: {clean(warning)}", err=True)


def replay(
    file: Annotated[Path, typer.Argument(help="Policy file to try; - for standard input.")],
    *,
    since: Annotated[str, typer.Option(help="Events from then on: 24h, 30d, or 2026-05-01T12:00:00Z.")] = "30d",
    until: Until = None,
    repo: Annotated[str, typer.Option(help="Only jobs of this repository (owner/name).")] = "",
    scope: Annotated[
        ScopeWord, typer.Option(help="Whose policy FILE is: repo (under the organisation's), or org.")
    ] = ScopeWord.repo,
    under: Annotated[
        Path | None, typer.Option(help="The organisation's policy above it. Default: policy.organisation_file.")
    ] = None,
    source: From = None,
    as_json: AsJson = False,
) -> None:
    """Show which past jobs a policy would have stood in the way of, and the names that they would have missed.

    Ends with status 0 where no job would have been, 1 where any would, 2 where FILE isn't accepted. An organisation's
    policy is tried as the most that any repository may have under it.

    Example: [bold]ironcd egress replay .ironcd/policy.yml --repo acme/shop --since 30d[/bold]
    """
    from orchestrator.core.replay import replay as decide_again
    from orchestrator.core.seen import images_seen, seen_by_jobs
    from orchestrator.surface.cli.terminal import print_json

    seen = seen_by_jobs(_events(repo, since, until, source))
    policy = _tried(file, scope, under, images_seen(seen))
    jobs = decide_again(policy, seen)
    hit = [job for job in jobs if job.blocked]
    if as_json:
        print_json(
            {"jobs": [_job(job) for job in jobs], "would_block": len(hit), "of": len(jobs), "digest": policy.digest}
        )
    else:
        _show_jobs(jobs, hit)
    raise typer.Exit(1 if hit else 0)


def _events(repo: str, since: str, until: str | None, source: Path | None) -> Iterator[Event]:
    from orchestrator.surface.api_client import ApiClient
    from orchestrator.surface.cli.audit import moment
    from orchestrator.surface.egress.events import Wanted, from_control, from_files

    now = time.time()
    wanted = Wanted(repo=repo, since=moment(since, now), until=moment(until, now) if until else 0.0)
    if source is not None:
        return from_files(source, wanted)
    return from_control(ApiClient.of(GLOBAL.settings()), wanted)


def _alone(text: str, name: str, presets: Presets, images: ImagePresets | None) -> Policy:
    """The repository's file by itself; the built-in rules where there is none."""
    from orchestrator.core.effective import baseline_policy, effective_policy
    from orchestrator.core.policy_file import read_policy

    if not text:
        return baseline_policy(presets.builtin)
    file = read_policy(text, source=name, presets=presets, image_presets=images)
    own = msgspec.structs.replace(file, tests=())
    org = None
    if own.allow is None:
        from orchestrator.surface.egress.policies import above

        org = above(GLOBAL.settings(), None, presets, images)
    return effective_policy(org, own, presets.builtin, images)


def _whole(text: str, made: Suggestion) -> str:
    """The file as it is with what is proposed, or a new one."""
    from orchestrator.core.policy_edit import with_entry
    from orchestrator.core.suggest import whole_policy

    if not text.strip():
        return whole_policy(made)
    for one in made.proposed:
        note = "; ".join(part for part in (one.entry.comment, one.note) if part)
        text = with_entry(text, msgspec.structs.replace(one.entry, comment=note))
    return text


def _diff(before: str, after: str, path: Path | None) -> str:
    name = (path or PRESENT).as_posix().lstrip("/")
    old = f"a/{name}" if before or path is not None else "/dev/null"
    lines = difflib.unified_diff(before.splitlines(keepends=True), after.splitlines(keepends=True), old, f"b/{name}")
    return "".join(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in lines)


def _under_organisation(text: str, presets: Presets, images: ImagePresets | None) -> list[str]:
    """What the organisation's policy has against the proposed one."""
    from orchestrator.core.effective import effective_policy
    from orchestrator.core.errors import UserError
    from orchestrator.core.policy_file import read_policy
    from orchestrator.surface.egress.policies import above

    try:
        own = read_policy(text, source=str(PRESENT), presets=presets, image_presets=images)
        effective_policy(above(GLOBAL.settings(), None, presets, images), own, presets.builtin, images)
    except UserError as error:
        return error.message.splitlines()
    return []


def _tried(file: Path, scope: ScopeWord, under: Path | None, seen: ImagePresets) -> Policy:
    from orchestrator.core.effective import effective_policy
    from orchestrator.surface.egress.policies import above, image_presets, read_file
    from policies import load_presets

    settings, presets = GLOBAL.settings(), load_presets()
    images = image_presets(settings) or seen
    own = read_file(file, scope.value, presets, images)
    if scope is ScopeWord.org:
        alone = msgspec.structs.replace(own, repository_file="optional")
        return effective_policy(alone, None, presets.builtin, images)
    return effective_policy(above(settings, under, presets, images), own, presets.builtin, images)


def _plain(made: Suggestion) -> dict[str, object]:
    return {
        "proposed": [{"entry": one.entry, "for": one.targets, "count": one.count, "jobs": one.jobs, "careful": one.careful}
                     for one in made.proposed],
        "left_out": made.left_out,
        "allowed": made.allowed,
    }  # fmt: skip


def _job(job: Replayed) -> dict[str, object]:
    who = job.who
    return {
        "repo": who.repo,
        "job_id": who.job_id,
        "job": who.job,
        "run_id": who.run_id,
        "at": job.first,
        "blocked": job.blocked,
        "opened": job.opened,
        "still_blocked": job.still_blocked,
        "same": job.same,
    }


def _show_jobs(jobs: list[Replayed], hit: list[Replayed]) -> None:
    from orchestrator.surface.cli.terminal import clean, print_table

    rows = []
    for job in hit:
        clock = datetime.fromtimestamp(job.first, UTC).strftime("%Y-%m-%d %H:%M:%S")
        names = ", ".join(f"{t.name} (x{t.count})" if t.count > 1 else t.name for t in job.blocked)
        rows.append((clock, job.who.repo, job.who.job_id, job.who.job, len(job.blocked), names))
    if rows:
        print_table(("time", "repository", "id", "job", "#blocked", "names"), rows)
        typer.echo("")
    opened = sorted({target.name for job in jobs for target in job.opened})
    if opened:
        typer.echo(clean(f"blocked then, and let through by this policy: {', '.join(opened)}"))
    typer.echo(f"{len(hit)} of {len(jobs)} jobs would have been blocked from something they reached")
