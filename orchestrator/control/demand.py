"""How many runners there should be: as many as jobs that wait, for each place and set of labels, no more and no fewer.

Runners aren't pinned to jobs, so what counts is the number: a runner whose job was taken by another serves the next one,
and one too many is given back.  A runner is made only when there is a host for it: jobs wait, and runners don't.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from orchestrator.control.line import SURPLUS, Line, failed_on
from orchestrator.control.records import JobRecord, RunnerRecord
from orchestrator.control.told_waits import KINDS, tell_of_github, tell_wait
from orchestrator.control.warm import Ids, Waiting
from orchestrator.control.world import ON_ITS_WAY, World
from orchestrator.core.placement import Placed as PlacedOn
from orchestrator.core.runner import Placed, Withdrawn
from orchestrator.core.turns import Dealt, Given, Wait

NO_JOB = "its runner was ready, and GitHub gave it no job: does the runner group allow this repository?"
FRESH = 200
"""So many jobs have the figures in their reason brought up to date in one look; what they wait for, always."""


def meet_demand(world: World, make_id: Callable[[], str], machines: Iterable[Waiting] = ()) -> None:
    """Want runners for jobs that have none on its way, each with its host, and withdraw those too many.

    ``machines`` wait on hosts: a new runner is one of them where one fits.
    """
    ids = Ids(machines, make_id)
    give_up(world)
    line = Line(world)
    withdraw_surplus(world, line)
    house(world, line)
    dealt = line.deal(ids.hosts())
    for given in dealt.given:
        want(world, given, ids)
    give_reasons(world, line, dealt)


def give_up(world: World) -> None:
    """Make no more runners for a job whose runners all failed."""
    limit = len(world.settings.pace.replace_s)
    for record in list(world.jobs.values()):
        job = record.job
        if job.replacements <= limit or not job.wants_runner or record.permanent or _is_served(world, job.id):
            continue
        last = next((m.detail for m in reversed(job.story) if m.what == "runner_failed"), "")
        why = NO_JOB if last.endswith(": idle") else last
        world.give_up(job.id, f"{job.replacements} runners failed; the last one: {why}")


def _is_served(world: World, job_id: int) -> bool:
    record = world.jobs[job_id]
    known = (world.runners.get(runner_id) for runner_id in record.runners)
    return world.now < record.not_before or any(
        runner is not None and runner.life.phase in ON_ITS_WAY for runner in known
    )


def withdraw_surplus(world: World, line: Line) -> None:
    for group, coming in line.coming.items():
        free = [record for record in coming if not record.life.fencing]
        surplus = max(0, len(coming) - len(line.waiting.get(group, ())))
        for record in _youngest_first(free)[:surplus]:
            world.happen(record.id, Withdrawn(SURPLUS))


def _youngest_first(runners: list[RunnerRecord]) -> list[RunnerRecord]:
    """Those that cost least to give back first: without a registration, then the latest."""
    return sorted(runners, key=lambda r: (r.life.phase != "WANTED", r.life.phase == "READY", -r.life.created_at, r.id))


def house(world: World, line: Line) -> None:
    """Find another host for runners that lost theirs before they were registered."""
    homeless = [r for r in world.runners.values() if r.life.phase == "WANTED" and not r.life.host]
    for record in sorted(homeless, key=lambda record: (record.life.created_at, record.id)):
        job = world.jobs.get(record.life.meant_for)
        found = line.rooms.place(record.life.machine, avoid=failed_on(job) if job is not None else ())
        if isinstance(found, PlacedOn):
            world.happen(record.id, Placed(found.host))
        else:
            world.change_runner(record.id, waiting=found.reason)


def want(world: World, given: Given, ids: Ids) -> None:
    """A runner comes into being for a job, on the host that has room for it."""
    runner = world.want(ids.next(given.machine, given.host), world.jobs[given.job].job, given.machine)
    world.happen(runner.id, Placed(given.host))


# What each job waits for


def give_reasons(world: World, line: Line, dealt: Dealt) -> None:
    """Say on each waiting job what it waits for: at once where that changed, and a few of its figures in each look."""
    runners = {r.life.meant_for: r for r in world.runners.values() if r.life.phase in ON_ITS_WAY}
    fresh = 0
    for job_id in [record.job.id for records in line.waiting.values() for record in records]:
        record = world.jobs[job_id]
        runner = runners.get(job_id)
        kind, reason = reason_of(world, line, dealt, record, runner)
        _tell(world, job_id, kind, reason, runner)
        if record.job.reason == reason:
            continue
        if record.wait == kind and kind:
            fresh += 1
            if fresh > FRESH:
                continue
        world.change_job(job_id, reason=reason)
        if record.wait != kind:
            world.put_job(msgspec.structs.replace(world.jobs[job_id], wait=kind))


def _tell(world: World, job_id: int, kind: str, reason: str, runner: RunnerRecord | None) -> None:
    if runner is None:
        told = KINDS.get(kind, "")
    elif kind:
        told = KINDS[kind]
    else:
        told, reason = tell_of_github(world, runner, reason)
    tell_wait(world, job_id, told, reason)


def reason_of(
    world: World, line: Line, dealt: Dealt, record: JobRecord, runner: RunnerRecord | None
) -> tuple[str, str]:
    """The kind of a wait (empty where it is one for its runner) and its words."""
    if record.job.installation in world.away:
        return "away", world.away[record.job.installation]
    if runner is not None:
        return "", _runners_reason(world, runner)
    if record.permanent:
        return "", record.permanent
    if world.now < record.not_before:
        return "pause", "a runner failed; the next one is made after a pause"
    machine = line.class_of(record)
    if machine.machine is None:
        return "class", machine.reason
    wait = dealt.waits.get(line.lane_of.get(record.job.id), _for_word_of(world.unheard) or _ITS_TURN)
    return wait.kind, wait.reason


_ITS_TURN = Wait("turn", "it waits for its turn")


def _for_word_of(hosts: Sequence[str]) -> Wait | None:
    why = "the control plane has begun anew, and host {} hasn't said yet what it runs"
    return Wait("hosts", why.format(hosts[0])) if hosts else None


def _runners_reason(world: World, runner: RunnerRecord) -> str:
    life = runner.life
    match life.phase:
        case "WANTED" if not life.host:
            return runner.waiting or "a host is being found"
        case "WANTED" if world.outage_since:
            return "GitHub doesn't answer; its runner is registered as soon as it does"
        case "WANTED":
            return runner.waiting or "its runner is being registered at GitHub"
        case "BOOTING":
            return f"its runner boots on host {life.host}"
        case _:
            return f"its runner on host {life.host} is ready; GitHub is about to give it the job"
