"""From deliveries and GitHub's answers to job records: merged by rank, classed by label, matched with runners.

Events come twice, late and out of order, and a job can be heard of first when it is over: everything here asks what is
so now, never what has just changed.
"""

from __future__ import annotations

import msgspec

from orchestrator.control.github import Installation
from orchestrator.control.records import JobRecord
from orchestrator.control.renamed import follow_name
from orchestrator.control.world import World
from orchestrator.core.job import Job, merge, tell
from orchestrator.core.machine import Match, match_labels
from orchestrator.core.names import ulid_of
from orchestrator.core.runner import JobCompleted, JobStarted


def learn(world: World, seen: Job, installation: Installation, finished: JobRecord | None) -> JobRecord:
    """Merge ``seen`` into what is known; ``finished``: the record where the job was put away already.

    The job is in ``world`` afterwards, unless nothing new can come of it.
    """
    org = installation.account if installation.organization else ""
    seen = msgspec.structs.replace(seen, installation=installation.id, org=org)
    known = world.jobs.get(seen.id)
    if known is not None and seen.repo_id and seen.repo != known.job.repo:
        follow_name(world, known.job, seen.repo)
    known = world.jobs.get(seen.id) or finished
    if known is None:
        record = JobRecord(job=seen)
    else:
        merged = merge(known.job, seen)
        # What the API says of a job is under the name that it was asked by.
        repo = known.job.repo if known.job.repo_id and not seen.repo_id else seen.repo
        merged = msgspec.structs.replace(merged, repo=repo, installation=installation.id, org=org)
        for moment in seen.story:
            merged = tell(merged, moment.at, moment.what, moment.detail)
        record = msgspec.structs.replace(known, job=merged)
    record = msgspec.structs.replace(record, checked_at=world.now)
    if record.job.over and not record.over_at:
        record = msgspec.structs.replace(record, over_at=world.now)
        record = _told(record, world.now, "over", record.job.conclusion)
    if known is not None and known.job.over and known is finished:
        return known
    world.put_job(_classed(world, record))
    return world.jobs[seen.id]


def settle(world: World) -> None:
    """Have every runner learn what GitHub says of the job that it has."""
    for record in list(world.jobs.values()):
        job = record.job
        runner_id = ulid_of(job.runner_name) if job.runner_name else None
        if job.state not in ("in_progress", "completed") or runner_id is None:
            if job.state == "in_progress" and job.runner_name and job.served in ("yes", "no"):
                world.change_job(job.id, served="elsewhere", reason=f"runner {job.runner_name!r} has it")
                world.tell_job(job.id, "served_elsewhere", job.runner_name)
            continue
        if runner_id not in world.runners:
            continue
        if not job.runner:
            world.change_job(job.id, runner=runner_id, served="yes", reason="")
            world.tell_job(job.id, "assigned", job.runner_name)
            if runner_id not in world.jobs[job.id].runners:
                known = world.jobs[job.id]
                world.put_job(msgspec.structs.replace(known, runners=(*known.runners, runner_id)))
        if job.state == "completed":
            world.happen(runner_id, JobCompleted(job.id, job.conclusion))
        else:
            world.happen(runner_id, JobStarted(job.id))


def class_of(world: World, job: Job) -> Match:
    return match_labels(job.labels, world.settings.classes)


def _classed(world: World, record: JobRecord) -> JobRecord:
    """With ``served`` set to ``ignored`` where no class of ours fits; what is served is decided with its policy."""
    job = record.job
    if job.served not in ("no", "ignored"):
        return record
    match = class_of(world, job)
    if match.machine is not None:
        if job.served == "ignored":
            record = msgspec.structs.replace(record, job=msgspec.structs.replace(job, served="no", reason=""))
        return _told(record, world.now, "class_matched", match.reason)
    ignored = msgspec.structs.replace(job, served="ignored", reason=match.reason)
    return _told(msgspec.structs.replace(record, job=ignored), world.now, "ignored", match.reason)


def _told(record: JobRecord, at: float, what: str, detail: str) -> JobRecord:
    if any((moment.what, moment.detail) == (what, detail) for moment in record.job.story):
        return record
    return msgspec.structs.replace(record, job=tell(record.job, at, what, detail))
