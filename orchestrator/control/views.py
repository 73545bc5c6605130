"""Jobs, runners and hosts as the API shows them: plain JSON, times in seconds since the epoch, no secret.

A job's timeline is its own story and that of every runner it had, in one line of time, each moment with the time that
passed until the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from orchestrator.control.drain_api import drain_view
from orchestrator.control.explain_wait import Waiting, with_wait
from orchestrator.control.observe import taken_by
from orchestrator.control.records import JobRecord, RunnerRecord, Sighting
from orchestrator.control.stages import stages
from orchestrator.core.decided import Drain
from orchestrator.core.job import Moment
from orchestrator.core.machine import Capacity
from orchestrator.core.placement import HostView, free_of
from orchestrator.core.quarantine import Ward, of_host, of_image
from orchestrator.core.runner_release import Releases, age_of, why_not
from orchestrator.core.wire import Image, Observed


def job_view(record: JobRecord) -> dict[str, Any]:
    job = record.job
    view: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(job, story=()))
    view |= {
        "state": job.state,
        "served": job.served,
        "reason": job.reason or record.permanent,
        "waiting": not job.over and job.state != "in_progress" and job.served not in ("ignored", "elsewhere"),
        "runner": job.runner or (record.runners[-1] if record.runners else ""),
        "runners": list(record.runners),
        "over_at": record.over_at,
        "loss": record.loss,
        "rerun": msgspec.to_builtins(record.rerun) if record.rerun else None,
    }
    return view


def job_story(
    record: JobRecord, runners: Iterable[RunnerRecord], now: float, *, wait: Waiting | None = None
) -> dict[str, Any]:
    """`job_view` with its ``stages``, the whole timeline as its ``story``, and all that is known of its runners."""
    known = list(runners)
    view = with_wait(job_view(record), wait, record.job.created_at, now)
    way = msgspec.to_builtins(stages(record, known, now, kind=wait.kind if wait else "", reason=view["reason"]))
    told = [("job", moment) for moment in record.job.story]
    for runner in known:
        told += [(runner.id, moment) for moment in runner.story]
    told.sort(key=lambda item: item[1].at)
    timeline = [
        {"at": m.at, "who": who, "what": m.what, "detail": m.detail, "lasted": _until(m, following)}
        for (who, m), following in zip(told, [*(m for _, m in told[1:]), None], strict=True)
    ]
    return view | {"stages": way, "story": timeline, "made_for_it": [runner_story(runner) for runner in known]}


def runner_story(record: RunnerRecord) -> dict[str, Any]:
    """`runner_view` with its story."""
    return runner_view(record) | {"story": [msgspec.to_builtins(moment) for moment in record.story]}


def runner_view(record: RunnerRecord) -> dict[str, Any]:
    life = record.life
    return {
        "id": record.id,
        "name": record.name,
        "phase": life.phase,
        "since": life.since,
        "deadline": life.deadline,
        "created_at": life.created_at,
        "host": life.host,
        "class": life.machine.name,
        "machine": msgspec.to_builtins(life.machine),
        "org": life.org,
        "repo": record.identity.repo or life.repo,
        "labels": list(life.labels),
        "meant_for": life.meant_for,
        "job_id": life.job_id,
        "registration": life.registration,
        "github_id": life.github_id,
        "vm": life.vm,
        "bound": bool(life.bound),
        "policy": record.policy,
        "refused": record.refused,
        "fencing": life.fencing,
        "reason": life.reason,
        "detail": life.detail,
        "waiting": record.waiting,
        "alarms": life.alarms,
        "marks": record.marks,
        "start": record.start,
        "cold_because": record.cold_because,
        "exit_code": record.exit_code,
        "failure": msgspec.to_builtins(record.failure) if record.failure else None,
        "proof": _proof(record),
    }


def host_view(
    host: str,
    sighting: Sighting | None,
    runners: Iterable[RunnerRecord],
    now: float,
    *,
    away_s: float = 15.0,
    cordon: str | None = None,
    drain: Drain | None = None,
    ward: Ward = Ward(),  # noqa: B008 - it can't be changed
    releases: Releases = Releases(),  # noqa: B008 - neither can this
) -> dict[str, Any]:
    """A host with what it has, gives and complains of.

    ``state``: ``unseen`` (never reported), ``away`` (silent for ``away_s``), ``draining``, ``drained`` (it has no runner
    left), ``cordoned``, ``quarantine`` (starts on it failed), ``refuses`` (it has a problem) or ``up``.  ``cordon``: the reason that an admin gave for cordoning it; None where none did.
    """
    mine = list(runners)
    if sighting is None:
        return {
            "host": host,
            "state": "unseen",
            "cordoned": cordon is not None,
            "drain": drain_view(drain, mine, now) if drain else None,
            "runners": [record.id for record in mine],
        }
    seen, quarantine = sighting.observed, ward.held.get(of_host(host))
    taken = tuple(taken_by(record) for record in mine)
    free = free_of(HostView(name=host, capacity=seen.capacity, taken=taken))
    return {
        "host": host,
        "state": _state(sighting, now, away_s, cordoned=cordon is not None, held=quarantine is not None)
        if drain is None
        else _drain_state(sighting, now, away_s, empty=not mine),
        "silent_s": round(max(0.0, now - sighting.at), 1),
        "boot": seen.boot,
        "accelerator": seen.accelerator,
        "version": seen.version,
        "cordoned": seen.cordoned or cordon is not None,
        "drain": drain_view(drain, mine, now) if drain else None,
        "cordon": cordon or "",
        "quarantine": msgspec.to_builtins(quarantine) if quarantine else None,
        "unfit": _unfit(seen, ward, releases, now),
        "runner_ages": {image.name: _age(image, releases, now) for image in seen.images},
        "capacity": _capacity(seen.capacity),
        "free": _capacity(free),
        "images": msgspec.to_builtins(seen.images),
        "problems": msgspec.to_builtins(seen.problems),
        "templates": msgspec.to_builtins(seen.templates),
        "warm": msgspec.to_builtins(seen.warm),
        "generation": seen.generation,
        "runners": [record.id for record in mine],
    }


def _unfit(seen: Observed, ward: Ward, releases: Releases, now: float) -> dict[str, str]:
    """Images that get no runner, and why."""
    held = {image.name: ward.held.get(of_image(image.digest)) for image in seen.images}
    late = {image.name: why_not(releases, image.digest, image.runner_version, now) for image in seen.images}
    return {name: why for name, why in late.items() if why} | {name: one.reason for name, one in held.items() if one}


def _age(image: Image, releases: Releases, now: float) -> dict[str, Any]:
    """How long GitHub will take the image's runner."""
    age = age_of(image.runner_version, releases, now)
    return {
        "version": image.runner_version,
        "standing": age.standing,
        "newer": age.newer,
        "days_left": None if age.days_left is None else round(age.days_left, 1),
        "text": age.text,
    }


def runners_by_host(runners: Iterable[RunnerRecord]) -> Mapping[str, list[RunnerRecord]]:
    found: dict[str, list[RunnerRecord]] = {}
    for record in runners:
        if record.life.host:
            found.setdefault(record.life.host, []).append(record)
    return found


def _state(sighting: Sighting, now: float, away_s: float, *, cordoned: bool, held: bool) -> str:
    if now - sighting.at > away_s:
        return "away"
    if sighting.observed.cordoned or cordoned:
        return "cordoned"
    if held:
        return "quarantine"
    return "refuses" if any(not problem.over for problem in sighting.observed.problems) else "up"


def _drain_state(sighting: Sighting, now: float, away_s: float, *, empty: bool) -> str:
    if empty:
        return "drained"
    return "away" if now - sighting.at > away_s else "draining"


def _until(moment: Moment, following: Moment | None) -> float | None:
    return round(following.at - moment.at, 3) if following is not None else None


def _capacity(capacity: Capacity) -> dict[str, int]:
    view: dict[str, int] = msgspec.to_builtins(capacity)
    return view


def _proof(record: RunnerRecord) -> dict[str, Any] | None:
    """What was looked for and not found, on the host and at GitHub; None where there was no look yet."""
    if record.proof is None and record.life.phase != "GONE":
        return None
    found = msgspec.to_builtins(record.proof) if record.proof is not None else {}
    whole = record.life.vm == "none" or (record.proof is not None and record.proof.whole)
    registration = record.life.registration in ("none", "gone")
    return {**found, "registration": registration, "whole": whole and registration}
