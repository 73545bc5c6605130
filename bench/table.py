"""A control plane without the machines around it: the product's own reconciler on a real Redis, GitHub and hosts in memory.

Hosts do at once whatever they are told and GitHub answers at once, so the time that passes is the control plane's own and its
Redis'.  The one thing taken out is the pace of registrations (`orchestrator.control.governor`): it keeps GitHub's limit.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
from ulid import ULID

from orchestrator.control.github import Installation
from orchestrator.control.github_fake import FakeGitHub
from orchestrator.control.governor import Governor, Kind
from orchestrator.control.reconcile import Reconciler
from orchestrator.control.records import Sighting
from orchestrator.control.sealed import Seal
from orchestrator.control.settings import ControlSettings
from orchestrator.control.store import Store
from orchestrator.core.inbox import Delivery, Keys
from orchestrator.core.job import Job, Moment
from orchestrator.core.machine import Capacity, MachineClass
from orchestrator.core.names import ulid_of
from orchestrator.core.wire import Desired, DesiredRunner, Image, Observed, ObservedRunner, Proof
from orchestrator.intake.inbox import Inbox
from policies import load_presets

ORG, REPO, INSTALLATION = "acme", "acme/app", 7
POLICY = b"mode: enforce\nallow:\n  - preset: node\n  - preset: pypi\n  - host: registry.acme.example\n"
BODY = b'{"action":"queued"}' + bytes(16 << 10)
"""As large as a real delivery."""
MARKS = (
    "accepted", "chain_installed", "disk_made", "seed_made", "domain_started", "guest_hello",
    "jit_taken", "seed_gone", "runner_started", "runner_listening",
)  # fmt: skip
CLASS = MachineClass("ironcd")
CAPACITY = Capacity(10 * CLASS.vcpus, 10 * CLASS.memory_mib, 10 * CLASS.disk_gib)
"""Of a host: ten runners."""


class Unpaced(Governor):
    """Counts and floors as always; registrations aren't spread over minutes."""

    def _pace(self, kind: Kind, installation: int, now: float) -> None:
        pass


class Host:
    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: dict[str, ObservedRunner] = {}
        self.generation = 0

    def follow(self, desired: Desired) -> None:
        now = time.time()
        self.generation = desired.generation
        self.seen = {wish.id: self._made(wish, self.seen.get(wish.id), now) for wish in desired.runners}

    def _made(self, wish: DesiredRunner, seen: ObservedRunner | None, now: float) -> ObservedRunner:
        if wish.wish == "gone":
            return ObservedRunner(wish.id, "absent", marks={"all_gone": now}, proof=Proof(*([True] * 9), looked_at=now))
        marks = seen.marks if seen is not None else dict.fromkeys(MARKS, now)
        return ObservedRunner(wish.id, "running", marks=marks, policy=wish.policy.digest, generation=wish.generation)

    def report(self) -> Observed:
        return Observed(
            self.name, "boot", time.time(), CAPACITY, "kvm", self.generation, tuple(self.seen.values()),
            images=(Image("default", "sha256:0", "2.336.0", {"node": ("npm.example",), "pypi": ("pip.example",)}),),
        )  # fmt: skip


class Table:
    def __init__(self, store: Store, inbox: Inbox, folder: Path, *, hosts: int) -> None:
        self.store = store
        self.inbox = inbox
        self.github = FakeGitHub()
        self.github.apps[INSTALLATION] = Installation(INSTALLATION, ORG, organization=True)
        self.github.files[REPO, ".ironcd/policy.yml"] = POLICY
        self.hosts = {f"metal-{number}": Host(f"metal-{number}") for number in range(hosts)}
        self.settings = ControlSettings(app_id=1, state_dir=str(folder))
        self.reconciler = Reconciler(
            self.store, self.github, self.settings, load_presets(), Seal.in_folder(folder),
            make_id=lambda: str(ULID()), governor=Unpaced(clock=time.time),
        )  # fmt: skip
        self._guids = itertools.count(1)

    @classmethod
    def at(cls, url: str, folder: Path, *, hosts: int) -> Table:
        return cls(Store.at(url), Inbox.at(url, Keys("ironcd:")), folder, hosts=hosts)

    async def close(self) -> None:
        await self.inbox.close()
        await self.store.close()

    def queue(self, count: int, first: int) -> list[Job]:
        """So many new jobs at GitHub, of one run."""
        jobs = [
            Job(
                id=number, installation=INSTALLATION, org=ORG, repo=REPO, state="queued", labels=("ironcd",), run_id=first,
                name=f"build ({number - first})", workflow="ci", head_sha=f"{first:040x}", created_at=time.time(),
            )
            for number in range(first, first + count)
        ]  # fmt: skip
        self.github.jobs.update((job.id, job) for job in jobs)
        return jobs

    async def deliver(self, job: Job) -> None:
        """Returns once the delivery is durable."""
        now = time.time()
        told = msgspec.structs.replace(job, story=(Moment(now, job.state, "delivery received"),))
        await self.inbox.put(Delivery(f"guid-{next(self._guids)}", "workflow_job", now, job=told), BODY)

    async def look(self) -> None:
        await self.reconciler.look()

    async def tell(self, hosts: Iterable[Host] | None = None) -> None:
        """Hosts read what they should have, do it, and report."""
        for host in hosts if hosts is not None else self.hosts.values():
            _, raw = await self.store.desired(host.name)
            if raw is not None:
                host.follow(msgspec.json.decode(raw, type=Desired))
            await self.store.put_sighting(Sighting(time.time(), host.report()))

    def assign(self) -> list[Job]:
        """GitHub gives each listening runner a job that waits."""
        waiting = [job.id for job in self.github.jobs.values() if job.state == "queued"]
        listening = [seen.id for host in self.hosts.values() for seen in host.seen.values() if seen.vm == "running"]
        names = {ulid_of(seen.name): seen.name for seen in self.github.runners.values() if not seen.busy}
        free = [names[runner] for runner in listening if runner in names]
        return [self.github.give(job, name) for job, name in zip(waiting, free, strict=False)]

    async def deliver_all(self, jobs: Iterable[Job]) -> None:
        """As GitHub does: many at once."""
        await asyncio.gather(*(self.deliver(job) for job in jobs))

    async def to_steps(self) -> list[Job]:
        """The jobs that have a runner on its way, from there to their first step; which they are."""
        await self.tell()
        await self.look()
        given = self.assign()
        await self.deliver_all(given)
        for _ in range(2):
            await self.look()
            await self.tell()
        await self.look()
        return given

    async def end(self, jobs: Iterable[Job]) -> None:
        """Jobs from their last step to proof that nothing of them is left.  Raises RuntimeError where something is."""
        await self.deliver_all([self.github.end(job.id) for job in jobs])
        for _ in range(3):
            await self.look()
            await self.tell()
        left = await self.store.live_runners()
        if left:
            raise RuntimeError(f"{len(left)} runners are left, the first of them {left[0].life}")
