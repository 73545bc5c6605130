"""A model of a runner's life, played against the real store and reconciler: hypothesis chooses what happens, the model what must be so.

The model knows only what happened outside (at GitHub, on the hosts, to the worker) and from that alone says what may be:

- a machine with a job of ours isn't ended unless something ended it: its VM failed, its host was silent, rebooted or
  drained to the end, or its lifetime was over;
- no host runs more machines than it has processors and memory for;
- a runner's phase only goes forward, and each live one has a deadline, ahead of now where GitHub answers;
- a job that waits has a reason or a runner on its way;
- once all trouble is over, each job was served by one runner or ended by somebody, and nothing is left.  A job may be given up
  only after four machines.

``MODEL_HISTORIES=2000`` plays so many of them.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from orchestrator.control.github import HookDelivery, Unavailable
from orchestrator.control.settings import ControlSettings
from orchestrator.core.decided import Drain
from orchestrator.core.job import Job
from orchestrator.core.names import ulid_of
from orchestrator.core.runner import NOTICE_S, PHASES
from orchestrator.core.wire import Failure, GuestClaim

from .stage import POLICY, REPO, Host, Stage
from .test_crash import Died, Trouble, survive

REPOS = (REPO, "acme/quiet")
LOST_S, GIVEN_UP_S = 180.0, 600.0
PICK = st.integers(0, 20)
FATES = st.sampled_from(("now", "now", "now", "twice", "late", "lost"))
MACHINES_BEFORE_GIVING_UP = 4

_T = TypeVar("_T")


class Outside:
    """What happened outside, and what it excuses."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.ended_by_somebody: set[int] = set()
        self.given_up: set[int] = set()
        self.excused: set[str] = set()
        """Runners whose machine may end, whatever it does."""
        self.heard: dict[str, float] = dict.fromkeys(stage.hosts, stage.now)
        self.drains: dict[str, float] = {}
        self.given_at: dict[str, float] = {}
        self.machineless: dict[int, float] = {}

    def note_time(self) -> None:
        """Silence, drains and lifetimes that excuse an end by now; a job without its machine is ended by GitHub itself."""
        now = self.stage.now
        for name, host in self.stage.hosts.items():
            drained = name in self.drains and now >= self.drains[name] + NOTICE_S
            if now - self.heard[name] > LOST_S or drained:
                self.excused |= host.seen.keys()
        lifetime = self.stage.settings.classes["ironcd"].lifetime_s
        self.excused |= {runner for runner, at in self.given_at.items() if now - at >= lifetime}

    def running(self) -> list[Job]:
        return [job for job in self.stage.github.jobs.values() if job.state == "in_progress"]

    def queued(self) -> list[Job]:
        return [job for job in self.stage.github.jobs.values() if job.state == "queued"]

    def lives(self, runner: str | None) -> bool:
        return any(host.seen[runner].vm == "running" for host in self.stage.hosts.values() if runner in host.seen)

    def give_up_machineless(self) -> list[Job]:
        """Ten minutes after a machine was lost, GitHub ends its job."""
        dead = {job.id for job in self.running() if not self.lives(ulid_of(job.runner_name))}
        self.machineless = {key: self.machineless.get(key, self.stage.now) for key in dead}
        over = [key for key, since in self.machineless.items() if self.stage.now - since >= GIVEN_UP_S]
        return [self.stage.github.end(key, "failure") for key in over]


class Lifecycle(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.numbers = itertools.count(1)
        self.late: list[Job] = []
        self.told: list[Job] = []
        self.lost: dict[str, Job] = {}
        self.phases: dict[str, int] = {}
        self.unclaimed: list[tuple[str, GuestClaim]] = []
        self.looked = False

    def do(self, call: Coroutine[Any, Any, _T]) -> _T:
        return self.loop.run_until_complete(call)

    @initialize(per_repository=st.booleans(), steps=st.sampled_from((3, 99)), small=st.booleans())
    def set_up(self, *, per_repository: bool, steps: int, small: bool) -> None:
        folder = Path(self.folder.name)
        plan = ControlSettings(
            app_id=1,
            state_dir=str(folder),
            prefix="t:",
            registration="repository" if per_repository else "organisation",
        )
        self.stage = Stage(folder, hosts=[Host("h1", 2), Host("h2", 2 if small else 4)], settings=plan)
        self.stage.github.files |= dict.fromkeys(((repo, ".ironcd/policy.yml") for repo in REPOS), POLICY)
        self.stage.github.redelivered = self._redelivered
        for host in self.stage.hosts.values():
            host.steps_per_move, host.ends_slowly = steps, True
        self.outside = Outside(self.stage)
        self.do(self._hosts_move())

    # GitHub

    def _tell(self, job: Job, fate: str) -> None:
        guid = f"{job.id}-{job.state}"
        self.told.append(job)
        if fate == "late":
            self.late.append(job)
        elif fate == "lost":
            self.lost[guid] = job
            self.stage.github.attempts.append(
                HookDelivery(len(self.stage.github.attempts) + 1, guid, self.stage.now, ok=False)
            )
        else:
            for _ in range(2 if fate == "twice" else 1):
                self.do(self.stage.deliver(job, guid=guid))

    def _redelivered(self, attempt: HookDelivery) -> HookDelivery:
        self.late.append(self.lost[attempt.guid])
        return msgspec.structs.replace(attempt, at=self.stage.now, ok=True)

    @rule(repo=st.sampled_from(REPOS), fate=FATES, count=st.integers(1, 3))
    def jobs_are_queued(self, repo: str, fate: str, count: int) -> None:
        for _ in range(count):
            self._tell(self.stage.job(next(self.numbers), repo=repo), fate)

    @precondition(lambda self: self.outside.queued())
    @rule(pick=PICK, fate=FATES, stolen=st.booleans())
    def a_queued_job_ends_elsewhere(self, pick: int, fate: str, *, stolen: bool) -> None:
        queued = self.outside.queued()
        job = self.stage.github.end(queued[pick % len(queued)].id, "success" if stolen else "cancelled")
        if stolen:
            job = self.stage.github.jobs[job.id] = msgspec.structs.replace(job, runner_name="stranger")
        self.outside.ended_by_somebody.add(job.id)
        self._tell(job, fate)

    @precondition(lambda self: self.outside.queued())
    @rule(fate=FATES, drain=st.booleans())
    def jobs_are_assigned(self, fate: str, *, drain: bool) -> None:
        """With ``drain``, a host is drained in the moment before anybody hears of it."""
        before = len(self.outside.running())
        self._assign(fate)
        if drain and len(self.outside.running()) > before:
            host = self.stage.host_of(ulid_of(self.outside.running()[-1].runner_name) or "")
            if host.name not in self.outside.drains:
                self.a_host_is_drained_or_taken_back(host.name, 300)
                self.the_worker_looks()

    def _assign(self, fate: str) -> None:
        for job in self.stage.github_assigns():
            runner = self.stage.started[job.id][-1]
            self.outside.given_at[runner] = self.stage.now
            self.unclaimed.append((runner, GuestClaim(job.repo, job.run_id, job.attempt, job.name, job.runner_name)))
            self._tell(job, fate)

    @precondition(lambda self: self.unclaimed)
    @rule()
    def guests_speak(self) -> None:
        for runner, claim in self.unclaimed:
            if self.outside.lives(runner):
                self.stage.host_of(runner).claims(runner, claim, self.stage.now)
        self.unclaimed = []

    @precondition(lambda self: self.outside.running())
    @rule(pick=PICK, fate=FATES, stops=st.booleans())
    def a_running_job_ends(self, pick: int, fate: str, *, stops: bool) -> None:
        running = [job for job in self.outside.running() if self.outside.lives(ulid_of(job.runner_name))]
        if running:
            self._end(running[pick % len(running)], fate, stops=stops)

    def _end(self, job: Job, fate: str, *, stops: bool) -> None:
        runner = ulid_of(job.runner_name) or ""
        if stops:
            self.stage.host_of(runner).exits(runner, 0, self.stage.now)
        self._tell(self.stage.github.end(job.id), fate)

    @precondition(lambda self: self.late)
    @rule(last_first=st.booleans())
    def late_deliveries_arrive(self, *, last_first: bool) -> None:
        late, self.late = self.late[:: -1 if last_first else 1], []
        for job in late:
            self.do(self.stage.deliver(job))

    @precondition(lambda self: self.told)
    @rule(pick=PICK)
    def an_old_delivery_comes_again(self, pick: int) -> None:
        self.do(self.stage.deliver(self.told[pick % len(self.told)]))

    @rule()
    def github_goes_away_or_comes_back(self) -> None:
        self.stage.github.trouble = _fine if self.stage.github.trouble is _away else _away

    # Hosts

    async def _hosts_move(self) -> None:
        await self.stage.hosts_move()
        self.outside.heard |= {name: self.stage.now for name, host in self.stage.hosts.items() if not host.silent}

    @rule()
    def hosts_go_on(self) -> None:
        self.do(self._hosts_move())

    @precondition(lambda self: any(host.seen for host in self.stage.hosts.values()))
    @rule(pick=PICK)
    def a_vm_fails(self, pick: int) -> None:
        machines = [
            (host, key) for host in self.stage.hosts.values() for key in host.seen if host.seen[key].vm == "running"
        ]
        if machines:
            host, runner = machines[pick % len(machines)]
            failure = Failure("guest-silent", "the guest spoke no more")
            host.seen[runner] = msgspec.structs.replace(host.seen[runner], vm="failed", failure=failure)
            self.outside.excused.add(runner)

    @rule(name=st.sampled_from(("h1", "h2")))
    def a_host_is_cut_off_or_comes_back(self, name: str) -> None:
        self.stage.hosts[name].silent = not self.stage.hosts[name].silent

    @rule(name=st.sampled_from(("h1", "h2")))
    def a_host_reboots(self, name: str) -> None:
        host = self.stage.hosts[name]
        host.boot += "+"
        self.outside.excused |= host.seen.keys()
        for key, seen in host.seen.items():
            if seen.vm == "running":
                host.seen[key] = msgspec.structs.replace(seen, vm="crashed")

    @rule(name=st.sampled_from(("h1", "h2")), wait=st.sampled_from((0, 30, 300)))
    def a_host_is_drained_or_taken_back(self, name: str, wait: int) -> None:
        if self.outside.drains.pop(name, None) is None:
            self.outside.drains[name] = self.stage.now + wait
            self.do(self.stage.store.drain(name, Drain(self.stage.now, self.stage.now + wait)))
            self.outside.note_time()
        else:
            self.do(self.stage.store.undrain(name))

    @rule(name=st.sampled_from(("h1", "h2")), cordon=st.booleans())
    def a_host_is_cordoned_or_not(self, name: str, *, cordon: bool) -> None:
        self.do(self.stage.store.cordon(name, "repair") if cordon else self.stage.store.uncordon(name))

    # The control plane

    @rule()
    def the_worker_looks(self) -> None:
        self.do(self.stage.look())
        self.looked = True

    @rule(at=st.integers(1, 12))
    def the_worker_dies_at_work(self, at: int) -> None:
        """At the call of GitHub or the write to Redis of that number, before it took effect or after."""
        before = self.stage.github.trouble
        Trouble(at, Died, store=True).set_up(self.stage)
        self.do(survive(self.stage))
        del self.stage.store.commit  # type: ignore[method-assign]
        self.stage.github.trouble = before

    @rule()
    def redis_is_emptied(self) -> None:
        self.do(self.stage.redis.flushall())
        self.stage.reconciler = self.stage.fresh()
        self.phases, self.late = {}, []
        self.outside.drains = {}
        self.do(self._hosts_move())

    @rule(seconds=st.sampled_from((5, 5, 30, 100, 200, 400)))
    def time_passes(self, seconds: int) -> None:
        self._pass(seconds)

    @rule(rounds=st.integers(1, 3), fate=FATES)
    def all_goes_on(self, rounds: int, fate: str) -> None:
        for _ in range(rounds):
            self.do(self._hosts_move())
            self.the_worker_looks()
            self._assign(fate)
            self.guests_speak()
            self._pass(2)

    def _pass(self, seconds: float) -> None:
        self.stage.now += seconds
        self.looked = False
        self.outside.note_time()
        for job in self.outside.give_up_machineless():
            self._tell(job, "now")

    # What must be so

    @invariant()
    def no_host_is_overcommitted(self) -> None:
        machine = self.stage.settings.classes["ironcd"]
        for host in self.stage.hosts.values():
            count = sum(seen.vm == "running" for seen in host.seen.values())
            assert count * machine.vcpus <= host.capacity.vcpus, f"{host.name} runs {count}"
            assert count * machine.memory_mib <= host.capacity.memory_mib

    @invariant()
    def no_machine_ends_under_its_job(self) -> None:
        live = {record.id: record.life for record in self.do(self.stage.store.live_runners())}
        for job in self.outside.running():
            runner = ulid_of(job.runner_name)
            if runner in self.outside.excused:
                continue
            assert runner in {seen.name and ulid_of(seen.name) for seen in self.stage.github.runners.values()}, job
            assert not any(runner in host.ended for host in self.stage.hosts.values()), (job, live.get(runner or ""))
            life = live.get(runner or "")
            assert life is None or life.phase not in ("DESTROYING", "GONE"), (job, life)

    @invariant()
    def phases_go_forward_and_have_deadlines(self) -> None:
        seen = {record.id: record.life for record in self.do(self.stage.store.live_runners())}
        gone = self.do(self.stage.store.gone_runners(sorted(self.phases.keys() - seen.keys())))
        assert self.phases.keys() - seen.keys() == gone.keys(), "a runner is forgotten before it is gone"
        for life in (*seen.values(), *(record.life for record in gone.values())):
            phase = PHASES.index(life.phase)
            assert phase >= self.phases.get(life.id, 0), (
                f"{life.id} was {PHASES[self.phases[life.id]]}, is {life.phase}"
            )
            self.phases[life.id] = phase
            assert life.phase == "GONE" or life.deadline > 0, life
            if self.looked and self.stage.github.trouble is _fine and not self.do(self.stage.store.outage_since()):
                assert life.phase == "GONE" or life.deadline > self.stage.now, life

    @invariant()
    def who_waits_knows_why(self) -> None:
        if self.looked:
            coming = {record.life.meant_for for record in self.do(self.stage.store.live_runners())}
            for record in self.do(self.stage.store.live_jobs()):
                assert not record.job.wants_runner or record.job.reason or record.job.id in coming, record

    # The end

    def teardown(self) -> None:
        try:
            if hasattr(self, "outside"):
                self._settle()
                self.do(self._check_the_end())
                self.do(self.stage.close())
        finally:
            self.loop.close()
            self.folder.cleanup()

    def _settle(self) -> None:
        """All trouble ends, and everybody does what they do."""
        stage = self.stage
        stage.github.trouble = _fine
        for name, host in stage.hosts.items():
            host.silent = False
            self.do(stage.store.undrain(name))
            self.do(stage.store.uncordon(name))
        self.outside.drains = {}
        for _ in range(150):
            self.late_deliveries_arrive(last_first=False)
            self.all_goes_on(1, "now")
            for record in self.do(stage.store.live_runners()):
                job = stage.github.jobs.get(record.life.job_id)
                if (
                    job is not None
                    and job.state == "in_progress"
                    and record.life.bound
                    and self.outside.lives(record.id)
                ):
                    self._end(job, "now", stops=True)
            for waiting in self.do(stage.store.live_jobs()):
                job = stage.github.jobs[waiting.job.id]
                if waiting.permanent and job.state == "queued":
                    assert len(waiting.runners) >= MACHINES_BEFORE_GIVING_UP, waiting
                    self.outside.given_up.add(job.id)
                    self._tell(stage.github.end(job.id, "cancelled"), "now")
            if self.do(self._is_over()):
                break
            self._pass(20)
        for _ in range(2):
            self.do(self._hosts_move())
            self.the_worker_looks()
        self.do(self._hosts_move())

    async def _is_over(self) -> bool:
        stage = self.stage
        jobs = all(job.over for job in stage.github.jobs.values()) and not await stage.store.live_jobs()
        heard = not await stage.store.outage_since() and not (await stage.store.lengths())["inbox"] and not self.late
        return jobs and heard and not await stage.store.live_runners() and not stage.github.runners

    async def _check_the_end(self) -> None:
        for number, job in self.stage.github.jobs.items():
            assert job.over, f"job {number} is {job.state}: {await self.stage.store.job(number)}"
            had = self.stage.started.get(number, [])
            unserved = number in self.outside.ended_by_somebody | self.outside.given_up
            assert len(had) == (0 if unserved else 1), f"job {number} was served by {had}"
            record = await self.stage.store.job(number)
            assert record is None or record.job.over, record
        left = await self.stage.leftovers()
        assert left == {}, left


def _away(_call: str, when: str) -> None:
    if when == "before":
        raise Unavailable("503")


def _fine(_call: str, _when: str) -> None:
    pass


TestLifecycle = Lifecycle.TestCase
TestLifecycle.settings = settings(
    max_examples=int(os.environ.get("MODEL_HISTORIES", "20")),
    derandomize="MODEL_HISTORIES" not in os.environ,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def test_a_host_is_drained_just_before_anybody_hears_that_its_runner_has_a_job() -> None:
    """A history that chance seldom finds."""
    life = Lifecycle()
    life.set_up(per_repository=False, steps=99, small=True)
    life.jobs_are_queued(REPO, "now", 1)
    life.the_worker_looks()
    life.hosts_go_on()
    life.the_worker_looks()
    life.jobs_are_assigned("late", drain=True)
    assert life.outside.running()
    life.no_machine_ends_under_its_job()
    life.teardown()
