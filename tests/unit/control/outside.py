"""What is outside of the control plane in the model: a GitHub that errs, lies and forgets, hosts that fail, and what all that excuses."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from ulid import ULID

from orchestrator.control.github import (
    GitHubRunner,
    PolicyText,
    RateLimited,
    Registration,
    Removal,
    RunnerScope,
    Unavailable,
)
from orchestrator.control.github_fake import FakeGitHub, When
from orchestrator.core.job import Job
from orchestrator.core.names import ulid_of
from orchestrator.core.runner import NOTICE_S
from orchestrator.core.wire import Desired, DesiredRunner, Failure, Observed, ObservedRunner, ObservedWarm

from .stage import Host, Stage

LOST_S, GIVEN_UP_S = 180, 600


class Died(BaseException):
    """kill -9, as far as a test in one process can have it."""


def has_died(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(has_died(inner) for inner in error.exceptions)
    return isinstance(error, Died)


class FickleGitHub(FakeGitHub):
    def __init__(self) -> None:
        super().__init__(trouble=self._trouble_of)
        self.away = False
        """Nothing is answered, and nothing takes effect."""
        self.odd: list[str] = []
        """What becomes of the next calls: ``refused`` with 503, ``limited``, done with its answer ``lost``, done ``later`` (if it
        makes a runner), or ``fine``."""
        self.odd_of = ""
        """Of calls with that in their name only."""
        self._later: list[tuple[RunnerScope, str, tuple[str, ...]]] = []
        self.lies = False
        """It says of every runner that it is offline and has nothing to do."""
        self.point: Callable[[], None] = lambda: None
        """Called wherever something takes effect, before and after."""
        self.run_again: Callable[[Job, Job], Job] = lambda _former, fresh: fresh
        self.moved: dict[str, str] = {}
        """Former names of repositories, which GitHub follows to the present ones."""

    @property
    def fine(self) -> bool:
        return not self.away and not self.odd

    def _trouble_of(self, call: str, when: When) -> None:
        self.point()
        if self.away and when == "before":
            raise Unavailable("503")
        if not self.odd or self.odd_of not in call:
            return
        kind = self.odd[0]
        if kind == "later" and call != "generate_jit":
            return
        if when == "before" and kind in ("refused", "limited"):
            self.odd.pop(0)
            raise Unavailable("503") if kind == "refused" else RateLimited("slow down", 5.0)
        if when == "after":
            self.odd.pop(0)
            if kind == "lost":
                raise Unavailable("no answer in time")

    def _now(self, scope: RunnerScope) -> RunnerScope:
        return msgspec.structs.replace(scope, repo=self.moved.get(scope.repo, scope.repo))

    async def generate_jit(self, scope: RunnerScope, name: str, labels: tuple[str, ...]) -> Registration:
        if self.odd[:1] == ["later"] and not self.away and not self.odd_of:
            self.odd.pop(0)
            self._later.append((self._now(scope), name, labels))
            raise Unavailable("no answer in time")
        return await super().generate_jit(self._now(scope), name, labels)

    async def delete_runner(self, scope: RunnerScope, github_id: int) -> Removal:
        return await super().delete_runner(self._now(scope), github_id)

    async def find_runner(self, scope: RunnerScope, name: str) -> GitHubRunner | None:
        return self._said(await super().find_runner(self._now(scope), name))

    async def get_runner(self, scope: RunnerScope, github_id: int) -> GitHubRunner | None:
        return self._said(await super().get_runner(self._now(scope), github_id))

    async def list_runners(self, scope: RunnerScope) -> list[GitHubRunner]:
        seen = await super().list_runners(self._now(scope))
        return [said for one in seen if (said := self._said(one)) is not None]

    async def get_job(self, installation: int, repo: str, job_id: int) -> Job | None:
        return await super().get_job(installation, self.moved.get(repo, repo), job_id)

    async def run_jobs(self, installation: int, repo: str, run_id: int, attempt: int) -> list[Job]:
        return await super().run_jobs(installation, self.moved.get(repo, repo), run_id, attempt)

    async def queued_jobs(self, installation: int, repo: str) -> list[Job]:
        return await super().queued_jobs(installation, self.moved.get(repo, repo))

    async def read_file(self, installation: int, repo: str, path: str) -> PolicyText | None:
        return await super().read_file(installation, self.moved.get(repo, repo), path)

    def _said(self, seen: GitHubRunner | None) -> GitHubRunner | None:
        lied = seen is not None and self.lies
        return msgspec.structs.replace(seen, online=False, busy=False) if lied and seen is not None else seen

    async def rerun_job(self, installation: int, repo: str, job_id: int) -> bool:
        known = set(self.jobs)
        done = await super().rerun_job(installation, self.moved.get(repo, repo), job_id)
        for number in set(self.jobs) - known:
            self.jobs[number] = self.run_again(self.jobs[job_id], self.jobs[number])
        return done

    def take_effect(self) -> None:
        """Requests whose answer nobody waits for any more are carried out."""
        for scope, name, labels in self._later:
            if self._by_name(scope, name) is None:
                number = next(self._ids)
                made = GitHubRunner(number, name, online=False, busy=False, labels=labels)
                self.runners[scope.account, number] = made
        self._later = []

    def forget(self, name: str) -> None:
        """The registration is gone, whatever its runner does."""
        self.runners = {key: seen for key, seen in self.runners.items() if seen.name != name}


class ModelHost(Host):
    """With machines that wait, and the deadlines that a host keeps by itself, also where nobody hears it."""

    def __init__(self, name: str, vcpus: int) -> None:
        super().__init__(name, vcpus)
        self.ends_slowly = True
        self.failing = 0
        self.fails = self._fails
        self.warm: list[ObservedWarm] = []
        self.wishes: dict[str, DesiredRunner] = {}
        self.deadline: Callable[[str], None] = lambda _runner: None
        """Told of each runner that the host ends by itself."""

    def _fails(self, runner: str) -> Failure | None:
        if self.failing <= 0 or runner in self.ever:
            return None
        self.failing -= 1
        return Failure("guest-silent", "the guest never spoke")

    def waits(self, now: float, number: int) -> None:
        ulid = str(ULID.from_bytes(round(now * 1000).to_bytes(6, "big") + number.to_bytes(10, "big")))
        self.warm.append(ObservedWarm(ulid, "ironcd", now))

    def move(self, desired: Desired | None, now: float) -> None:
        super().move(desired, now)
        self.wishes = {} if desired is None else {wish.id: wish for wish in desired.runners}
        self.keep_deadlines(now)

    def _step(self, wish: DesiredRunner, seen: ObservedRunner | None, now: float) -> ObservedRunner:
        if seen is None and wish.wish == "run" and not wish.jit:
            failure = Failure("state-lost", "its JIT configuration is gone, and nothing is known of its VM")
            return ObservedRunner(wish.id, "failed", failure=failure)
        if seen is not None and wish.wish == "run" and wish.id in self.ended and seen.vm == "running":
            return msgspec.structs.replace(seen, vm="stopped")  # what was begun is brought to its end
        return super()._step(wish, seen, now)

    def keep_deadlines(self, now: float) -> None:
        for wish in self.wishes.values():
            seen = self.seen.get(wish.id)
            if seen is not None and seen.vm == "running" and wish.wish == "run":
                code = self._over(wish, seen, now)
                if code:
                    self.deadline(wish.id)
                    failure = Failure(code, "its host ended it")
                    self.seen[wish.id] = msgspec.structs.replace(seen, vm="failed", failure=failure)

    def _over(self, wish: DesiredRunner, seen: ObservedRunner, now: float) -> str:
        listened = seen.marks.get("runner_listening")
        if wish.end_by and now >= wish.end_by:
            return "lifetime"
        if wish.boot_by and now >= wish.boot_by and listened is None:
            return "boot-timeout"
        idle = wish.idle_s and listened is not None and "job_hint" not in seen.marks
        return "idle-too-long" if idle and listened is not None and now - listened >= wish.idle_s else ""

    def report(self, now: float) -> Observed:
        waits = tuple(machine for machine in self.warm if machine.id not in self.ever and machine.id not in self.seen)
        return msgspec.structs.replace(super().report(now), warm=waits)

    def end_all(self, vm: str) -> None:
        for key, seen in self.seen.items():
            if seen.vm == "running":
                self.seen[key] = msgspec.structs.replace(seen, vm=vm)
        self.warm.clear()

    def wipe(self) -> None:
        """A new disk: it knows of nothing that it had."""
        self.seen, self.wishes, self.generation = {}, {}, 0
        self.warm.clear()


class Outside:
    """What happened outside, and what it excuses."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.ended_by_somebody: set[int] = set()
        self.given_up: set[int] = set()
        self.machineless_ends: set[int] = set()
        """Jobs that GitHub ended since nothing was heard of their machine."""
        self.excused: set[str] = set()
        """Runners whose machine may end, whatever it does."""
        self.forgotten: set[str] = set()
        """Runners whose registration GitHub has lost."""
        self.heard: dict[str, float] = dict.fromkeys(stage.hosts, stage.now)
        self.drains: dict[str, float] = {}
        self.drained_at: dict[str, float] = {}
        self.given_at: dict[str, float] = {}
        self.ended_at: dict[str, float] = {}
        """Names of runners to when their job ended."""
        self.machineless: dict[int, float] = {}
        self.reruns: list[Job] = []
        self.app_away = False
        self.app_was_away = False
        self.emptied = False
        """Redis was, once."""

    def note_time(self) -> None:
        """Silence, drains and lifetimes that excuse an end by now."""
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

    def idle(self) -> list[str]:
        """Names of registered runners that have no job."""
        return [seen.name for seen in self.stage.github.runners.values() if not seen.busy]

    def lives(self, runner: str | None) -> bool:
        return any(host.seen[runner].vm == "running" for host in self.stage.hosts.values() if runner in host.seen)

    def give_up_machineless(self) -> list[Job]:
        """Ten minutes after a machine was lost, GitHub ends its job."""
        dead = {job.id for job in self.running() if not self.lives(ulid_of(job.runner_name))}
        self.machineless = {key: self.machineless.get(key, self.stage.now) for key in dead}
        over = [key for key, since in self.machineless.items() if self.stage.now - since >= GIVEN_UP_S]
        self.machineless_ends.update(over)
        return [self.stage.github.end(key, "failure") for key in over]
