"""What can happen in the model of the lifecycle.  Each deed is a method with the values that its arguments may have.

A history is a list of deeds with their arguments, so one that found something can be written down as it is and played again.
"""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from ulid import ULID

from orchestrator.control.github import HookDelivery
from orchestrator.control.policies import PATH
from orchestrator.control.records import RunnerRecord
from orchestrator.control.settings import ControlSettings
from orchestrator.control.store import LEASE_MS, Lease
from orchestrator.core.decided import Drain
from orchestrator.core.inbox import InstallationAction, InstallationNews
from orchestrator.core.job import Job
from orchestrator.core.machine import Capacity
from orchestrator.core.names import ulid_of
from orchestrator.core.sharing import Share, Sharing
from orchestrator.core.wire import Failure, GuestClaim

from .at_once import AtOnce
from .oracle import Oracle
from .outside import GIVEN_UP_S, Died, FickleGitHub, ModelHost, Outside, has_died
from .stage import INSTALLATION, POLICY, REPO, Host, Stage

QUIET, RENAMED = "acme/quiet", "acme/renamed"
OTHER_POLICY = b"mode: enforce\nallow:\n  - host: other.example\n"
HOSTS = ("h1", "h2")
PICK = tuple(range(8))
FATES = ("now", "now", "now", "twice", "late", "lost")
YES_OR_NO = (False, True)
STEP_S = 100
SETTLED_S = 6000
"""So long after all trouble, and well before any job's lifetime is over, everything must be."""
ROOM_FOR_ALL = Capacity(64, 256 * 1024, 2000)

_T = TypeVar("_T")


class Plan(msgspec.Struct, frozen=True):
    """How a control plane is set up for one history."""

    per_repository: bool = False
    steps: int = 99
    """Of its work that a host does at once."""
    small: bool = False
    quota: int = 0
    """So many runners for each repository; 0: no limit."""
    rerun: bool = False
    room_at_the_end: bool = False
    """Each host becomes so large that no job waits for another any more, which brings a history to its end sooner."""


PLANS: dict[str, tuple[Any, ...]] = {
    "per_repository": YES_OR_NO, "steps": (3, 99), "small": YES_OR_NO, "quota": (0, 0, 1, 2), "rerun": YES_OR_NO,
    "room_at_the_end": YES_OR_NO,
}  # fmt: skip


class Deed(msgspec.Struct, frozen=True):
    name: str
    choices: dict[str, tuple[Any, ...]]
    weight: int
    when: Callable[[Play], bool]


DEEDS: dict[str, Deed] = {}
_Method = Callable[..., None]


def deed(
    *, weight: int = 2, when: Callable[[Play], bool] = lambda _play: True, **choices: tuple[Any, ...]
) -> Callable[[_Method], _Method]:
    """``weight``: how often it is chosen, against others; ``when``: it means something now."""

    def note(method: _Method) -> _Method:
        DEEDS[method.__name__] = Deed(method.__name__, choices, weight, when)
        return method

    return note


class Play:
    """One history, from an empty control plane to the day after."""

    def __init__(self, folder: Path, loop: AtOnce, plan: Plan) -> None:
        self.loop = loop
        random.seed(1)  # the product shuffles which repository it asks first
        shutil.rmtree(folder / "archive", ignore_errors=True)
        self.numbers = itertools.count(1)
        self._ids = itertools.count(1)
        self.plan = plan
        self.late: list[Job | InstallationNews] = []
        self.told: list[Job] = []
        self.lost: dict[str, Job | InstallationNews] = {}
        self.unclaimed: list[tuple[str, GuestClaim]] = []
        self.repos = [REPO, QUIET]
        self.installation = INSTALLATION
        self.points, self.dies_at = 0, 0
        self.writes, self.overtaken_at = 0, 0
        self.stage = self._staged(folder)
        self.others = [self.stage.fresh()]
        self.outside = Outside(self.stage)
        self.oracle = Oracle(self)
        self.hosts_go_on()

    def _staged(self, folder: Path) -> Stage:
        plan = self.plan
        settings = ControlSettings(
            app_id=1,
            state_dir=str(folder),
            prefix="t:",
            registration="repository" if plan.per_repository else "organisation",
            sharing=Sharing(repository=Share(runners=plan.quota or None)),
            rerun_on_infra_loss=("*",) if plan.rerun else (),
        )
        self.github = FickleGitHub()
        stage = Stage(folder, hosts=[ModelHost("h1", 2), ModelHost("h2", 2 if plan.small else 4)], settings=settings)
        self.github.apps, stage.github = stage.github.apps, self.github
        stage.make_id = self._make_id  # type: ignore[method-assign]
        stage.reconciler = stage.fresh()
        self.github.files |= {(REPO, PATH): POLICY, (QUIET, PATH): OTHER_POLICY}
        self.github.names |= {5: REPO, 6: QUIET}
        self.github.redelivered = self._redelivered
        self.github.run_again = self._run_again
        self.github.point = self._point
        commit = stage.store.commit

        async def troubled(lease: Lease, changes: Any) -> None:
            self._point()
            await self._overtake()
            await commit(lease, changes)
            self._point()

        stage.store.commit = troubled  # type: ignore[method-assign]
        for host in self.hosts_of(stage):
            host.steps_per_move = plan.steps
            host.deadline = self._excuse
        return stage

    @staticmethod
    def hosts_of(stage: Stage) -> list[ModelHost]:
        return [host for host in stage.hosts.values() if isinstance(host, ModelHost)]

    def _make_id(self) -> str:
        """In the order in which they are asked for, so that a history is the same each time."""
        at = round(self.stage.now * 1000).to_bytes(6, "big")
        return str(ULID.from_bytes(at + next(self._ids).to_bytes(10, "big")))

    def _excuse(self, runner: str) -> None:
        self.outside.excused.add(runner)

    def _point(self) -> None:
        self.points += 1
        if self.points == self.dies_at:
            raise Died

    async def _overtake(self) -> None:
        """Another worker takes the lease over from one that was paused at just the wrong moment."""
        self.writes += 1
        if self.writes == self.overtaken_at:
            self.overtaken_at = 0
            await self.stage.redis.delete(self.stage.store.names.lease)
            await self.others[0].look()

    def do(self, call: Coroutine[Any, Any, _T]) -> _T:
        """Of what never waits: a Redis in memory answers at once."""
        try:
            call.send(None)
        except StopIteration as answer:
            return answer.value  # type: ignore[no-any-return]
        raise AssertionError("it waits")

    def play(self, name: str, arguments: dict[str, Any]) -> bool:
        """Play a deed where it means something, and look whether all is as it must be.  False where it means nothing.

        After a look of the worker it is looked at once (`the_worker_looks`), before anything else happens outside.
        """
        if not DEEDS[name].when(self):
            return False
        self.oracle.looked = False
        getattr(self, name)(**arguments)
        if not self.oracle.looked:
            self.oracle.look()
        return True

    # GitHub

    def tell(self, news: Job | InstallationNews, fate: str) -> None:
        """While the App is away nothing is sent, and of a job's news nothing is kept to be sent again."""
        if isinstance(news, Job):
            if self.outside.app_away:
                return
            self.told.append(news)
        guid = f"{news.id}-{news.state}" if isinstance(news, Job) else f"app-{next(self.numbers)}"
        if fate == "late":
            self.late.append(news)
        elif fate == "lost":
            self.lost[guid] = news
            attempt = HookDelivery(len(self.github.attempts) + 1, guid, self.stage.now, ok=False)
            self.github.attempts.append(attempt)
        else:
            for _ in range(2 if fate == "twice" else 1):
                self._deliver(news)

    def _deliver(self, news: Job | InstallationNews) -> None:
        if isinstance(news, Job):
            self.do(self.stage.deliver(news))
        else:
            self.do(self.stage.deliver_installation(news))

    def _redelivered(self, attempt: HookDelivery) -> HookDelivery:
        self.late.append(self.lost[attempt.guid])
        return msgspec.structs.replace(attempt, at=self.stage.now, ok=True)

    def _run_again(self, former: Job, fresh: Job) -> Job:
        self.outside.reruns.append(former)
        now = self.stage.now
        job = msgspec.structs.replace(fresh, repo_id=former.repo_id, deploys=former.deploys, created_at=now)
        self.late.append(job)
        return job

    @deed(weight=7, repo=(0, 0, 1), fate=FATES, count=(1, 1, 2, 3), deploys=(False, False, False, True))
    def jobs_are_queued(self, repo: int, fate: str, count: int, *, deploys: bool) -> None:
        for _ in range(count):
            job = self.stage.job(next(self.numbers), repo=self.repos[repo])
            fields = {"repo_id": 5 + repo, "deploys": deploys, "installation": self.installation}
            job = self.github.jobs[job.id] = msgspec.structs.replace(job, **fields)
            self.tell(job, fate)

    @deed(when=lambda play: bool(play.outside.queued()), pick=PICK, fate=FATES, stolen=YES_OR_NO)
    def a_queued_job_ends_elsewhere(self, pick: int, fate: str, *, stolen: bool) -> None:
        queued = self.outside.queued()
        job = self.github.end(queued[pick % len(queued)].id, "success" if stolen else "cancelled")
        if stolen:
            job = self.github.jobs[job.id] = msgspec.structs.replace(job, runner_name="stranger")
        self.outside.ended_by_somebody.add(job.id)
        self.tell(job, fate)

    @deed(
        weight=7, when=lambda play: bool(play.outside.queued()), fate=FATES, drain=(False, False, True), last=YES_OR_NO
    )
    def jobs_are_assigned(self, fate: str, *, drain: bool, last: bool) -> None:
        """``last``: to other runners than those that they were meant for; ``drain``: a host is drained just then."""
        before = len(self.outside.running())
        if last:
            self.github.runners = dict(reversed(self.github.runners.items()))
        self.assign(fate)
        if drain and len(self.outside.running()) > before:
            host = self.stage.host_of(ulid_of(self.outside.running()[-1].runner_name) or "")
            if host.name not in self.outside.drains:
                self.a_host_is_drained_or_taken_back(host.name, 300)
                self.the_worker_looks()

    def assign(self, fate: str) -> None:
        for job in self.stage.github_assigns():
            runner = self.stage.started[job.id][-1]
            self.outside.given_at[runner] = self.stage.now
            self.unclaimed.append((runner, GuestClaim(job.repo, job.run_id, job.attempt, job.name, job.runner_name)))
            if self.outside.app_away:
                self.outside.excused.add(runner)  # nobody can be asked whether it has a job
            self.tell(job, fate)

    @deed(when=lambda play: bool(play.unclaimed))
    def guests_speak(self) -> None:
        for runner, claim in self.unclaimed:
            if self.outside.lives(runner):
                self.stage.host_of(runner).claims(runner, claim, self.stage.now)
        self.unclaimed = []

    @deed(
        weight=4,
        when=lambda play: bool(play.outside.running()),
        pick=PICK,
        fate=FATES,
        stops=YES_OR_NO,
        how=("success", "success", "failure", "cancelled"),
    )
    def a_running_job_ends(self, pick: int, fate: str, *, stops: bool, how: str) -> None:
        running = [job for job in self.outside.running() if self.outside.lives(ulid_of(job.runner_name))]
        if running:
            self.end(running[pick % len(running)], fate, stops=stops, how=how)

    def end(self, job: Job, fate: str, *, stops: bool, how: str = "success") -> None:
        runner = ulid_of(job.runner_name) or ""
        if stops:
            self.stage.host_of(runner).exits(runner, 0, self.stage.now)
        self.outside.ended_at[job.runner_name] = self.stage.now
        self.tell(self.github.end(job.id, how), fate)

    @deed(when=lambda play: bool(play.late), last_first=YES_OR_NO)
    def late_deliveries_arrive(self, *, last_first: bool) -> None:
        late, self.late = self.late[:: -1 if last_first else 1], []
        for news in late:
            self._deliver(news)

    @deed(weight=1, when=lambda play: bool(play.told), pick=PICK)
    def an_old_delivery_comes_again(self, pick: int) -> None:
        self._deliver(self.told[pick % len(self.told)])

    @deed()
    def github_goes_away_or_comes_back(self) -> None:
        self.github.away = not self.github.away

    @deed(
        weight=3,
        kind=("refused", "limited", "lost", "later"),
        after=(0, 0, 1, 3),
        times=(1, 1, 2, 6),
        of=("", "", "_job"),
    )
    def github_errs(self, kind: str, after: int, times: int, of: str = "") -> None:
        """``of``: only of calls with that in their name."""
        self.github.odd, self.github.odd_of = ["fine"] * after + [kind] * times, of

    @deed(weight=1)
    def github_lies_of_who_is_busy_or_not(self) -> None:
        self.github.lies = not self.github.lies

    @deed(weight=1, when=lambda play: bool(play.outside.idle()), pick=PICK, exits=YES_OR_NO)
    def github_forgets_an_idle_runner(self, pick: int, *, exits: bool) -> None:
        """It removes those that wait for minutes; some of them never notice."""
        names = self.outside.idle()
        name = names[pick % len(names)]
        self.github.forget(name)
        runner = ulid_of(name) or ""
        if exits and self.outside.lives(runner):
            self.stage.host_of(runner).exits(runner, 0, self.stage.now)

    @deed(weight=1, when=lambda play: bool(play.outside.running()), pick=PICK)
    def github_forgets_a_busy_runner(self, pick: int) -> None:
        """After its job began, and its guest has said so: it goes on."""
        self.guests_speak()
        self.hosts_go_on()
        self.oracle.look()
        running = self.outside.running()
        runner = ulid_of(running[pick % len(running)].runner_name) or ""
        known = any(record.id == runner for record in self.oracle.live)
        if known and self.outside.lives(runner) and not self.stage.host_of(runner).silent:
            self.github.forget(running[pick % len(running)].runner_name)
            self.outside.forgotten.add(runner)

    @deed(weight=1, fate=FATES)
    def the_app_is_suspended_or_not(self, fate: str) -> None:
        if self.installation not in self.github.apps:
            return
        app = self.github.apps[self.installation]
        self.github.apps[app.id] = msgspec.structs.replace(app, suspended=not app.suspended)
        self.outside.app_away = not app.suspended
        self._news("unsuspend" if app.suspended else "suspend", fate)

    @deed(weight=1, fate=FATES)
    def the_app_is_removed_or_comes_back(self, fate: str) -> None:
        """It comes back as another installation."""
        apps = self.github.apps
        if self.installation in apps:
            self._removed = msgspec.structs.replace(apps.pop(self.installation), suspended=False)
            self.outside.app_away = True
            self._news("deleted", fate)
            return
        self.installation += 1
        apps[self.installation] = msgspec.structs.replace(self._removed, id=self.installation)
        jobs = self.github.jobs
        for number, job in jobs.items():
            jobs[number] = msgspec.structs.replace(job, installation=self.installation)
        self.outside.app_away = False
        self._news("created", fate)

    def _news(self, action: InstallationAction, fate: str) -> None:
        if self.outside.app_away:
            self.outside.app_was_away = True
            running = {ulid_of(job.runner_name) or "" for job in self.outside.running()}
            self.outside.excused |= running  # a claim that nobody heard yet can't be looked into
        self.tell(InstallationNews(self.installation, action, "acme"), fate)

    @deed(weight=1, when=lambda play: QUIET in play.repos)
    def a_repository_is_renamed(self) -> None:
        self.repos[1] = self.github.names[6] = self.github.moved[QUIET] = RENAMED
        files = self.github.files
        files[RENAMED, PATH] = files.pop((QUIET, PATH))
        jobs = self.github.jobs
        for number, job in jobs.items():
            jobs[number] = msgspec.structs.replace(job, repo=RENAMED if job.repo == QUIET else job.repo)
        self.github.runners = {
            (RENAMED if account == QUIET else account, number): seen
            for (account, number), seen in self.github.runners.items()
        }

    # Hosts

    @deed(weight=6)
    def hosts_go_on(self) -> None:
        for host in self.hosts_of(self.stage):
            if host.silent:
                host.keep_deadlines(self.stage.now)
        self.do(self.stage.hosts_move())
        self.outside.heard |= {name: self.stage.now for name, host in self.stage.hosts.items() if not host.silent}

    @deed(when=lambda play: any(host.seen for host in play.stage.hosts.values()), pick=PICK)
    def a_vm_fails(self, pick: int) -> None:
        machines = [
            (host, key) for host in self.stage.hosts.values() for key in host.seen if host.seen[key].vm == "running"
        ]
        if machines:
            self._fail(*machines[pick % len(machines)])

    def _fail(self, host: Host, runner: str) -> None:
        failure = Failure("guest-silent", "the guest spoke no more")
        host.seen[runner] = msgspec.structs.replace(host.seen[runner], vm="failed", failure=failure)
        self.outside.excused.add(runner)

    @deed(weight=1, name=HOSTS, count=(1, 2))
    def the_next_starts_fail(self, name: str, count: int) -> None:
        self._host(name).failing = count

    @deed(name=HOSTS)
    def a_host_is_cut_off_or_comes_back(self, name: str) -> None:
        self.stage.hosts[name].silent = not self.stage.hosts[name].silent

    @deed(weight=1, name=HOSTS)
    def a_host_reboots(self, name: str) -> None:
        host = self._host(name)
        host.boot += "+"
        self.outside.excused |= host.seen.keys()
        host.end_all("crashed")

    @deed(weight=1, name=HOSTS)
    def a_host_is_installed_anew(self, name: str) -> None:
        self.outside.excused |= self._host(name).seen.keys()
        self._host(name).wipe()

    @deed(weight=1, name=HOSTS)
    def an_agent_restarts(self, name: str) -> None:
        """It has its records, and hasn't read yet what it should have."""
        self.stage.hosts[name].generation = 0
        if not self.stage.hosts[name].silent:
            self.do(self.stage.put_reports())

    @deed(name=HOSTS, wait=(0, 30, 300))
    def a_host_is_drained_or_taken_back(self, name: str, wait: int) -> None:
        if self.outside.drains.pop(name, None) is None:
            self.outside.drains[name] = self.stage.now + wait
            self.outside.drained_at[name] = self.stage.now
            self.oracle.looked = False
            self.do(self.stage.store.drain(name, Drain(self.stage.now, self.stage.now + wait)))
            self.outside.note_time()
        else:
            self.do(self.stage.store.undrain(name))

    @deed(weight=1, name=HOSTS, cordon=YES_OR_NO)
    def a_host_is_cordoned_or_not(self, name: str, *, cordon: bool) -> None:
        self.do(self.stage.store.cordon(name, "repair") if cordon else self.stage.store.uncordon(name))

    @deed(name=HOSTS, count=(1, 2))
    def machines_wait(self, name: str, count: int) -> None:
        for _ in range(count):
            self._host(name).waits(self.stage.now, 2**60 + next(self._ids))

    def _host(self, name: str) -> ModelHost:
        return next(host for host in self.hosts_of(self.stage) if host.name == name)

    # The control plane

    @deed(weight=7)
    def the_worker_looks(self) -> None:
        self.oracle.looked = self.loop.run_until_complete(self.stage.look())
        self.oracle.look()

    @deed(weight=1)
    def another_worker_looks(self) -> None:
        """Two take turns, each with what it remembers of its last one."""
        self.others.append(self.stage.reconciler)
        self.stage.reconciler = self.others.pop(0)
        self.the_worker_looks()

    @deed(weight=2, at=(1, 1, 2, 3, 4, 6))
    def a_worker_is_overtaken(self, at: int) -> None:
        """Before its write of that number.  What it was about to do is done by the other one, or void."""
        self.overtaken_at = self.writes + at
        self.the_worker_looks()
        self.overtaken_at = 0

    @deed(weight=3, at=tuple(range(1, 21)), lease_stays=YES_OR_NO)
    def the_worker_dies_at_work(self, at: int, *, lease_stays: bool) -> None:
        """At the call of GitHub or the write to Redis of that number, before it took effect or after."""
        self.dies_at = self.points + at
        try:
            self.the_worker_looks()
        except BaseException as error:
            if not has_died(error):
                raise
            self.stage.reconciler = self.stage.fresh()
            if lease_stays:
                self._pass(LEASE_MS / 1000)
            else:
                self.do(self.stage.redis.delete(self.stage.store.names.lease))
        finally:
            self.dies_at = 0

    @deed(weight=1)
    def redis_is_emptied(self) -> None:
        self.do(self.stage.redis.flushall())
        self.stage.reconciler = self.stage.fresh()
        self.others = [self.stage.fresh()]
        self.oracle.forget()
        self.outside.emptied = True
        self.late = []
        decided = {name: host.decided.drain for name, host in self.stage.hosts.items()}
        self.outside.drains = {name: drain.until for name, drain in decided.items() if drain is not None}
        self.outside.excused |= self.outside.forgotten
        self.hosts_go_on()

    @deed(weight=4, seconds=(5, 30, 100, 200, 400, 700), hosts=(False, True, True, True), worker=YES_OR_NO)
    def time_passes(self, seconds: int, *, hosts: bool, worker: bool) -> None:
        """And GitHub gives nothing to anybody.  ``hosts`` and ``worker``: they go on meanwhile."""
        if not hosts and not worker:
            self._pass(seconds)
            return
        for _ in range(0, seconds, STEP_S):
            self._pass(min(seconds, STEP_S))
            if hosts:
                self.hosts_go_on()
            if worker:
                self.the_worker_looks()

    @deed(when=lambda play: bool(play.outside.running()), pick=PICK)
    def a_machine_dies_under_its_job(self, pick: int) -> None:
        """And GitHub ends the job, minutes later."""
        running = self.outside.running()
        runner = ulid_of(running[pick % len(running)].runner_name) or ""
        if self.outside.lives(runner):
            self._fail(self.stage.host_of(runner), runner)
        self.time_passes(GIVEN_UP_S + STEP_S, hosts=True, worker=True)

    @deed(weight=8, rounds=(1, 2, 3), fate=FATES)
    def all_goes_on(self, rounds: int, fate: str) -> None:
        for _ in range(rounds):
            self.hosts_go_on()
            self.the_worker_looks()
            self.assign(fate)
            self.guests_speak()
            self._pass(2)

    def _pass(self, seconds: float) -> None:
        self.stage.now += seconds
        self.github.take_effect()
        self.oracle.looked = False
        self.outside.note_time()
        for job in self.outside.give_up_machineless():
            self.tell(job, "now")

    # The end

    def settle(self) -> None:
        """All trouble ends, everybody does what they do, and everything is as it should be."""
        stage = self.stage
        self.github.away, self.github.odd, self.github.lies = False, [], False
        if self.installation not in self.github.apps:
            self.the_app_is_removed_or_comes_back("now")
        elif self.outside.app_away:
            self.the_app_is_suspended_or_not("now")
        for host in self.hosts_of(stage):
            host.silent, host.failing, host.steps_per_move = False, 0, 99
            host.capacity = ROOM_FOR_ALL if self.plan.room_at_the_end else host.capacity
            self.do(stage.store.undrain(host.name))
            self.do(stage.store.uncordon(host.name))
        self.outside.drains = {}
        step, before, last = 5, None, self.stage.now + SETTLED_S
        while True:
            self._settle_once()
            if self.oracle.is_over() or self.stage.now >= last:
                break
            now = [(record.life, record.bound) for record in self.oracle.live], len(self.outside.running())
            step = 5 if now != before else min(step * 2, 400)
            before = now
            self._pass(step)
        self.hosts_go_on()
        self.the_worker_looks()
        self.hosts_go_on()
        self.oracle.look_at_the_end()

    def _settle_once(self) -> None:
        """What happens outside happens before the worker looks again, as far as it can."""
        self.late_deliveries_arrive(last_first=False)
        self.hosts_go_on()
        self.assign("now")
        self.guests_speak()
        for record in self.oracle.live:
            job = self.github.jobs.get(record.life.job_id)
            assert not record.refused, record
            if job is not None and job.state == "in_progress" and self._has_policy(record):
                self.end(job, "now", stops=True)
        self.do(self.stage.put_reports())
        self.the_worker_looks()
        for waiting in self.oracle.jobs():
            if waiting.permanent and self.github.jobs[waiting.job.id].state == "queued":
                self.oracle.may_give_up(waiting)
                self.outside.given_up.add(waiting.job.id)
                self.tell(self.github.end(waiting.job.id, "cancelled"), "now")

    def _has_policy(self, record: RunnerRecord) -> bool:
        """Its machine runs, and is held to its job's policy: its steps can begin."""
        seen = next((host.seen[record.id] for host in self.stage.hosts.values() if record.id in host.seen), None)
        return record.bound and seen is not None and seen.vm == "running" and seen.policy == record.policy
