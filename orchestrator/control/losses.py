"""Jobs whose machine ended under them: marked at once, said on their commit, and taken back where GitHub knows better.

What counts stands in `orchestrator.core.loss`.  A silent guest is a loss too, but its machine stays: it may be slow and come
back, and then so does the job.  It ends when GitHub ends the job, or its time is up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import structlog

from orchestrator.control.commit_checks import add_check
from orchestrator.control.github import GitHub, GitHubFailure, RateLimited, Unavailable
from orchestrator.core.loss import HOLD_S, SILENT_S, is_loss, is_quiet, was_reported
from orchestrator.core.names import ulid_of

if TYPE_CHECKING:
    from orchestrator.control.records import JobRecord, RunnerRecord
    from orchestrator.control.world import World

CONTEXT = "ironcd/infrastructure"
BACK = "its machine answers again"
UNHEARD = "its runner ended, and GitHub still waits for it"

log = structlog.get_logger()


def note_end(world: World, runner: RunnerRecord) -> None:
    """A runner has come to its end: what that means for the job that it had."""
    life = runner.life
    record = world.jobs.get(life.job_id)
    if record is None or record.job.state != "in_progress":
        return
    if is_quiet(life.reason, runner.exit_code) or "job_completed" in runner.marks:
        if not record.quiet_at:
            world.put_job(msgspec.structs.replace(record, quiet_at=world.now))
    elif is_loss(life.reason, runner.exit_code):
        why = f"{life.reason}: {life.detail}" if life.detail else life.reason
        _lose(world, record, f"{why} (host {life.host}, runner {runner.name})", world.now)


def note_losses(world: World) -> None:
    """What time and silence bring about, and what GitHub's last word takes back."""
    for record in list(world.jobs.values()):
        job = record.job
        if job.over:
            if record.loss and job.conclusion != "cancelled" and was_reported(job, record.lost_at, record.over_at):
                _take_back(world, record, "its runner had told GitHub of its end")
        elif job.state == "in_progress" and job.served == "yes":
            _look_at(world, record)


def _look_at(world: World, record: JobRecord) -> None:
    runner = world.runners.get(record.job.runner or ulid_of(record.job.runner_name) or "")
    if runner is None:
        if not record.quiet_at:  # it ended before we knew that it had the job
            world.put_job(msgspec.structs.replace(record, quiet_at=world.now))
        elif world.now - record.quiet_at >= HOLD_S:
            _lose(world, record, UNHEARD, record.quiet_at)
    elif runner.life.phase not in ("DESTROYING", "GONE"):
        if record.quiet_at:
            world.put_job(msgspec.structs.replace(record, quiet_at=0.0))
        if runner.life.phase == "RUNNING":
            _listen(world, world.jobs[record.job.id], runner)
    elif record.quiet_at and world.now - record.quiet_at >= HOLD_S:
        _lose(world, record, UNHEARD, record.quiet_at)


def _listen(world: World, record: JobRecord, runner: RunnerRecord) -> None:
    silence = _silence(world, runner)
    if silence >= SILENT_S:
        why = f"its guest has been silent for a minute (host {runner.life.host}, runner {runner.name})"
        _lose(world, record, why, world.now - silence)
    elif record.loss:
        _take_back(world, record, BACK)


def _silence(world: World, runner: RunnerRecord) -> float:
    """For how long its guest has said nothing, by its host's clock, in seconds; 0 where the host doesn't tell."""
    sighting = world.sightings.get(runner.life.host)
    if sighting is None:
        return 0.0
    seen = next((seen for seen in sighting.observed.runners if seen.id == runner.id), None)
    return sighting.observed.at - seen.heard_at if seen is not None and seen.heard_at else 0.0


def _lose(world: World, record: JobRecord, why: str, at: float) -> None:
    if record.loss:
        return
    job = record.job
    log.error("infrastructure_loss", job=job.id, repo=job.repo, why=why)
    world.count("incidents{kind=infrastructure_loss}")
    world.put_job(msgspec.structs.replace(record, loss=why, lost_at=at, checked_at=0.0))
    world.change_job(job.id, reason=f"infrastructure loss: {why}")
    world.tell_job(job.id, "infrastructure_loss", why)


def _take_back(world: World, record: JobRecord, why: str) -> None:
    world.put_job(msgspec.structs.replace(record, loss=""))
    world.change_job(record.job.id, reason="")
    world.tell_job(record.job.id, "no_loss", why)


class LossSayer:
    """Tells commits of losses: a status for everybody, and a check run with the evidence where the App may write checks."""

    def __init__(self, world: World, github: GitHub) -> None:
        self._world = world
        self._github = github

    def unsaid(self) -> list[JobRecord]:
        return [record for record in self._world.jobs.values() if record.loss != record.loss_said]

    async def say(self, record: JobRecord) -> None:
        try:
            await self._tell(record)
        except (Unavailable, RateLimited):
            return
        except GitHubFailure as error:
            self._world.tell_job(record.job.id, "loss_not_said", error.message)
        said = msgspec.structs.replace(self._world.jobs[record.job.id], loss_said=record.loss)
        self._world.put_job(said)

    async def _tell(self, record: JobRecord) -> None:
        job = record.job
        if not job.head_sha:
            return
        context = f"{CONTEXT} ({job.name})" if job.name else CONTEXT
        text = f"Infrastructure loss: {record.loss}" if record.loss else "no loss after all"
        await self._github.set_commit_status(
            job.installation,
            job.repo,
            job.head_sha,
            state="error" if record.loss else "success",
            context=context,
            description=text,
        )
        if not record.loss:
            return
        evidence = self._evidence(record)
        await add_check(self._github, job, name=context, conclusion="neutral", title=text, summary=evidence)

    def _evidence(self, record: JobRecord) -> str:
        """Markdown.  What a guest said last is its own word: shown as it is, and never as markup."""
        parts = [
            "The machine of this job ended, or fell silent, while the job ran. It isn't the job's own failure.",
            f"* what was seen: {record.loss}",
            "* GitHub ends the job as failed by itself, about ten minutes after the machine's last sign of life.",
        ]
        runner = self._world.runners.get(record.job.runner)
        failure = runner.failure if runner is not None else None
        if failure is not None:
            parts.append(f"* {failure.message}" + (f" (libvirt: {failure.domain})" if failure.domain else ""))
        if failure is not None and failure.console:
            parts += ["", "Last lines of its console:", "", "```text", failure.console.replace("```", "'''"), "```"]
        return "\n".join(parts)
