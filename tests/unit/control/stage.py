"""A whole control plane on a table: a Redis in memory, a GitHub in memory, hosts that do as they are told, and a clock to turn.

Nothing here waits: `Stage.run` looks, lets the hosts move by one step each, lets GitHub do what GitHub does, and turns
the clock, until nothing changes any more.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
from ulid import ULID

from orchestrator.control.github import Installation
from orchestrator.control.github_fake import FakeGitHub
from orchestrator.control.github_transport import Limit
from orchestrator.control.governor import Governor
from orchestrator.control.reconcile import Reconciler
from orchestrator.control.records import JobRecord, RunnerRecord, Sighting
from orchestrator.control.redis_fake import RedisFake
from orchestrator.control.sealed import Seal
from orchestrator.control.settings import ControlSettings
from orchestrator.control.store import Store
from orchestrator.core.decided import Decided, later
from orchestrator.core.inbox import Delivery, InstallationNews
from orchestrator.core.job import Job, Moment
from orchestrator.core.machine import Capacity
from orchestrator.core.names import names_of
from orchestrator.core.wire import Desired, DesiredRunner, Failure, GuestClaim, Image, Observed, ObservedRunner, Proof
from policies import load_presets

PRESETS = load_presets()
ORG, REPO, INSTALLATION = "acme", "acme/app", 7
POLICY = b"mode: enforce\nallow:\n  - host: allowed.example\n"
BOOT_MARKS = (
    "accepted", "chain_installed", "disk_made", "seed_made", "domain_started", "guest_hello",
    "jit_taken", "seed_gone", "runner_started", "runner_listening",
)  # fmt: skip
NEVER = Proof(*([True] * 9), looked_at=0.0)


class Host:
    """A host agent that does one step of its work each time it is asked."""

    def __init__(self, name: str = "h1", vcpus: int = 8) -> None:
        self.name = name
        self.capacity = Capacity(vcpus, 64 * 1024, 500)
        self.boot = "boot-1"
        self.seen: dict[str, ObservedRunner] = {}
        self.generation = 0
        self.jits: dict[str, str] = {}
        self.problems: tuple[Failure, ...] = ()
        self.images = (Image("default", "sha256:0", "2.336.0", {"apt": ("deb.example",)}),)
        self.steps_per_move = 99
        self.ends_slowly = False
        """A machine that runs is told to end in one move, and is gone in the next."""
        self.decided = Decided()
        self.remembers = True
        """False in agents of the version before: they keep neither where their runners are registered nor what was decided."""
        self.silent = False
        """It goes on, and nobody hears it, nor it anybody."""
        self.fails: Callable[[str], Failure | None] = lambda _runner: None
        self.ever: set[str] = set()
        self.ended: set[str] = set()

    def move(self, desired: Desired | None, now: float) -> None:
        if desired is None:
            return
        self.generation = desired.generation
        self.decided = later(self.decided, desired.decided)
        named = {runner.id for runner in desired.runners}
        self.seen = {key: runner for key, runner in self.seen.items() if key in named}
        for runner in desired.runners:
            self.seen[runner.id] = self._step(runner, self.seen.get(runner.id), now)

    def _step(self, wish: DesiredRunner, seen: ObservedRunner | None, now: float) -> ObservedRunner:
        seen = seen or ObservedRunner(wish.id, "absent")
        if self.remembers and seen.scope != wish.scope:
            seen = msgspec.structs.replace(seen, scope=wish.scope)
        if wish.wish == "gone":
            slowly = self.ends_slowly and seen.vm == "running" and wish.id not in self.ended
            self.ended.add(wish.id)
            if slowly:
                return msgspec.structs.replace(seen, marks={**seen.marks, "end_begun": now})
            marks = {"end_begun": now, "domain_gone": now, "all_gone": now}
            return msgspec.structs.replace(seen, vm="absent", marks={**seen.marks, **marks}, proof=NEVER)
        if seen.vm in ("stopped", "failed", "crashed") or wish.id in self.ended:
            return seen
        if wish.jit:
            self.jits[wish.id] = wish.jit
        failure = self.fails(wish.id)
        if failure is not None:
            return msgspec.structs.replace(seen, vm="failed", failure=failure)
        self.ever.add(wish.id)
        todo = [mark for mark in BOOT_MARKS if mark not in seen.marks][: self.steps_per_move]
        if not todo and (seen.vm, seen.generation) == ("running", wish.generation):
            return seen
        marks = {**seen.marks, **dict.fromkeys(todo, now)}
        return msgspec.structs.replace(
            seen, vm="running", marks=marks, policy=wish.policy.digest, generation=wish.generation
        )

    def exits(self, runner: str, code: int, now: float) -> None:
        seen = self.seen[runner]
        self.seen[runner] = msgspec.structs.replace(
            seen, vm="stopped", exit_code=code, marks={**seen.marks, "runner_exited": now}
        )

    def claims(self, runner: str, claim: GuestClaim, now: float) -> None:
        seen = self.seen[runner]
        self.seen[runner] = msgspec.structs.replace(seen, claim=claim, marks={**seen.marks, "job_hint": now})

    def report(self, now: float) -> Observed:
        return Observed(
            host=self.name,
            boot=self.boot,
            at=now,
            capacity=self.capacity,
            accelerator="kvm",
            generation=self.generation,
            runners=tuple(self.seen.values()),
            images=self.images,
            problems=self.problems,
            decided=self.decided if self.remembers else None,
        )


class Stage:
    def __init__(
        self,
        folder: Path,
        *,
        hosts: Iterable[Host] = (),
        settings: ControlSettings | None = None,
        redis: Any = None,
    ) -> None:
        """``redis``: a client of another one than that in memory, for scripts in Lua."""
        self.now = 1_700_000_000.0
        self.redis: Any = redis or RedisFake(clock=self.clock)
        self.store = Store(self.redis, "t:")
        self.github = FakeGitHub()
        self.github.apps[INSTALLATION] = Installation(INSTALLATION, ORG, organization=True)
        self.github.files[REPO, ".ironcd/policy.yml"] = POLICY
        self.hosts = {host.name: host for host in hosts} or {"h1": Host()}
        self.settings = settings or ControlSettings(app_id=1, state_dir=str(folder), prefix="t:")
        self.seal = Seal.in_folder(folder)
        self._rng = random.Random(1)
        self._guids = itertools.count(1)
        self._desired: dict[str, tuple[bytes, Desired]] = {}
        """By host, the last one that was read."""
        self.started: dict[int, list[str]] = {}
        """Job to the runners that had it: exactly one each, at the end."""
        self.reconciler = self.fresh()

    def fresh(self, governor: Governor | None = None) -> Reconciler:
        """A new worker, that knows nothing of the one before."""
        return Reconciler(
            self.store, self.github, self.settings, PRESETS, self.seal,
            clock=lambda: self.now, make_id=self.make_id, governor=governor,
        )  # fmt: skip

    def scarce(self, share: float) -> Governor:
        """A governor that was told how much of the installation's rate limit is left."""
        governor = Governor(clock=lambda: self.now)
        governor.limits[INSTALLATION, "core"] = Limit(5000, int(5000 * share), self.now + 1e6)
        return governor

    def make_id(self) -> str:
        """A ULID of now; the same ones in each run, so that what depends on their order fails always or never."""
        return str(ULID(int(self.now * 1000).to_bytes(6, "big") + self._rng.randbytes(10)))

    def clock(self) -> float:
        return self.now

    async def close(self) -> None:
        await self.redis.aclose()

    # What comes in

    def job(self, job_id: int, *, labels: tuple[str, ...] = ("ironcd",), repo: str = REPO) -> Job:
        """A new job at GitHub, queued."""
        job = Job(
            id=job_id, installation=INSTALLATION, org=ORG, repo=repo, state="queued", labels=labels, run_id=job_id + 1000,
            name=f"job {job_id}", workflow="ci", head_sha=f"{job_id:040x}", created_at=self.now, deploys=False,
        )  # fmt: skip
        self.github.jobs[job_id] = job
        return job

    async def deliver(self, job: Job, action: str = "", *, guid: str = "") -> None:
        told = Moment(self.now, action or job.state, "delivery received")
        told_job = msgspec.structs.replace(job, story=(told,))
        await self._put(Delivery(guid or f"g{next(self._guids)}", "workflow_job", self.now, job=told_job))

    async def deliver_installation(self, news: InstallationNews) -> None:
        await self._put(Delivery(f"g{next(self._guids)}", "installation", self.now, installation=news))

    async def _put(self, delivery: Delivery) -> None:
        await self.redis.xadd(self.store.names.inbox, {"d": msgspec.json.encode(delivery), "b": b"{}"})

    # What goes on

    async def look(self) -> bool:
        return await self.reconciler.look()

    async def hosts_move(self) -> None:
        for host in self.hosts.values():
            if host.silent:
                continue
            _, raw = await self.store.desired(host.name)
            host.move(await self._with_jits(host.name, raw), self.now)
            await self.store.put_sighting(Sighting(self.now, host.report(self.now)))

    async def put_reports(self) -> None:
        """The hosts tell what they see, and do nothing."""
        for host in self.hosts.values():
            await self.store.put_sighting(Sighting(self.now, host.report(self.now)))

    async def _with_jits(self, host: str, raw: bytes | None) -> Desired | None:
        if raw is None:
            return None
        known = self._desired.get(host)
        desired = known[1] if known is not None and known[0] == raw else msgspec.json.decode(raw, type=Desired)
        self._desired[host] = raw, desired
        if not desired.runners:
            return desired
        sealed = await self.store.sealed_jits([runner.id for runner in desired.runners])
        unsealed = {key: self.seal.unseal(value) or "" for key, value in sealed.items()}
        runners = tuple(msgspec.structs.replace(r, jit=unsealed.get(r.id, "")) for r in desired.runners)
        return msgspec.structs.replace(desired, runners=runners)

    def github_assigns(self) -> list[Job]:
        """GitHub gives queued jobs to registered runners that listen, labels permitting."""
        given = []
        for job in [job for job in self.github.jobs.values() if job.state == "queued"]:
            for (account, _), runner in list(self.github.runners.items()):
                if account not in (job.org, job.repo):
                    continue
                ulid = runner.name.removeprefix("ironcd-").upper()
                seen = next((host.seen[ulid] for host in self.hosts.values() if ulid in host.seen), None)
                listens = seen is not None and seen.vm == "running" and "runner_listening" in seen.marks
                if listens and not runner.busy and set(job.labels) <= set(runner.labels):
                    assert self.host_of(ulid).jits[ulid], "a runner without its configuration can't listen"
                    given.append(self.github.give(job.id, runner.name))
                    self.started.setdefault(job.id, []).append(ulid)
                    break
        return given

    def host_of(self, runner: str) -> Host:
        return next(host for host in self.hosts.values() if runner in host.seen)

    async def run(self, *, seconds: float = 1.0, rounds: int = 40, deliver: bool = True) -> None:
        """Rounds of everything, until nobody moves: jobs are assigned, started, and end after their policy is bound."""
        for _ in range(rounds):
            await self.hosts_move()
            await self.look()
            await self.hosts_move()
            for job in self.github_assigns():
                if deliver:
                    await self.deliver(job)
            for record in await self.store.live_runners():
                job = self.github.jobs.get(record.life.job_id)
                if job is not None and job.state == "in_progress" and (record.life.bound or record.refused):
                    ended = self.github.end(job.id, "failure" if record.refused else "success")
                    if deliver:
                        await self.deliver(ended)
            self.now += seconds

    # What is so

    async def job_record(self, job_id: int) -> JobRecord:
        record = await self.store.job(job_id)
        assert record is not None
        return record

    async def runners(self) -> list[RunnerRecord]:
        return await self.store.live_runners()

    async def leftovers(self) -> dict[str, object]:
        """Everything that should be gone once all jobs are over; empty when it is."""
        keys = [key.decode() for key in await self.redis.keys("t:*")]
        kept = {
            "t:counters", "t:jobs:done", "t:jobs:done:at", "t:runners:gone", "t:runners:gone:at", "t:sightings",
            "t:desired", "t:desired:sums", "t:inbox", "t:policies", "t:policies:of", "t:fence", "t:known", "t:dead", "t:hint",
            "t:redelivery", "t:hosts:cordoned", "t:repos:active", "t:repos:searched", "t:quarantine", "t:releases", "t:listening",
            "t:repos:served", "t:hosts:draining", "t:hosts:decided", "t:jobs:unserved", "t:jobs:unserved:at",
        }  # fmt: skip
        found: dict[str, object] = {
            "deliveries": await self.redis.xlen(self.store.names.inbox),
            "keys": sorted(set(keys) - kept),
            "registrations": [runner.name for runner in self.github.runners.values()],
            "machines": [key for host in self.hosts.values() for key, seen in host.seen.items() if seen.vm != "absent"],
            "wishes": [key for host in self.hosts.values() for key in host.seen],
        }
        return {key: value for key, value in found.items() if value}


def runner_name(runner: str) -> str:
    return names_of(runner).runner
