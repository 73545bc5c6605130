"""What a run of the demo has to show: for people on the terminal, for programs in ``demo.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import typer

from orchestrator.surface.attempts import Attempt
from orchestrator.surface.cli.terminal import clean, print_table, seconds, size
from orchestrator.surface.demo.judge import Check
from orchestrator.surface.timeline import Span

PROOF_PARTS = ("domain", "disk", "seed", "channel", "tap", "chain", "l2_chain", "map_entry", "gateway", "registration")


class JobReport(msgspec.Struct, frozen=True):
    """One job.  ``proof`` says of each of `PROOF_PARTS` whether it was looked for and not there."""

    id: int
    name: str
    conclusion: str
    runner: str
    timeline: tuple[Span, ...]
    egress: tuple[Attempt, ...]
    proof: Mapping[str, bool]
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        return self.conclusion == "success" and all(check.ok for check in self.checks) and _whole(self.proof)


class Report(msgspec.Struct, frozen=True):
    accelerator: str
    jobs: tuple[JobReport, ...]
    checks: tuple[Check, ...]
    """What holds of the run as a whole."""
    took_s: float

    @property
    def ok(self) -> bool:
        return bool(self.jobs) and all(job.ok for job in self.jobs) and all(check.ok for check in self.checks)


def _whole(proof: Mapping[str, bool]) -> bool:
    return all(proof.get(part, False) for part in PROOF_PARTS)


def as_json(report: Report) -> dict[str, Any]:
    """``timeline``, ``egress``, ``proof`` and ``ok``, with each job's own under ``jobs``."""
    return {
        "ok": report.ok,
        "accelerator": report.accelerator,
        "took_s": round(report.took_s, 1),
        "timeline": [{"job": job.name, **_plain(span)} for job in report.jobs for span in job.timeline],
        "egress": [{**_plain(attempt), "job": job.name} for job in report.jobs for attempt in job.egress],
        "proof": {part: all(job.proof.get(part, False) for job in report.jobs) for part in PROOF_PARTS},
        "checks": [_plain(check) for check in report.checks],
        "jobs": [
            {
                "id": job.id,
                "name": job.name,
                "conclusion": job.conclusion,
                "runner": job.runner,
                "ok": job.ok,
                "proof": dict(job.proof),
                "checks": [_plain(check) for check in job.checks],
            }
            for job in report.jobs
        ],
    }


def _plain(value: msgspec.Struct) -> dict[str, Any]:
    return msgspec.structs.asdict(value)


def write(report: Report, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(as_json(report)), indent=2) + b"\n")


def show(report: Report) -> None:
    for job in report.jobs:
        _show_job(job, many=len(report.jobs) > 1)
    typer.echo("")
    print_table(("", "the run as a whole", "seen"), _rows(report.checks))
    typer.echo("")
    kind = "emulated" if report.accelerator == "tcg" else report.accelerator
    verdict = "Everything holds." if report.ok else "NOT everything holds: see the lines marked FAIL."
    typer.echo(f"{verdict}  {len(report.jobs)} job(s) on {kind} machines, {seconds(report.took_s)} in all.")


def _show_job(job: JobReport, *, many: bool) -> None:
    typer.echo(f"\nJob {clean(job.name)} ({job.id}) on {clean(job.runner)}: {clean(job.conclusion)}\n")
    print_table(
        ("#at", "#took", "phase"),
        ((seconds(span.since_start_s), seconds(span.duration_s), span.phase) for span in job.timeline),
    )
    typer.echo("")
    if many and job.ok:
        typer.echo(f"  {len(job.egress)} egress events, {len(job.checks)} checks hold, all gone.")
        return
    columns = ("egress to", "#port", "protocol", "verdict", "reason", "rule", "#up", "#down")
    print_table(columns, (_egress_row(attempt) for attempt in job.egress))
    typer.echo("")
    print_table(("", "the wall", "seen"), _rows(job.checks))
    typer.echo("")
    gone = ((("ok", "FAIL")[not job.proof.get(part, False)], part.replace("_", " ")) for part in PROOF_PARTS)
    print_table(("", "looked for after the end, and not there"), gone)


def _rows(checks: Sequence[Check]) -> list[tuple[str, str, str]]:
    return [("ok" if check.ok else "FAIL", check.name, check.seen) for check in checks]


def _egress_row(attempt: Attempt) -> tuple[object, ...]:
    moved = attempt.verdict != "blocked" and attempt.protocol != "dns"
    return (
        attempt.name,
        attempt.port or "",
        attempt.protocol,
        attempt.verdict,
        attempt.reason + (f" (x{attempt.count})" if attempt.count > 1 else ""),
        attempt.rule,
        size(attempt.bytes_up) if moved else "",
        size(attempt.bytes_down) if moved else "",
    )
