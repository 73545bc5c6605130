"""What each host should have, out of the runners that are on it: written only where it differs from what it was."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterable

import msgspec

from orchestrator.control.records import RunnerRecord, Sum
from orchestrator.control.world import LIVE, World
from orchestrator.core.flow import Identity
from orchestrator.core.machine import MachineClass
from orchestrator.core.policy import Policy
from orchestrator.core.wire import Desired, DesiredRunner, Scope

IDLE_GRACE_S = 120.0
"""A host waits so much longer than we do before it ends a runner that has no job."""
PolicyOf = Callable[[str], Awaitable[Policy | None]]


async def desired_of(
    world: World, host: str, records: Iterable[RunnerRecord], strays: Iterable[str], policy_of: PolicyOf
) -> tuple[Desired, str] | None:
    """The new `Desired` of ``host`` and its digest; None where it is as it was.  ``strays`` should be gone.

    The JIT configurations aren't in it: whoever hands it to the host adds them.
    """
    runners = []
    for record in sorted(records, key=lambda record: record.id):
        wished = await _wished(world, record, policy_of)
        if wished is not None:
            runners.append(wished)
    runners += [_unwanted(world, runner_id) for runner_id in sorted(strays)]
    classes = _classes(world, host)
    since = world.templates_since.get(host, 0.0)
    removed = world.templates_removed.get(host, {})
    decided = world.decided_of(host)
    said = msgspec.json.encode([runners, classes, since, removed, decided], order="deterministic")
    digest = hashlib.sha256(said).hexdigest()
    known = world.sums.get(host)
    if known is not None and known.digest == digest:
        return None
    generation = max(known.generation + 1 if known is not None else 0, int(world.now))
    world.sums[host] = Sum(generation, digest)
    return Desired(host, generation, tuple(runners), classes, since, removed, decided), digest


def _classes(world: World, host: str) -> tuple[MachineClass, ...]:
    """A cordoned host keeps its templates and has no machine waiting."""
    classes = (machine for _, machine in sorted(world.settings.classes.items()))
    return tuple(msgspec.structs.replace(one, warm=0) if host in world.cordoned else one for one in classes)


async def _wished(world: World, record: RunnerRecord, policy_of: PolicyOf) -> DesiredRunner | None:
    life = record.life
    if life.vm != "asked":
        return None
    policy = await policy_of(record.policy) or world.baseline
    run = life.phase in LIVE
    return DesiredRunner(
        id=record.id,
        wish="run" if run else "gone",
        machine=life.machine,
        identity=record.identity,
        policy=policy,
        generation=record.generation,
        bound=record.bound,
        reason="" if run else life.reason,
        refused=record.refused,
        boot_by=record.boot_by,
        end_by=life.deadline if life.phase == "RUNNING" else record.end_by,
        idle_s=idle_s(world, record),
        scope=Scope(org=life.org, repo="" if life.org else life.repo),
    )


def idle_s(world: World, record: RunnerRecord) -> float:
    """After how long its host ends the runner for want of a job; 0 for never.

    Later than we would have GitHub take it back, which alone can know whether a job got in: the host's end is for when
    we are away.  In an outage of GitHub nobody can know, and nothing is ended for that.
    """
    life = record.life
    if life.phase not in ("BOOTING", "READY") or world.outage_since:
        return 0.0
    if life.phase == "BOOTING":
        return round(world.settings.deadlines.ready_s + IDLE_GRACE_S)
    late = life.since - record.marks.get("runner_listening", life.since)
    return round(life.deadline - life.since + IDLE_GRACE_S + (late if late > IDLE_GRACE_S / 2 else 0.0))


def _unwanted(world: World, runner_id: str) -> DesiredRunner:
    """A machine that nobody knows: it should be gone, and what else is said of it doesn't matter."""
    return DesiredRunner(
        id=runner_id,
        wish="gone",
        machine=MachineClass(name="unknown"),
        identity=Identity(runner=runner_id),
        policy=world.baseline,
        generation=1,
        reason="unknown",
    )
