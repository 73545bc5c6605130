"""Faults planted in the product, each a few words long, to see whether the model finds them.

``python -m tests.unit.control.mutants`` plays, on all processors, for each fault as many histories as `make test` does, from the same seeds, and says
which one found it; ``... mutants 2000 WORD`` plays up to 2,000 against those with that word in their name.  Ends with 1 where
one wasn't found.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import repeat
from multiprocessing import get_context
from typing import Any

import msgspec

from orchestrator.control import demand, line, observe, one_pass, orders, redis_fake, reruns
from orchestrator.control.checks import Checks
from orchestrator.control.github import NameTaken, Registration
from orchestrator.control.line import Line
from orchestrator.control.observe import host_views
from orchestrator.control.orders import Orders
from orchestrator.control.policies import PolicyBook, RefusedPolicy
from orchestrator.control.rebind import Rebind
from orchestrator.control.records import RunnerRecord
from orchestrator.control.redelivery import Redelivery
from orchestrator.control.search import JobSearch
from orchestrator.control.settings import Pace
from orchestrator.control.store import COMMIT, Store
from orchestrator.core import lifecycle
from orchestrator.core.runner import (
    Fenced,
    JobCompleted,
    RegistrationAsked,
    RegistrationProvedGone,
    Ticked,
    VmProvedGone,
    Withdrawn,
)
from orchestrator.core.sharing import Quotas

from .found import KEPT
from .histories import CI_HISTORIES, Found, Theatre, processes, theatre

Planted = Iterator[tuple[Any, str, Any]]
"""Object (or dictionary), name (or key), and what is there in place of the right thing."""
MUTANTS: dict[str, Callable[[], Planted]] = {}


def mutant(make: Callable[[], Planted]) -> Callable[[], Planted]:
    MUTANTS[make.__name__] = make
    return make


def in_phases(event: type, phases: tuple[str, ...], handler: Callable[[Any, Any], Any]) -> Planted:
    for phase in phases:
        yield lifecycle._HANDLERS, (phase, event), handler  # type: ignore[misc]


async def nothing(*_: Any, **__: Any) -> None:
    pass


# Fences and ends


@mutant
def a_busy_runner_counts_as_given_back() -> Planted:
    yield from in_phases(Fenced, ("BOOTING", "READY"), lambda at, _: at.end(at.runner.fencing, registration="gone"))


@mutant
def a_runner_is_withdrawn_without_a_fence() -> Planted:
    yield from in_phases(Withdrawn, ("BOOTING", "READY"), lambda at, event: at.end(event.reason))


@mutant
def a_guest_with_a_job_is_ended_since_github_forgot_it() -> Planted:
    yield Orders, "_guest_has_a_job", lambda *_: False


@mutant
def a_registration_isnt_removed() -> Planted:
    yield lifecycle, "may_be_registered", lambda _runner: False


@mutant
def a_machine_is_called_gone_without_proof() -> Planted:
    def settle(at: Any) -> Any:
        if lifecycle.may_be_registered(at.runner):
            return at.runner
        return msgspec.structs.replace(at.runner, phase="GONE", since=at.now, deadline=0.0)

    yield lifecycle._At, "settle", settle


@mutant
def an_unwhole_proof_is_enough() -> Planted:
    happen = observe._observe_runner

    def believing(world: Any, runner_id: str, seen: Any) -> None:
        happen(world, runner_id, seen)
        if seen.vm != "absent" and world.runners[runner_id].life.phase == "DESTROYING":
            world.happen(runner_id, VmProvedGone())

    yield observe, "_observe_runner", believing


@mutant
def a_lost_registration_is_believed_gone_at_once() -> Planted:
    yield orders, "LOST_ANSWER_S", 0.0


@mutant
def registrations_are_asked_for_without_a_note() -> Planted:
    yield from in_phases(RegistrationAsked, ("WANTED",), lambda *_: "not noted")


@mutant
def a_name_that_is_taken_is_adopted_without_its_configuration() -> Planted:
    async def adopt(self: Any, record: RunnerRecord) -> Registration | None:
        scope = orders.scope_of(record.life)
        try:
            return await self._github.generate_jit(scope, record.name, record.life.labels)  # type: ignore[no-any-return]
        except NameTaken:
            stale = await self._github.find_runner(scope, record.name)
            return Registration(stale.id, "") if stale is not None else None

    yield Orders, "_generate", adopt


@mutant
def an_idle_runner_stays() -> Planted:
    yield from in_phases(Ticked, ("READY",), lambda *_: "in time")


@mutant
def a_late_destruction_raises_no_alarm() -> Planted:
    yield from in_phases(Ticked, ("DESTROYING",), lambda *_: "in time")


@mutant
def githubs_word_that_a_job_ended_is_ignored() -> Planted:
    yield from in_phases(JobCompleted, ("RUNNING",), lambda *_: "it will exit by itself")


@mutant
def a_registration_is_proved_gone_while_its_job_runs() -> Planted:
    right = lifecycle._HANDLERS["DESTROYING", RegistrationProvedGone]

    async def deregister(self: Any, runner_id: str, _github_id: int) -> None:
        self._world.happen(runner_id, RegistrationProvedGone())

    del right
    yield Orders, "_deregister", deregister


# Hosts


@mutant
def a_host_is_lost_after_ten_seconds() -> Planted:
    def lost(world: Any) -> None:
        pace = msgspec.structs.replace(world.settings.pace, host_lost_s=10.0)
        settings, world.settings = world.settings, msgspec.structs.replace(world.settings, pace=pace)
        try:
            right(world)
        finally:
            world.settings = settings

    right = one_pass.observe
    assert Pace().host_lost_s > 10
    yield one_pass, "observe", lost


@mutant
def a_drain_ends_nothing() -> Planted:
    yield one_pass, "drain_hosts", lambda _world: None


@mutant
def a_drained_host_gets_runners() -> Planted:
    def blind(world: Any) -> Any:
        return [msgspec.structs.replace(view, cordoned=False, why="") for view in host_views(world)]

    yield line, "host_views", blind


@mutant
def a_machine_that_ends_takes_no_room() -> Planted:
    def taken(record: RunnerRecord) -> Any:
        machine = record.life.machine
        ends = record.life.phase == "DESTROYING"
        return msgspec.structs.replace(machine, vcpus=0, memory_mib=0) if ends else machine

    yield observe, "taken_by", taken


@mutant
def a_machine_without_a_record_takes_no_room() -> Planted:
    none = msgspec.structs.replace
    right = observe.taken_by_stray

    def free(world: Any, stray: Any) -> Any:
        return none(right(world, stray), vcpus=0, memory_mib=0, disk_gib=0)

    yield observe, "taken_by_stray", free


# Jobs


@mutant
def runners_on_their_way_arent_counted() -> Planted:
    yield Line, "_coming", lambda _self: {}


@mutant
def runners_too_many_arent_given_back() -> Planted:
    yield demand, "withdraw_surplus", lambda *_: None


@mutant
def a_quota_isnt_kept() -> Planted:
    yield Quotas, "why_not", lambda *_: ""


@mutant
def a_quota_isnt_freed() -> Planted:
    right = Line._quotas

    def used(self: Any) -> Quotas:
        quotas = right(self)
        for repo in self._world.served:
            quotas.take(repo, next(iter(self._world.settings.classes.values())))
        return quotas

    yield Line, "_quotas", used


@mutant
def whatever_ended_is_run_again() -> Planted:
    yield reruns, "why_not_again", lambda _job: ""


@mutant
def the_budget_of_reruns_isnt_kept() -> Planted:
    async def none(*_: Any) -> int:
        return 0

    yield Store, "reruns", none


@mutant
def a_policy_is_that_of_the_job_it_was_made_for() -> Planted:
    right = Orders._bind

    async def bind(self: Any, runner_id: str, job_id: int) -> None:
        meant = self._world.runners[runner_id].life.meant_for
        await right(self, runner_id, meant if meant in self._world.jobs else job_id)

    yield Orders, "_bind", bind
    yield Rebind, "look_again", nothing  # which would mend it


@mutant
def a_policy_that_isnt_shown_refuses_the_job() -> Planted:
    right = PolicyBook.policy_of

    async def refused(*arguments: Any) -> Any:
        found = await right(*arguments)
        return msgspec.structs.replace(found, unread=False) if isinstance(found, RefusedPolicy) else found

    yield PolicyBook, "policy_of", refused


@mutant
def what_github_refuses_is_refused_for_good_unasked() -> Planted:
    async def stands(*_: Any) -> str:
        return ""

    yield orders, "ask", stands


# Nets and memory


@mutant
def nothing_is_delivered_again() -> Planted:
    yield Redelivery, "sweep", nothing


@mutant
def jobs_arent_searched() -> Planted:
    async def none(*_: Any) -> list[Any]:
        return []

    yield JobSearch, "due", none


@mutant
def jobs_arent_asked_after() -> Planted:
    yield Checks, "stale", lambda _self: []


@mutant
def machines_arent_taken_back() -> Planted:
    yield one_pass, "take_back", nothing


@mutant
def jobs_arent_found_in_an_emptied_redis() -> Planted:
    yield one_pass, "find_jobs", nothing


@mutant
def an_installation_isnt_followed() -> Planted:
    yield one_pass, "follow", nothing


@mutant
def who_lost_the_lease_writes_all_the_same() -> Planted:
    def commit(data: Any, keys: list[Any], args: list[Any]) -> int:
        data.execute("SET", keys[0], args[0])
        return right(data, keys, args)

    right = redis_fake._SCRIPTS[COMMIT]
    yield redis_fake._SCRIPTS, COMMIT, commit


@contextmanager
def planted(name: str) -> Iterator[None]:
    changed = []
    try:
        for target, key, value in MUTANTS[name]():
            if isinstance(target, dict):
                changed.append((target, key, target[key]))
                target[key] = value
            else:
                changed.append((target, key, getattr(target, key)))
                setattr(target, key, value)
        yield
    finally:
        for target, key, value in reversed(changed):
            if isinstance(target, dict):
                target[key] = value
            else:
                setattr(target, key, value)


def hunt(stage: Theatre, name: str, histories: int) -> tuple[str, str] | None:
    """The first history that finds the fault, and what it says; None where none does."""
    with planted(name):
        for kept, (plan, steps) in KEPT.items():
            fault = stage.fault(plan, steps)
            if fault:
                return kept, fault
        for seed in range(histories):
            try:
                stage.chance(seed)
            except Found as found:
                return f"seed {seed}", str(found)
    return None


def _hunted(name: str, histories: int) -> tuple[tuple[str, str] | None, float]:
    began = time.process_time()
    with theatre() as stage:
        return hunt(stage, name, histories), time.process_time() - began


def main() -> int:
    histories = int(sys.argv[1]) if len(sys.argv) > 1 else CI_HISTORIES
    names = [name for name in MUTANTS if len(sys.argv) < 3 or sys.argv[2] in name]
    missed, spent = 0, 0.0
    with ProcessPoolExecutor(processes(), mp_context=get_context("spawn")) as pool:
        for name, (found, seconds) in zip(names, pool.map(_hunted, names, repeat(histories)), strict=True):
            missed, spent = missed + (found is None), spent + seconds
            said = f"{found[0]}: {found[1][:100]!r}" if found is not None else f"NOT FOUND in {histories} histories"
            sys.stdout.write(f"{name}  {said}  ({seconds:.1f} s)\n")
            sys.stdout.flush()
    sys.stdout.write(f"{len(names) - missed} of {len(names)} found, in {spent:.0f} s of processor time\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
