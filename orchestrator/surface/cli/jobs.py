"""``ironcd jobs``: what jobs there are, and the whole story of one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from orchestrator.surface.cli.options import GLOBAL, AsJson

app = typer.Typer(help="Jobs, as GitHub and we have them.", no_args_is_help=True)


@app.command("list")
def list_jobs(
    *,
    waiting: Annotated[
        bool, typer.Option("--waiting", help="Only those that wait: place in the line, for how long, and why.")
    ] = False,
    unserved: Annotated[
        bool, typer.Option("--unserved", help="Only those that aren't ours to serve, with the reason.")
    ] = False,
    repo: Annotated[str | None, typer.Option(help="Only of this repository (owner/name).")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first; those that wait in the order in which they are served.

    Example: [bold]ironcd jobs list --waiting[/bold]
    """
    from orchestrator.surface.api_client import ApiClient
    from orchestrator.surface.cli.terminal import print_json, print_table

    asked: dict[str, str | int | float | None] = {"repo": repo, "limit": limit}
    asked |= {"waiting": "true" if waiting else None, "unserved": "true" if unserved else None}
    answer = ApiClient.of(GLOBAL.settings()).get("jobs", asked)
    if as_json:
        print_json(answer["jobs"])
        return
    columns, row = _WAITING if waiting else _UNSERVED if unserved else _ANY
    print_table(columns, (row(job) for job in answer["jobs"]))
    if answer.get("total", 0) > len(answer["jobs"]):
        typer.echo(f"... and {answer['total'] - len(answer['jobs'])} more (--limit)")


@app.command()
def show(
    job_id: Annotated[int, typer.Argument(metavar="ID", help="GitHub's id of the job.")], *, as_json: AsJson = False
) -> None:
    """Show one job's whole story: every stage with its time, its duration, and why it waited.

    Also for jobs that aren't ours to serve, for a week: it says why.

    Example: [bold]ironcd jobs show 48213[/bold]
    """
    from orchestrator.surface.cli.terminal import print_json, print_table

    job = _known(job_id)
    if as_json:
        print_json(job)
        return
    began = float(job.get("created_at") or min((m["at"] for m in job.get("story", [])), default=time.time()))
    print_table(("", ""), _facts(job, began))
    typer.echo("")
    print_table(("stage", "", "time (UTC)", "#took", "why"), _stages(job.get("stages", []), began))
    made = job.get("made_for_it", [])
    if made:
        typer.echo("")
        print_table(("runner", "host", "start", "phase", "why it ended"), (_made_row(runner) for runner in made))
    typer.echo("")
    print_table(("time (UTC)", "#after", "of", "what", "detail"), _story(job.get("story", []), began))
    if any((runner.get("failure") or {}).get("console") for runner in made):
        typer.echo("\nThe last lines of consoles of what failed: --json, made_for_it[].failure.console")


def _known(job_id: int) -> dict[str, Any]:
    from orchestrator.core.errors import UserError
    from orchestrator.surface.api_client import ApiClient

    try:
        job: dict[str, Any] = ApiClient.of(GLOBAL.settings()).get(f"jobs/{job_id}")
    except UserError as error:
        if error.code != "not-found":
            raise
        raise UserError(
            f"nothing is known of job {job_id}: no delivery told of it, or it was over long ago",
            code="job-unknown",
            remedy="See whether the App is installed for its repository, and what became of its deliveries (App, Advanced).",
        ) from error
    return job


Row = Callable[[dict[str, Any]], tuple[object, ...]]


def _any_row(job: dict[str, Any]) -> tuple[object, ...]:
    return (job["id"], job["repo"], job.get("name", ""), _state(job), job.get("runner", ""), job.get("reason", ""))


def _waiting_row(job: dict[str, Any]) -> tuple[object, ...]:
    from orchestrator.surface.cli.terminal import seconds

    wait = job.get("wait") or {}
    place = f"{wait['place']} of {wait['of']}" if wait.get("place") else ""
    waits = seconds(wait["for_s"]) if "for_s" in wait else ""
    return (place, job["id"], job["repo"], job.get("name", ""), waits, wait.get("kind", ""), job.get("reason", ""))


def _unserved_row(job: dict[str, Any]) -> tuple[object, ...]:
    return (job["id"], job["repo"], job.get("name", ""), ", ".join(job.get("labels", [])), job.get("reason", ""))


_ANY: tuple[tuple[str, ...], Row] = (("job", "repository", "name", "state", "runner", "why"), _any_row)
_WAITING: tuple[tuple[str, ...], Row] = (
    ("#place", "job", "repository", "name", "#for", "waits for", "why"),
    _waiting_row,
)
_UNSERVED: tuple[tuple[str, ...], Row] = (("job", "repository", "name", "labels", "why"), _unserved_row)


def _clock(at: float, began: float) -> str:
    """The time of day, with the date where it isn't that on which the job began."""
    shown, day = time.strftime("%H:%M:%S", time.gmtime(at)), time.strftime("%Y-%m-%d", time.gmtime(at))
    return shown if day == time.strftime("%Y-%m-%d", time.gmtime(began)) else f"{day} {shown}"


def _made_row(runner: dict[str, Any]) -> tuple[object, ...]:
    failure = runner.get("failure") or {}
    why = ": ".join(part for part in (failure.get("code", ""), failure.get("message", "")) if part)
    ended = why or runner.get("detail") or runner.get("reason", "")
    start = ": ".join(part for part in (runner.get("start", ""), runner.get("cold_because", "")) if part)
    return (runner["id"], runner.get("host", ""), start, runner.get("phase", ""), ended)


def _stages(stages: list[dict[str, Any]], began: float) -> list[tuple[str, str, str, str, str]]:
    from orchestrator.surface.cli.terminal import seconds

    rows = []
    for stage in stages:
        at, took = stage.get("at"), stage.get("took_s")
        clock = _clock(at, began) if at is not None else ""
        rows.append(
            (stage["title"], stage["state"], clock, seconds(took) if took is not None else "", stage.get("why", ""))
        )
    return rows


def _state(job: dict[str, Any]) -> str:
    return str(job.get("conclusion") or job["state"])


def _facts(job: dict[str, Any], began: float) -> list[tuple[str, str]]:
    facts = [("job", str(job["id"])), ("repository", job["repo"]), ("state", _state(job))]
    facts.append(("queued at", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(began))))
    facts += [
        (name, str(job[name]))
        for name in ("name", "workflow", "run_id", "attempt", "runner", "reason")
        if job.get(name)
    ]
    if job.get("loss"):
        facts.append(("infrastructure loss", str(job["loss"])))
    rerun = job.get("rerun")
    if rerun:
        facts.append(("run again", ": ".join(part for part in (rerun["state"], rerun.get("why", "")) if part)))
    wait = job.get("wait") or {}
    if wait.get("place"):
        facts.append(("place in the line", f"{wait['place']} of {wait['of']}"))
    facts.append(("labels", ", ".join(job.get("labels", []))))
    return facts


def _story(moments: list[dict[str, Any]], began: float) -> list[tuple[str, ...]]:
    from orchestrator.surface.cli.terminal import seconds

    rows: list[tuple[str, ...]] = []
    before: float | None = None
    for moment in moments:
        at = float(moment["at"])
        clock = f"{_clock(at, began)}.{int(at * 10) % 10}"
        who = str(moment.get("who", ""))
        whose = who if who == "job" else f"..{who[-5:]}"
        after = "" if before is None else "+" + seconds(at - before)
        rows.append((clock, after, whose, moment["what"], moment.get("detail", "")))
        before = at
    return rows
