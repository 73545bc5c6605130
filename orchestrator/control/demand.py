"""How many runners there should be: as many as jobs that wait, for each place and set of labels, no more and no fewer.

Runners aren't pinned to jobs, so what counts is the number: a runner whose job was taken by another serves the next one,
and one too many is given back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import msgspec

from orchestrator.control.ingest import class_of
from orchestrator.control.observe import host_views
from orchestrator.control.records import JobRecord, RunnerRecord
from orchestrator.control.warm import Ids, Waiting, place_near
from orchestrator.control.world import ON_ITS_WAY, World, runner_labels
from orchestrator.core.placement import Placed as PlacedOn
from orchestrator.core.placement import place
from orchestrator.core.runner import Placed, Withdrawn

Group = tuple[int, str, tuple[str, ...]]
"""Installation, organisation or repository, labels: runners and jobs of one group fit one another."""
SURPLUS = "surplus"
NO_JOB = "its runner was ready, and GitHub gave it no job: does the runner group allow this repository?"


def meet_demand(world: World, make_id: Callable[[], str], machines: Iterable[Waiting] = ()) -> None:
    """Want runners for jobs that have none on its way, withdraw those too many, and find hosts.

    ``machines`` wait on hosts: a new runner is one of them where one fits.
    """
    ids = Ids(world, machines, make_id)
    jobs, runners = _waiting(world), _on_their_way(world)
    for group in jobs.keys() | runners.keys():
        waiting, coming = jobs.get(group, []), runners.get(group, [])
        free = [record for record in coming if not record.life.fencing]
        for record in _youngest_first(free)[: max(0, len(coming) - len(waiting))]:
            world.happen(record.id, Withdrawn(SURPLUS))
        _want(world, waiting, coming, ids)
    _place(world, ids.taken)
    _give_reasons(world, jobs)


def _waiting(world: World) -> dict[Group, list[JobRecord]]:
    groups: dict[Group, list[JobRecord]] = defaultdict(list)
    for record in sorted(world.jobs.values(), key=lambda record: (record.job.created_at, record.job.id)):
        job = record.job
        if job.wants_runner and not record.permanent:
            groups[job.installation, job.org or job.repo, runner_labels(job.labels)].append(record)
    return groups


def _on_their_way(world: World) -> dict[Group, list[RunnerRecord]]:
    """With those that are being fenced for a fault: they are replaced when GitHub has answered, and not before."""
    groups: dict[Group, list[RunnerRecord]] = defaultdict(list)
    for record in world.runners.values():
        life = record.life
        if life.phase in ON_ITS_WAY and life.fencing != SURPLUS:
            groups[life.installation, life.org or life.repo, life.labels].append(record)
    return groups


def _youngest_first(runners: list[RunnerRecord]) -> list[RunnerRecord]:
    """Those that cost least to give back first: without a registration, then the latest."""
    return sorted(runners, key=lambda r: (r.life.phase != "WANTED", r.life.phase == "READY", -r.life.created_at, r.id))


def _want(world: World, waiting: list[JobRecord], coming: list[RunnerRecord], ids: Ids) -> None:
    meant = {record.life.meant_for for record in coming}
    short = len(waiting) - len(coming)
    for record in waiting:
        if short <= 0:
            return
        if record.job.id in meant:
            continue
        short -= 1
        machine = class_of(world, record.job).machine
        if machine is None or world.now < record.not_before:
            continue
        if record.job.replacements > len(world.settings.pace.replace_s):
            _give_up(world, record)
            continue
        world.want(ids.next(machine, _failed_on(world, record.job.id)), record.job, machine)


def _give_up(world: World, record: JobRecord) -> None:
    last = next((m.detail for m in reversed(record.job.story) if m.what == "runner_failed"), "")
    why = NO_JOB if last.endswith(": idle") else last
    reason = f"{record.job.replacements} runners failed; the last one: {why}"
    world.put_job(msgspec.structs.replace(record, permanent=reason))
    world.change_job(record.job.id, reason=reason)
    world.tell_job(record.job.id, "given_up", reason)


def _place(world: World, warm: Mapping[str, str]) -> None:
    """``warm``: the runners that are machines which wait already, and on which host each does."""
    homeless = [r for r in world.runners.values() if r.life.phase == "WANTED" and not r.life.host]
    views = {view.name: view for view in host_views(world)} if homeless else {}
    for record in sorted(homeless, key=lambda record: (record.life.created_at, record.id)):
        machine = record.life.machine
        avoid = _failed_on(world, record.life.meant_for)
        near = place_near(machine, views, warm.get(record.id), avoid)
        found = PlacedOn(near) if near else place(machine, list(views.values()), avoid=avoid)
        if isinstance(found, PlacedOn):
            world.happen(record.id, Placed(found.host))
            view = views[found.host]
            views[found.host] = msgspec.structs.replace(view, taken=(*view.taken, machine))
        else:
            world.change_runner(record.id, waiting=found.reason)


def _failed_on(world: World, job_id: int) -> set[str]:
    job = world.jobs.get(job_id)
    if job is None:
        return set()
    return {m.detail.partition(":")[0] for m in job.job.story if m.what == "runner_failed"} - {"no host"}


def _give_reasons(world: World, jobs: dict[Group, list[JobRecord]]) -> None:
    """Say on each waiting job what it waits for."""
    meant = {r.life.meant_for: r for r in world.runners.values() if r.life.phase in ON_ITS_WAY}
    for position, job_id in enumerate(record.job.id for group in jobs.values() for record in group):
        runner = meant.get(job_id)
        reason = _reason(world, runner) if runner is not None else _no_runner(world, world.jobs[job_id], position)
        if world.jobs[job_id].job.reason != reason:
            world.change_job(job_id, reason=reason)
            if runner is not None and runner.waiting and reason == runner.waiting:
                _tell_wait(world, job_id, reason)


def _tell_wait(world: World, job_id: int, reason: str) -> None:
    """Numbers in a reason change often: one line a minute is enough of a story."""
    story = world.jobs[job_id].job.story
    if not story or story[-1].what != "waiting" or world.now - story[-1].at >= 60:
        world.tell_job(job_id, "waiting", reason)


def _reason(world: World, runner: RunnerRecord) -> str:
    life = world.runners[runner.id].life
    match life.phase:
        case "WANTED" if not life.host:
            return world.runners[runner.id].waiting or "a host is being found"
        case "WANTED" if world.outage_since:
            return "GitHub doesn't answer; its runner is registered as soon as it does"
        case "WANTED":
            return world.runners[runner.id].waiting or "its runner is being registered at GitHub"
        case "BOOTING":
            return f"its runner boots on host {life.host}"
        case _:
            return f"its runner on host {life.host} is ready; GitHub is about to give it the job"


def _no_runner(world: World, record: JobRecord, position: int) -> str:
    if record.permanent:
        return record.permanent
    if world.now < record.not_before:
        return "a runner failed; the next one is made after a pause"
    return f"a runner of its kind is on its way (place {position + 1} among those that wait)"
