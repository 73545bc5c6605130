"""Each job's story tells what the job waited for, whoever made it wait: a line when a wait begins or becomes another.

What a job waits for can change to and fro with every look.  So where one did that may (`TO_AND_FRO`), the next one
is told only after a minute.
"""

from __future__ import annotations

import msgspec

from orchestrator.control.records import JobRecord, RunnerRecord
from orchestrator.control.standing import REMOVED, SUSPENDED
from orchestrator.control.world import ON_ITS_WAY, World
from orchestrator.core.job import STORY_LIMIT, Moment

WAITS = "waits_for_"
TELL_S = 60.0
"""A job's story tells no more often what it waits for."""
TO_AND_FRO = ("quota", "room", "github")
"""Waits that can take turns with every look."""
APPROVAL = "GitHub holds it back: an environment's approval or a concurrency group"
READING = "its repository's policy is being read"
KINDS = {"quota": "quota", "room": "room", "turn": "turn", "class": "class", "hosts": "hosts", "away": "app"}
"""Kinds of waits before there is a runner, and what the story calls them.  A pause is told by the failure before it."""


def tell_wait(world: World, job_id: int, kind: str, reason: str) -> None:
    """Have the story of a job say that it waits for ``kind``; empty where it waits for nothing that has to be told."""
    record = world.jobs[job_id]
    if record.told == kind:
        return
    last = record.job.story[-1] if record.job.story else None
    if kind and record.told in TO_AND_FRO:
        since = next((moment.at for moment in reversed(record.job.story) if moment.what.startswith(WAITS)), 0.0)
        if world.now - since < TELL_S:
            return
    if kind and not (kind == "app" and last is not None and last.what in (SUSPENDED, REMOVED)):
        _add(world, record, Moment(world.now, WAITS + kind, reason))
    world.put_job(msgspec.structs.replace(world.jobs[job_id], told=kind))


def _add(world: World, record: JobRecord, moment: Moment) -> None:
    """Also where the story's last line says the same: what ended that wait may stand in the story of a runner."""
    world.change_job(record.job.id, story=(*record.job.story, moment)[-STORY_LIMIT:])


def tell_of_github(world: World, runner: RunnerRecord, reason: str) -> tuple[str, str]:
    """The kind and the words of a wait for a runner that is on its way, where GitHub is what it waits for."""
    if world.outage_since:
        waits = reason if runner.life.phase == "WANTED" else f"GitHub doesn't answer; {reason}"
        return "github", waits
    return ("github", reason) if runner.life.phase == "WANTED" and runner.waiting else ("", "")


def tell_before_the_line(world: World) -> None:
    """The waits of jobs that can't be served yet: for a person, or for their policy."""
    for record in list(world.jobs.values()):
        kind, reason = _before_the_line(world, record)
        if kind:
            tell_wait(world, record.job.id, kind, reason)


def hold_back(world: World, why: str) -> None:
    """No runner is made for anybody, since no policy could be kept."""
    runners = {r.life.meant_for for r in world.runners.values() if r.life.phase in ON_ITS_WAY}
    for record in list(world.jobs.values()):
        if record.job.wants_runner and not record.permanent and record.job.id not in runners:
            world.change_job(record.job.id, reason=why)
            tell_wait(world, record.job.id, "archive", why)


def _before_the_line(world: World, record: JobRecord) -> tuple[str, str]:
    job = record.job
    if job.state in ("waiting", "queued") and job.served == "no" and job.installation in world.away:
        return "app", world.away[job.installation]
    if job.state == "waiting" and job.served != "ignored":
        return "approval", job.reason or APPROVAL
    if job.state == "queued" and job.served == "no":
        return "policy", job.reason or READING
    return "", ""
