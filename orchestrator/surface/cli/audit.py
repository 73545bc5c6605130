"""``ironcd audit``: who tried to reach what, and what came of it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.surface.cli.options import GLOBAL

if TYPE_CHECKING:
    from orchestrator.surface.api_client import ApiClient

app = typer.Typer(help="The record of egress.", no_args_is_help=True)

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_FOLLOW_EVERY_S = 0.5
_PAGE = 1000


@app.callback()
def group() -> None:
    """The record of egress."""


@app.command()
def egress(
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new events as they come.")] = False,
    job: Annotated[int | None, typer.Option(help="Only of this job (GitHub's id).")] = None,
    repo: Annotated[str | None, typer.Option(help="Only of this repository (owner/name).")] = None,
    host: Annotated[str | None, typer.Option(help="Only to this name, or to names below it (*.example.com).")] = None,
    verdict: Annotated[str | None, typer.Option(help="Only allowed, warn or blocked.")] = None,
    since: Annotated[str | None, typer.Option(help="From then on: 30m, 24h, 14d, or 2026-05-01T12:00:00Z.")] = None,
    until: Annotated[str | None, typer.Option(help="Up to then; the same forms.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many events, the newest.")] = 1000,
    as_json: Annotated[
        bool, typer.Option("--json", help="For programs: one event a line, as the ledger has it.")
    ] = False,
) -> None:
    """Show every attempt to reach the outside: time, name, verdict, reason, rule, and bytes both ways.

    Example: [bold]ironcd audit egress --repo acme/shop --verdict blocked --since 24h[/bold]

    Example: [bold]ironcd audit egress --follow --json | jq .host[/bold]
    """
    from orchestrator.surface.api_client import ApiClient

    now = time.time()
    client = ApiClient.of(GLOBAL.settings())
    asked: dict[str, str | int | float | None] = {
        "job": job,
        "repo": repo,
        "host": host,
        "verdict": _verdict(verdict),
        "since": moment(since, now) if since else None,
        "until": moment(until, now) if until else None,
        "limit": limit,
    }
    events = client.get("egress", asked)["events"]
    if not follow:
        _print(events, as_json=as_json)
        return
    for event in _and_new_ones(client, asked, events):
        _print_one(event, as_json=as_json)


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


def _and_new_ones(
    client: ApiClient, asked: dict[str, str | int | float | None], events: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """``events`` and then what comes after them, until the command is interrupted.  No event comes twice."""
    seen: dict[str, int] = {}
    while True:
        for event in events:
            gateway = str(event["gateway"])
            if event["seq"] > seen.get(gateway, -1):
                seen[gateway] = event["seq"]
                yield event
        time.sleep(_FOLLOW_EVERY_S)
        latest = max((event["ts"] for event in events), default=time.time() - 5)
        events = client.get("egress", {**asked, "since": latest - 5, "until": None, "limit": _PAGE})["events"]
