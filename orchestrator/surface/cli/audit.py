"""``ironcd audit``: who tried to reach what, and what came of it."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.surface.cli.options import GLOBAL

if TYPE_CHECKING:
    from orchestrator.core.errors import UserError

app = typer.Typer(help="The record of egress: what was tried, and the proof of it.", no_args_is_help=True)

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}

Asked = dict[str, str | int | float | None]
Job = Annotated[int | None, typer.Option(help="Only of this job (GitHub's id).")]
Repo = Annotated[str | None, typer.Option(help="Only of this repository (owner/name).")]
Vm = Annotated[str | None, typer.Option(help="Only of this virtual machine, by its name or its runner's id.")]
Host = Annotated[str | None, typer.Option(help="Only to this name, or to names below it (*.example.com).")]
Verdict = Annotated[str | None, typer.Option(help="Only allowed, warn or blocked.")]
Since = Annotated[str | None, typer.Option(help="From then on: 30m, 24h, 14d, or 2026-05-01T12:00:00Z.")]
Until = Annotated[str | None, typer.Option(help="Up to then; the same forms.")]


@app.callback()
def group() -> None:
    """The record of egress: what was tried, and the proof of it."""


@app.command()
def egress(
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new events as they come.")] = False,
    job: Job = None,
    repo: Repo = None,
    vm: Vm = None,
    host: Host = None,
    verdict: Verdict = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many events, the newest.")] = 1000,
    place_file: Annotated[
        Path | None,
        typer.Option(
            help="With --follow: go on behind what was printed last, which this file remembers from run to run."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="For programs: one event a line, as the ledger has it.")
    ] = False,
) -> None:
    """Show every attempt to reach the outside: time, name, verdict, reason, rule, and bytes both ways.

    With --follow new events are printed within a second of being recorded, each once, also over restarts of the control
    plane; with --place-file over restarts of this command too.

    Example: [bold]ironcd audit egress --repo acme/shop --verdict blocked --since 24h[/bold]

    Example: [bold]ironcd audit egress --follow --json --place-file /var/lib/siem/ironcd.place[/bold]
    """
    from orchestrator.surface.api_client import ApiClient

    if follow and until:
        raise _cant_be_together("--until ends what --follow goes on with")
    if place_file is not None and not follow:
        raise _cant_be_together("--place-file is for --follow")
    client = ApiClient.of(GLOBAL.settings())
    asked = {**question(job, repo, vm, host, verdict, since=since, until=until), "limit": limit}
    if not follow:
        _print(client.get("egress", asked)["events"], as_json=as_json)
        return
    from orchestrator.surface.egress.follow import Stop, follow_events

    stop = Stop()
    stop.listen()
    follow_events(client, asked, lambda event: _print_one(event, as_json=as_json), place_file, stop=stop)


def _cant_be_together(why: str) -> UserError:
    from orchestrator.core.errors import UserError

    return UserError(why, code="bad-option", remedy="Leave --until out, or add --follow.")


def question(
    job: int | None,
    repo: str | None,
    vm: str | None,
    host: str | None,
    verdict: str | None,
    *,
    since: str | None,
    until: str | None,
) -> Asked:
    """The filters as the API takes them.  Raises UserError for one that isn't understood."""
    now = time.time()
    return {
        "job": job,
        "repo": repo,
        "runner": _runner(vm),
        "host": host,
        "verdict": _verdict(verdict),
        "since": moment(since, now) if since else None,
        "until": moment(until, now) if until else None,
    }


def _runner(vm: str | None) -> str | None:
    """The runner whose VM has this name; a runner's id stands for itself."""
    from orchestrator.core.errors import UserError
    from orchestrator.core.names import names_of, ulid_of

    if vm is None:
        return None
    ulid = ulid_of(vm) or vm.upper()
    try:
        return names_of(ulid).ulid
    except ValueError:
        raise UserError(
            f"--vm {vm}: neither a virtual machine's name nor a runner's id",
            code="bad-option",
            remedy="`ironcd runners list` shows them.",
        ) from None


def _verdict(given: str | None) -> str | None:
    from orchestrator.core.errors import UserError

    if given not in (None, "allowed", "warn", "blocked"):
        raise UserError(
            f"--verdict {given}: no such verdict", code="bad-option", remedy="Use allowed, warn or blocked."
        )
    return given


def moment(text: str, now: float) -> float:
    """Seconds since the epoch that ``text`` names: an age (``90s``, ``24h``, ``14d``) or an ISO 8601 time (UTC unless it says)."""
    from orchestrator.core.errors import UserError

    age = re.fullmatch(r"(\d{1,9})([smhdw])", text)
    if age is not None:
        return now - int(age[1]) * _UNITS[age[2]]
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(
            f"{text!r} is neither an age nor a time",
            code="bad-option",
            remedy="Write 24h, 14d, or 2026-05-01T12:00:00Z.",
        ) from None
    return (parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)).timestamp()


def _print(events: list[dict[str, Any]], *, as_json: bool) -> None:
    from orchestrator.surface.attempts import COLUMNS, attempts
    from orchestrator.surface.cli.terminal import print_json_line, print_table

    if as_json:
        for event in events:
            print_json_line(event)
        return
    print_table(COLUMNS, (attempt_row(attempt) for attempt in attempts(events)))


def _print_one(event: dict[str, Any], *, as_json: bool) -> None:
    from orchestrator.surface.attempts import attempts
    from orchestrator.surface.cli.terminal import clean, print_json_line

    if as_json:
        print_json_line(event)
        return
    for attempt in attempts([event]):
        typer.echo(clean("  ".join(str(cell) for cell in (event["event"], *attempt_row(attempt)))))


def attempt_row(attempt: Any) -> tuple[object, ...]:
    """An `orchestrator.surface.attempts.Attempt` as the cells of `orchestrator.surface.attempts.COLUMNS`."""
    from orchestrator.surface.cli.terminal import size

    clock = datetime.fromtimestamp(attempt.ts, UTC).strftime("%Y-%m-%d %H:%M:%S")
    times = f" (x{attempt.count})" if attempt.count > 1 else ""
    moved = attempt.verdict != "blocked" and attempt.protocol != "dns"
    return (
        clock,
        attempt.name,
        attempt.port or "",
        attempt.protocol,
        attempt.verdict,
        attempt.reason + times,
        attempt.rule,
        size(attempt.bytes_up) if moved else "",
        size(attempt.bytes_down) if moved else "",
        attempt.repo,
        attempt.job,
    )
