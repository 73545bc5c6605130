"""``ironcd jobs``: what jobs there are, and the whole story of one."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from orchestrator.surface.cli.options import GLOBAL, AsJson

app = typer.Typer(help="Jobs, as GitHub and we have them.", no_args_is_help=True)


@app.command("list")
def list_jobs(
    *,
    waiting: Annotated[bool, typer.Option("--waiting", help="Only those that wait, with the reason.")] = False,
    repo: Annotated[str | None, typer.Option(help="Only of this repository (owner/name).")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first.

    Example: [bold]ironcd jobs list --waiting[/bold]
    """
    from orchestrator.surface.api_client import ApiClient
    from orchestrator.surface.cli.terminal import print_json, print_table

    asked: dict[str, str | int | float | None] = {"repo": repo, "limit": limit, "waiting": "true" if waiting else None}
    jobs = ApiClient.of(GLOBAL.settings()).get("jobs", asked)["jobs"]
    if as_json:
        print_json(jobs)
        return
    rows = ((j["id"], j["repo"], j.get("name", ""), _state(j), j.get("runner", ""), j.get("reason", "")) for j in jobs)
    print_table(("job", "repository", "name", "state", "runner", "why"), rows)


@app.command()
def show(
    job_id: Annotated[int, typer.Argument(metavar="ID", help="GitHub's id of the job.")], *, as_json: AsJson = False
) -> None:
    """Show one job's whole story: every step with its time, its duration, and why it waited.

    Example: [bold]ironcd jobs show 48213[/bold]
    """
    from orchestrator.surface.api_client import ApiClient
    from orchestrator.surface.cli.terminal import print_json, print_table

    job = ApiClient.of(GLOBAL.settings()).get(f"jobs/{job_id}")
    if as_json:
        print_json(job)
        return
    print_table(("", ""), _facts(job))
    typer.echo("")
    print_table(("time", "#after", "what", "detail"), _story(job.get("story", [])))


def _state(job: dict[str, Any]) -> str:
    return str(job.get("conclusion") or job["state"])


def _facts(job: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [("job", str(job["id"])), ("repository", job["repo"]), ("state", _state(job))]
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
    facts.append(("labels", ", ".join(job.get("labels", []))))
    return facts


def _story(moments: list[dict[str, Any]]) -> list[tuple[str, str, str, str]]:
    from orchestrator.surface.cli.terminal import seconds

    rows = []
    before: float | None = None
    for moment in moments:
        at = float(moment["at"])
        clock = time.strftime("%H:%M:%S", time.gmtime(at)) + f".{int(at * 10) % 10}"
        rows.append(
            (clock, "" if before is None else "+" + seconds(at - before), moment["what"], moment.get("detail", ""))
        )
        before = at
    return rows
