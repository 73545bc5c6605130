"""``ironcd audit export|verify|retain|hold``: the record for other tools, its proof, and what is kept.

Exporting asks the control plane.  The others work on the record's files, on the machine that has them: verifying must not
depend on the word of a running process.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from orchestrator.surface.cli.audit import Asked, Host, Job, Repo, Since, Until, Verdict, Vm, moment, question
from orchestrator.surface.cli.options import GLOBAL, AsJson

if TYPE_CHECKING:
    from orchestrator.audit.findings import Report
    from orchestrator.audit.formats import Format
    from orchestrator.surface.api_client import ApiClient

Folder = Annotated[
    Path | None, typer.Option("--dir", help="The record's folder. Default: audit/ in control.state_dir.")
]
_DAY_S = 86400.0
_PAGE = 10_000
_SHORT_S = 1.0
"""What came within so short a time is held in memory, however much it is."""


def export(
    form: Annotated[str, typer.Option("--format", help="jsonl, csv, ocsf (Network Activity, class 4001) or cef.")],
    *,
    job: Job = None,
    repo: Repo = None,
    vm: Vm = None,
    host: Host = None,
    verdict: Verdict = None,
    since: Annotated[str, typer.Option(help="From then on: 30m, 24h, 14d, or 2026-05-01T12:00:00Z.")] = "24h",
    until: Until = None,
) -> None:
    """Write events to standard output, oldest first, in a form that a SIEM or a spreadsheet reads.

    Example: [bold]ironcd audit export --format ocsf --since 1h > events.json[/bold]

    Example: [bold]ironcd audit export --format csv --repo acme/shop --verdict blocked --since 30d > blocked.csv[/bold]
    """
    from importlib import metadata

    import msgspec

    from orchestrator.audit import formats
    from orchestrator.core.flow import Event
    from orchestrator.surface.api_client import ApiClient

    known = _format(form)
    client = ApiClient.of(GLOBAL.settings())
    asked = question(job, repo, vm, host, verdict, since=since, until=until)
    version = metadata.version("ironcd")
    out = sys.stdout
    out.write(formats.header(known))
    for event in _oldest_first(client, asked):
        out.write(formats.write(known, msgspec.convert(event, Event), version=version))


def _format(given: str) -> Format:
    from orchestrator.audit.formats import Format
    from orchestrator.core.errors import UserError

    forms: tuple[Format, ...] = get_args(Format)
    known = next((form for form in forms if form == given), None)
    if known is None:
        raise UserError(f"--format {given}: no such form", code="bad-option", remedy="Use jsonl, csv, ocsf or cef.")
    return known


def _oldest_first(client: ApiClient, asked: Asked) -> Iterator[dict[str, Any]]:
    """Day by day."""
    begin, end = float(asked["since"] or 0.0), float(asked["until"] or time.time())
    while begin < end:
        until = min(begin + _DAY_S, end)
        yield from _between(client, asked, begin, until)
        begin = until


def _between(client: ApiClient, asked: Asked, begin: float, until: float) -> Iterator[dict[str, Any]]:
    """In one page where all fit in it, else each half by itself: the API begins with the newest, and we with the oldest."""
    pages: list[list[dict[str, Any]]] = []
    cursor = ""
    while not pages or cursor:
        page = client.get("egress", {**asked, "since": begin, "until": until, "limit": _PAGE, "cursor": cursor})
        pages.append(page["events"])
        cursor = page.get("cursor", "")
        if cursor and until - begin > _SHORT_S:
            middle = (begin + until) / 2
            yield from _between(client, asked, begin, middle)
            yield from _between(client, asked, middle, until)
            return
    for events in reversed(pages):
        yield from events


def verify(
    *,
    host: Annotated[str | None, typer.Option(help="Only this host's ledger (the machine's name).")] = None,
    since: Since = None,
    folder: Folder = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            help="Checkpoints that were kept elsewhere, to hold the record against: a folder of copies, or a "
            "checkpoints.jsonl. May be repeated. Default: audit.checkpoint_copies."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Prove that no record was edited, removed, moved or cut off, or say which one was.

    Every line is held against the next, the Merkle tree against every signed checkpoint, and each signature against the
    host's key. --dir may name a copy, or a host's own ledger. Who can write both the record and its checkpoints is found
    out by checkpoints that were kept elsewhere. Ends with status 0 where all is well, 1 where anything is found, 2 where
    there is no record to verify.

    Example: [bold]ironcd audit verify[/bold]

    Example: [bold]ironcd audit verify --host metal-1 --since 7d --against /mnt/worm/ironcd --json[/bold]
    """
    import msgspec

    from orchestrator.audit.engine import Engine
    from orchestrator.audit.verify import Ask, verify_all
    from orchestrator.core.errors import UserError
    from orchestrator.surface.cli.terminal import print_json

    settings = GLOBAL.settings()
    now = time.time()
    record = folder or settings.control.state_dir / "audit"
    ask = Ask(
        since=_day(moment(since, now)) if since else "",
        keys=settings.audit.host_keys,
        cutoff=settings.retention().youngest_cutoff(now),
        fresh_since=now - 6 * settings.audit.checkpoint_copy_s,
        against=tuple(against or ([settings.audit.checkpoint_copies] if settings.audit.checkpoint_copies else ())),
    )
    missing = next((path for path in (record, *ask.against) if not path.exists()), None)
    engine = Engine(record)
    reports = verify_all(record, ask, host=host or "", engine=engine) if missing is None else []
    engine.close()
    if not reports:
        raise UserError(
            f"there is no {missing}" if missing is not None else f"there is no ledger in {record}",
            code="no-ledger",
            remedy="Name the record's folder with --dir, and copies with --against; this runs on the control plane's "
            "machine, or on a copy.",
        )
    if as_json:
        ledgers = [{**msgspec.structs.asdict(report), "intact": report.intact} for report in reports]
        print_json({"intact": all(report.intact for report in reports), "ledgers": ledgers})
    else:
        for report in reports:
            _show(report)
    if not all(report.intact for report in reports):
        raise typer.Exit(1)


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")


def _show(report: Report) -> None:
    from orchestrator.surface.cli.terminal import clean

    elsewhere = f", and elsewhere up to {report.elsewhere}" if report.elsewhere else ""
    deleted = f"; {report.deleted} deleted by retention, proof intact" if report.deleted and report.intact else ""
    typer.echo(
        clean(
            f"{report.ledger}: {'intact' if report.intact else 'NOT INTACT'}: {report.records} records "
            f"({report.first} to {report.last}), {report.checkpoints} signed checkpoints, signed up to {report.signed}{elsewhere}{deleted}"
        )
    )
    for found in report.findings:
        place = f"{found.file}:{found.line}: " if found.file else ""
        typer.echo(clean(f"  {found.kind}: {place}{found.text}"))
    for note in report.notes:
        typer.echo(clean(f"  note: {note}"))


def retain(
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and delete nothing.")] = False,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Delete records that needn't be kept any longer, leaving the proof of all others.

    How long is for the configuration (its audit section) to say, for each class of record and organisation. Only sealed days
    are touched, and nothing that is on hold. The control plane does this by itself once a day (audit.delete).

    Example: [bold]ironcd audit retain --dry-run[/bold]
    """
    from orchestrator.audit import retain as retaining
    from orchestrator.audit.engine import Engine
    from orchestrator.surface.cli.terminal import print_json, print_table

    settings = GLOBAL.settings()
    record = _record(folder)
    engine = Engine(record)
    try:
        done = list(retaining.retain(record, engine, settings.retention(), time.time(), dry_run=dry_run))
    finally:
        engine.close()
    if as_json:
        print_json({"dry_run": dry_run, "days": done})
        return
    columns = ("ledger", "day", "#egress", "#security", "#held")
    print_table(columns, [(one.ledger, one.day, one.egress, one.security, one.held) for one in done])
    total = sum(one.records for one in done)
    typer.echo(f"{total} records {'would be deleted' if dry_run else 'deleted'}")


def _record(folder: Path | None) -> Path:
    from orchestrator.core.errors import UserError

    record = folder or GLOBAL.settings().control.state_dir / "audit"
    if not record.is_dir():
        raise UserError(
            f"there is no {record}",
            code="no-ledger",
            remedy="Name the record's folder with --dir; this runs on the control plane's machine.",
        )
    return record


hold = typer.Typer(help="Keep records from being deleted, for a lawsuit or an investigation.", no_args_is_help=True)


@hold.command("add")
def hold_add(  # noqa: PLR0917 - typer's parameters
    name: Annotated[str, typer.Argument(help="Of the hold, for removing it.")],
    reason: Annotated[str, typer.Option(help="Why: who asked for it, and for what.")],
    org: Annotated[str, typer.Option(help="Only of this organisation.")] = "",
    repo: Annotated[str, typer.Option(help="Only of this repository (owner/name).")] = "",
    job: Annotated[int, typer.Option(help="Only of this job (GitHub's id).")] = 0,
    vm: Vm = None,
    host: Annotated[str, typer.Option(help="Only of this host (the machine's name).")] = "",
    since: Since = None,
    until: Until = None,
    folder: Folder = None,
) -> None:
    """Keep every record that matches all of the options, until the hold is removed.

    Example: [bold]ironcd audit hold add case-17 --reason "counsel, 2026-05-02" --repo acme/shop --since 90d[/bold]
    """
    from orchestrator.audit.retain import add_hold
    from orchestrator.core.retention import Hold

    asked = question(None, None, vm, None, None, since=since, until=until)
    made = Hold(
        id=name,
        reason=reason,
        at=round(time.time(), 3),
        org=org,
        repo=repo,
        job=job,
        runner=str(asked["runner"] or ""),
        gateway=host,
        since=float(asked["since"] or 0.0),
        until=float(asked["until"] or 0.0),
    )
    add_hold(_record(folder), made)
    typer.echo(f"hold {name} is on")


@hold.command("list")
def hold_list(*, folder: Folder = None, as_json: AsJson = False) -> None:
    """Show the holds, and what each of them keeps.

    Example: [bold]ironcd audit hold list --json[/bold]
    """
    import msgspec

    from orchestrator.audit.retain import load_holds
    from orchestrator.surface.cli.terminal import print_json, print_table

    holds = load_holds(_record(folder))
    if as_json:
        print_json(holds)
        return
    rows = []
    for one in holds:
        fields = msgspec.to_builtins(one)
        asked = {key: value for key, value in fields.items() if value and key not in {"id", "reason", "at"}}
        kept = [f"{key}={_time(value) if key in {'since', 'until'} else value}" for key, value in asked.items()]
        rows.append((one.id, _time(one.at), one.reason, " ".join(kept) or "everything"))
    print_table(("hold", "since", "reason", "keeps"), rows)


@hold.command("remove")
def hold_remove(
    name: Annotated[str, typer.Argument(help="Of the hold.")],
    folder: Folder = None,
) -> None:
    """Remove a hold: what it kept and whose time is over goes with the next deletion.

    Example: [bold]ironcd audit hold remove case-17[/bold]
    """
    from orchestrator.audit.retain import remove_hold

    remove_hold(_record(folder), name)
    typer.echo(f"hold {name} is off")


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def register(group: typer.Typer) -> None:
    for command in (export, verify, retain):
        group.command()(command)
    group.add_typer(hold, name="hold")
