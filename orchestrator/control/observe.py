"""From what the hosts report to what has happened to their runners."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import msgspec

from orchestrator.control.outage import HELD
from orchestrator.control.quarantine import said
from orchestrator.control.records import RunnerRecord, Sighting
from orchestrator.control.world import IDLED, LIVE, World
from orchestrator.core.clocks import UNKNOWN_WAY_S, skew_of_sender
from orchestrator.core.listening import silence
from orchestrator.core.machine import MachineClass
from orchestrator.core.placement import HostView
from orchestrator.core.runner import HostLost, PolicyBound, RunnerExited, RunnerListened, Ticked, VmFailed, VmProvedGone
from orchestrator.core.wire import ObservedRunner

SKEW_S = 300.0
"""A clock that is further off than this breaks the runner's sign-in (OAuth)."""


def observe(world: World) -> None:
    """Take in every report, and the silence of hosts that send none; then let time pass."""
    by_host = world.by_host()
    for host, sighting in world.sightings.items():
        lost = silence(sighting.at, world.listening, world.now) > world.settings.pace.host_lost_s
        seen = {runner.id: runner for runner in sighting.observed.runners}
        world.rollout.seen(sighting.observed.images)
        for record in by_host.get(host, ()):
            if lost:
                world.happen(record.id, HostLost())
            elif record.id in seen:
                _observe_runner(world, record.id, seen[record.id])
            else:
                _observe_absence(world, record, sighting)
    for record in list(world.runners.values()):
        if not (world.outage_since and record.life.phase in HELD):
            world.happen(record.id, Ticked())


def strays(world: World) -> Iterator[tuple[str, ObservedRunner]]:
    """Host and runner for each machine that hosts have and we know nothing of (any more)."""
    for host, sighting in world.sightings.items():
        for runner in sighting.observed.runners:
            if runner.id not in world.runners and not (runner.proof is not None and runner.proof.whole):
                yield host, runner


def host_views(world: World) -> list[HostView]:
    """The hosts as placement sees them."""
    views = []
    by_host = world.by_host()
    unknown: dict[str, list[MachineClass]] = defaultdict(list)
    for host, stray in strays(world):
        unknown[host].append(taken_by_stray(world, stray))
    for host, sighting in sorted(world.sightings.items()):
        seen = sighting.observed
        silent = world.now - sighting.at
        views.append(
            HostView(
                name=host,
                capacity=seen.capacity,
                taken=(*(taken_by(record) for record in by_host.get(host, ())), *unknown[host]),
                images=frozenset(image.name for image in seen.images),
                alive=silent <= world.settings.pace.host_away_s,
                cordoned=seen.cordoned or host in world.cordoned,
                why="is being drained" if host in world.draining else "",
                unfit=_unfit(world, sighting),
                refuses=_refuses(world, sighting),
            )
        )
    return views


def skew_of(sighting: Sighting) -> float:
    """How far the host's clock is ahead of ours, in seconds, as far as the network can't explain it."""
    seen = sighting.observed
    return skew_of_sender(seen.at, sighting.at, seen.took_s or UNKNOWN_WAY_S)


def _refuses(world: World, sighting: Sighting) -> str:
    """Why the host gets no runner, beside what an admin wants; empty where nothing is wrong with it."""
    seen = sighting.observed
    held = world.quarantines.host(seen.host)
    if held is not None:
        return said(held)
    if seen.host in world.undecided:
        return "has machines of which GitHub doesn't say yet whether they are ours, and is told nothing new until then"
    if abs(skew_of(sighting)) > SKEW_S:
        return f"has a clock that is {skew_of(sighting):+.0f} s off: GitHub would refuse its runners"
    standing = [problem for problem in seen.problems if problem.code != "image-missing" and not problem.over]
    problems = "; ".join(f"{problem.code}: {problem.message}" for problem in standing)
    return f"reports {problems}" if problems else ""


def _unfit(world: World, sighting: Sighting) -> dict[str, str]:
    """The host's images that get no runner, and why."""
    found = {}
    for image in sighting.observed.images:
        held = world.quarantines.image(image.digest)
        why = said(held) if held is not None else world.rollout.why_not(image)
        if why:
            found[image.name] = why
    return found


def taken_by(record: RunnerRecord) -> MachineClass:
    """What a runner takes of its host: only its disk, once its VM is seen dead, until all is proved gone."""
    machine, ends = record.life.machine, record.life.phase == "DESTROYING"
    if ends and record.marks.keys() & {"vm_dead", "domain_gone"}:
        return msgspec.structs.replace(machine, vcpus=0, memory_mib=0, gpus=0)
    return machine


def taken_by_stray(world: World, stray: ObservedRunner) -> MachineClass:
    """What a machine takes that nobody here knows: until it is proved gone it may be of the largest class."""
    classes = list(world.settings.classes.values())
    dead = stray.vm in ("absent", "stopped", "crashed", "failed")
    return MachineClass(
        name="unknown",
        vcpus=0 if dead else max(one.vcpus for one in classes),
        memory_mib=0 if dead else max(one.memory_mib for one in classes),
        disk_gib=max(one.disk_gib for one in classes),
        gpus=0 if dead else max(one.gpus for one in classes),
    )


def _observe_runner(world: World, runner_id: str, seen: ObservedRunner) -> None:
    record = _with_marks(world, world.runners[runner_id], seen)
    world.put_runner(record)
    if record.life.phase not in LIVE:
        if record.proof is not None and record.proof.whole:
            world.happen(runner_id, VmProvedGone())
        return
    if "runner_listening" in record.marks:
        world.happen(runner_id, RunnerListened())
    if record.bound and seen.policy == record.policy and seen.generation >= record.generation:
        world.happen(runner_id, PolicyBound(record.policy))
    stopped = seen.failure is not None and (seen.exit_code == 0 or seen.failure.code == IDLED)
    if (seen.exit_code is not None or "runner_exited" in record.marks) and not stopped:
        world.happen(runner_id, RunnerExited(seen.exit_code if seen.exit_code is not None else 0))
    elif seen.failure is not None:
        world.happen(runner_id, VmFailed(seen.failure.code, seen.failure.message))
    elif seen.vm in ("stopped", "crashed", "failed") or (seen.vm == "absent" and "domain_started" in record.marks):
        world.happen(runner_id, VmFailed(f"vm_{seen.vm}", "the machine ended by itself"))


def _observe_absence(world: World, record: RunnerRecord, sighting: Sighting) -> None:
    """A host that has read the wish for it, had begun with it, and doesn't name it any more, has lost it."""
    known = world.sums.get(sighting.observed.host)
    has_read = known is not None and sighting.observed.generation == known.generation
    if has_read and record.marks and record.life.phase in LIVE:
        world.happen(record.id, VmFailed("vm_lost", f"host {sighting.observed.host} has it no more"))


def _with_marks(world: World, record: RunnerRecord, seen: ObservedRunner) -> RunnerRecord:
    fresh = {mark: at for mark, at in seen.marks.items() if mark not in record.marks}
    for mark, at in sorted(fresh.items(), key=lambda item: item[1]):
        record = record.tell(at, mark)
    if fresh:
        world.progress = True
    if seen.start and not record.start:
        world.count(f"starts{{how={seen.start}}}")
    return msgspec.structs.replace(
        record,
        marks={**record.marks, **fresh},
        failure=seen.failure or record.failure,
        proof=seen.proof or record.proof,
        exit_code=seen.exit_code if seen.exit_code is not None else record.exit_code,
        start=seen.start or record.start,
        cold_because=seen.cold_because or record.cold_because,
    )
