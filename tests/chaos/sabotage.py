"""What must never happen, done on purpose, so that it is seen that the judge sees it: most of it to a system at rest, and
some as a fault of the product's own that is there before all begins.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrator.control import demand, told_waits
from orchestrator.control.world import World
from orchestrator.core.fair_share import FairQueue
from orchestrator.core.link import Limits
from orchestrator.core.names import names_of
from orchestrator.core.sharing import Share
from orchestrator.host.ruleset import VmRules
from orchestrator.simulator.github.state import Job
from tests.chaos.people import Closed

if TYPE_CHECKING:
    from tests.chaos.city import City
    from tests.chaos.oracle import Oracle


def _served(city: City) -> Job:
    jobs = city.github.state.jobs.values()
    return next(job for job in jobs if len(city.taken.get(job.id, [])) == 1 and job.conclusion == "success")


def _serve_twice(city: City) -> None:
    city.taken[_served(city).id].append("another")


def _leave_a_domain(city: City) -> None:
    city.hosts[1].hypervisor.plant(names_of(city.make_id()).domain)


def _leave_a_seed(city: City) -> None:
    (city.hosts[1].paths.seeds / names_of(city.make_id()).seed).touch()


def _leave_a_tap(city: City) -> None:
    city.hosts[2].wires.taps[names_of(city.make_id()).tap] = "host"


def _leave_a_chain(city: City) -> None:
    tap = names_of(city.make_id()).tap
    city.hosts[2].wall.vms[tap] = SimpleNamespace(tap=tap, ranges=())  # type: ignore[assignment]


def _leave_a_record(city: City) -> None:
    (city.hosts[0].paths.records / f"{names_of(city.make_id()).runner}.json").touch()


def _leave_a_registration(city: City) -> None:
    theirs = next(it for it in city.github.state.runners.values() if it.name == "their-runner")
    city.github.state.runners[1] = SimpleNamespace(name=names_of(city.make_id()).runner, owner=theirs.owner)  # type: ignore[assignment]


def _exceed(city: City, kind: str) -> None:
    """Two machines work at once for somebody who may have one."""
    jobs = list(city.github.state.jobs.values())[:2]
    for job in jobs:
        job.status, job.run, job.spec = "in_progress", jobs[0].run, jobs[0].spec
        job.spec.runs_on = ["ironcd"]
        city.hosts[0].guests[city.make_id()] = SimpleNamespace(job=job)  # type: ignore[assignment]
    repo, one = jobs[0].run.repository, Share(runners=1)
    names = {"classes": "ironcd", "organisations": repo.owner.login, "repositories": repo.full_name.lower()}
    sharing = msgspec.structs.replace(city.settings.sharing, **{kind: {names[kind]: one}})
    city.settings = msgspec.structs.replace(city.settings, sharing=sharing, registration="repository")


def _give_a_waiting_one(city: City, what: str) -> None:
    host, ulid = city.hosts[0], city.make_id()
    names = names_of(ulid)
    (host.paths.waiting / f"{names.runner}.json").touch()
    match what:
        case "credential":
            (host.paths.seeds / names.seed).write_text("a registration")
        case "link":
            host.wires.links_up.add(names.tap)
        case _:
            host.wall.vms[names.tap] = VmRules(names.tap, "10.0.0.1", "10.0.0.0", Limits())


def _run_again(city: City, how: str) -> None:
    """As if we had had a job run again that must not be."""
    job = _served(city)
    job.run.attempts[2] = []
    fresh = _copy_of(job, city)
    city.losses[job.id] = "crashed on h1"
    if how == "deployment":
        job.spec.environment = "production"  # type: ignore[misc]
    elif how == "cancelled":
        city.cancelled.add(job.id)
    else:
        del city.losses[job.id]
    city.settings = msgspec.structs.replace(city.settings, rerun_on_infra_loss=("*",))
    city.github.state.jobs[fresh.id] = fresh
    city.taken[fresh.id] = ["another"]


def _copy_of(job: Job, city: City) -> Any:
    made = SimpleNamespace(**{name: getattr(job, name) for name in ("key", "spec", "run", "status", "conclusion")})
    made.id, made.attempt, made.runner = city.github.state.next_id(), 2, None
    made.created_at, made.completed_at = job.created_at, job.completed_at
    return made


async def _use_a_closed_host(city: City, oracle: Oracle) -> None:
    """An admin had closed it before, and a runner was placed there."""
    (runner, *_) = await oracle.store.latest_gone_runners(1)
    assert city.people is not None
    placed = next(moment for moment in runner.story if moment.what == "Placed")
    city.people.closed.append(Closed(placed.detail, "drain", placed.at - 60.0))


async def _leave_a_key(_city: City, oracle: Oracle) -> None:
    await oracle.store.client.set("t:of-nobody", "1")


async def _leave_a_delivery(_city: City, oracle: Oracle) -> None:
    await oracle.store.client.xadd("t:inbox", {"d": "{}"})


async def _say_no_reason(city: City, oracle: Oracle) -> None:
    """A job has waited for an hour, and nothing says for what."""
    (record, *_) = await oracle.store.latest_finished_jobs(1)
    long_since = tuple(msgspec.structs.replace(moment, at=moment.at - 3600.0) for moment in record.job.story)
    job = msgspec.structs.replace(record.job, state="queued", served="yes", reason="", story=long_since)
    raw = msgspec.json.encode(msgspec.structs.replace(record, job=job))
    await oracle.store.client.hset(oracle.store.names.jobs, str(job.id), raw)
    city.worker.running = True
    await oracle.look()


async def _drop_a_reason(city: City, oracle: Oracle) -> None:
    """A job had waited for an hour before it was served, and its story tells no more of it than when that began."""
    job = _served(city)
    record = await oracle.store.job(job.id)
    assert record is not None
    lines = [moment for moment in record.job.story if not moment.what.startswith("waits_for_")]
    job.created_at -= 3600.0
    lines.insert(0, msgspec.structs.replace(lines[0], at=job.created_at, what="queued"))
    since = city.chronicle.eras()[-1].since
    assert job.started_at - max(since, job.created_at) > 120.0
    changed = msgspec.structs.replace(record, job=msgspec.structs.replace(record.job, story=tuple(lines)))
    await oracle.store.client.hset(oracle.store.names.done, str(job.id), msgspec.json.encode(changed))


def _tell_no_waits() -> None:
    """The control plane puts on no job's story what the job waits for."""

    def say_nothing(world: World, job_id: int, kind: str, reason: str) -> None:
        del kind, reason
        world.change_job(job_id)

    demand.tell_wait = told_waits.tell_wait = say_nothing


def _first_come_first_served() -> None:
    """Whoever waits longest gets the next machine, whatever he has."""
    queue: Any = FairQueue
    queue._owner_share = queue._repo_share = lambda _self, _name: 0.0
    queue._level_of = lambda _self, _lane: 0


SABOTAGES: dict[str, Callable[[City], None]] = {
    "serve-twice": _serve_twice,
    "leave-a-domain": _leave_a_domain,
    "leave-a-seed": _leave_a_seed,
    "leave-a-tap": _leave_a_tap,
    "leave-a-chain": _leave_a_chain,
    "leave-a-record": _leave_a_record,
    "leave-a-registration": _leave_a_registration,
    "exceed-a-class": lambda city: _exceed(city, "classes"),
    "exceed-an-organisation": lambda city: _exceed(city, "organisations"),
    "exceed-a-repository": lambda city: _exceed(city, "repositories"),
    "waiting-with-a-credential": lambda city: _give_a_waiting_one(city, "credential"),
    "waiting-with-a-link": lambda city: _give_a_waiting_one(city, "link"),
    "waiting-with-rules": lambda city: _give_a_waiting_one(city, "rules"),
    "run-a-deployment-again": lambda city: _run_again(city, "deployment"),
    "run-a-cancelled-job-again": lambda city: _run_again(city, "cancelled"),
    "run-a-good-job-again": lambda city: _run_again(city, "good"),
    **dict.fromkeys(
        ("use-a-closed-host", "leave-a-key", "leave-a-delivery", "wait-without-a-reason", "drop-a-reason"),
        lambda _city: None,
    ),
}
LATER: dict[str, Callable[[City, Oracle], Awaitable[None]]] = {
    "use-a-closed-host": _use_a_closed_host,
    "leave-a-key": _leave_a_key,
    "leave-a-delivery": _leave_a_delivery,
    "wait-without-a-reason": _say_no_reason,
    "drop-a-reason": _drop_a_reason,
}
PLANTED: dict[str, Callable[[], None]] = {
    "tell-no-waits": _tell_no_waits,
    "first-come-first-served": _first_come_first_served,
}
"""Faults of the product's own, in place before anything begins."""
