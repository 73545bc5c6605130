"""A whole system on a table: GitHub, the control plane's processes, hosts and guests, and whoever makes trouble."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import cache
from pathlib import Path
from typing import Any, Self

import msgspec
import structlog
from cryptography.hazmat.primitives.asymmetric import rsa
from ulid import ULID

from orchestrator.control.sealed import Seal
from orchestrator.simulator.github.core import GitHub
from orchestrator.simulator.github.jit import new_key
from orchestrator.simulator.github.state import Account, Job, Runner
from policies import load_presets
from tests.chaos.chronicle import Chronicle
from tests.chaos.clockwork import EPOCH, Loop
from tests.chaos.furniture import furnish
from tests.chaos.guest import Guest
from tests.chaos.journal import Journal
from tests.chaos.lot import LIFETIME_S, draw, without_waiting
from tests.chaos.machine import Machine
from tests.chaos.memory import Memory
from tests.chaos.mortal import is_killed
from tests.chaos.people import People
from tests.chaos.plane import PREFIX, Api, Worker
from tests.chaos.rules import Rules

REPOSITORIES = ("app", "web", "tools", "flood")
POLICY = b"mode: enforce\nallow:\n  - host: allowed.example\n"
OTHERS = {"beta": ("lib", "docs"), "octocat": ("toy",)}
"""Accounts that have the App too, an organisation and a person, and their repositories."""
SECRET = "a webhook secret"


@cache
def spare_key() -> rsa.RSAPrivateKey:
    """One for the App and all registrations: making one takes longer than many jobs."""
    return new_key()


class City:
    pace = 1.0
    """How long jobs, gates and faults last, as a share of what is usual."""
    settled = True
    """Nobody is about to do something still."""
    small: frozenset[str] = frozenset()
    """Accounts whose quota is less than the largest class."""
    people: People | None = None
    rules: Rules | None = None
    """Where all can be seen at every moment."""
    labels: tuple[str, ...] = ("ironcd",)
    """That jobs ask for, as often as they stand here."""

    def __init__(self, loop: Loop, folder: Path, seed: int, *, hosts: int, lines: list[str] | None = None) -> None:
        self.loop = loop
        self.folder = folder
        self.seed = seed
        self.rng = random.Random(seed)
        random.seed(seed)
        self.journal = Journal(self.now, lines)
        loop.set_exception_handler(self._unheard)
        structlog.configure(processors=[self.journal.log], cache_logger_on_first_use=False)
        self.memory = Memory(self.now)
        self.secret = SECRET
        self.hinted = asyncio.Event()
        self.presets = load_presets()
        self.seal = Seal.in_folder(folder)
        self.used: Counter[str] = Counter()
        """Faults of hosts, guests and processes, by kind; GitHub's are counted by the simulator."""
        self.kills = 0
        self.deadly = 0.0
        """Chance that a process that starts has a death in store for it."""
        self.control_away = self.api_away = False
        self.archive_full = False
        self.taken: dict[int, list[str]] = {}
        """Job to the runners that acquired it."""
        self.losses: dict[int, str] = {}
        """Job to what ended its machine in the middle of it."""
        self.out_of_reach: set[str] = set()
        """Hosts that were silent for so long, while they could have been heard, that they count as lost."""
        self.cancelled: set[int] = set()
        """Jobs that their user cancelled or rejected."""
        self.strangers: list[str] = []
        self.lengths: dict[int, float] = {}
        self.lot = draw(self.rng, str(folder), PREFIX)
        self.settings, self.room, self.labels = self.lot.settings, self.lot.room, self.lot.labels
        shares, largest = self.settings.sharing.organisations, max(m.vcpus for m in self.settings.classes.values())
        self.small = frozenset(name for name, it in shares.items() if it.vcpus is not None and it.vcpus < largest)
        self.half_made: dict[str, float] = {}
        """Since when there is what a template is made in."""
        self.acting: Machine
        """The host whose process does something now."""
        self.rerun: set[int] = set()
        """Runs that a person ran again."""
        self._under_way: set[asyncio.Task[None]] = set()
        self.people = People(self)
        self.rules = Rules(self)
        self.chronicle = Chronicle(self, PREFIX)
        furnish(self)
        self.github = self._github()
        self.api = Api(self)
        self.worker = Worker(self)
        self.hosts = [Machine(self, f"h{number}", folder) for number in range(1, hosts + 1)]
        for host in self.hosts:
            host.start_agent()

    def _github(self) -> GitHub:
        made = GitHub(
            repositories=REPOSITORIES,
            webhook_url="http://api/webhook",
            webhook_secret=SECRET,
            webhook_transport=_Late(self),
            clock=self.now,
            private_key=spare_key(),
        )
        made.faults.by(self.now, random.Random(self.rng.random()))
        made.rest.spare_keys = [spare_key()]
        made.state.accounts["beta"] = Account(id=9_919_002, login="beta", type="Organization")
        for owner, names in OTHERS.items():
            account = made.state.accounts[owner]
            made.install(account)
            for name in names:
                repo = made.create_repository(name)
                repo.owner = account
        for repo in made.state.repositories.values():
            repo.head_sha = f"{repo.id:040x}"
            repo.files[repo.default_branch] = {".ironcd/policy.yml": POLICY}
        self._plant_strangers(made)
        return made

    def _plant_strangers(self, github: GitHub) -> None:
        """Registrations that aren't ours: of people, and of another control plane in the same organisation."""
        key = github.rest.spare_keys[0].public_key()
        other = "ironcd-" + str(ULID.from_timestamp(EPOCH - 9000)).lower()
        for name, labels in (("their-runner", ["theirs"]), (other, ["ironcd-other", "ironcd-by-999"])):
            made = github.engine.add_runner(
                name=name, owner=github.owner, repository=None, group_id=1, labels=labels, work_folder="_work", key=key
            )
            made.created_at = EPOCH + 1e9
            self.strangers.append(made.name)

    def now(self) -> float:
        return EPOCH + self.loop.time()

    def make_id(self) -> str:
        """A ULID out of the seed."""
        return str(ULID(int(self.now() * 1000).to_bytes(6, "big") + self.rng.randbytes(10)))

    def _unheard(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An error in what nobody waits for.  That a process was killed is none."""
        error = context.get("exception")
        if error is None or not is_killed(error):
            self.journal.broke("the city", error or RuntimeError(str(context.get("message"))))

    # Questions

    def github_is_away(self) -> bool:
        return any(fault.name == "outage" and fault.is_on(self.now()) for fault in self.github.faults.responses)

    def is_full(self, path: Path) -> bool:
        return any(host.disk_full and path.is_relative_to(host.settings.state_dir) for host in self.hosts)

    def length_of(self, job: Job) -> float:
        return self.lengths.get(job.id, 10.0)

    # Deaths

    def next_death(self, _who: str) -> int | None:
        """In how many points a process that starts now will die."""
        return self.rng.randrange(1, 400) if self.rng.random() < self.deadly else None

    def died(self, who: str, again: Callable[[], None]) -> None:
        self.kills += 1
        self.used[f"killed-{who if who in ('api', 'worker') else 'agent'}"] += 1
        self.journal.note(f"{who} died")
        self.loop.call_later(self.rng.uniform(0.5, 10.0), again)

    # What becomes of jobs

    def acquired(self, job: Job, runner: str, guest: Guest) -> None:
        self.taken.setdefault(job.id, []).append(runner)
        self.journal.note(f"job {job.id} taken by {runner} on {guest.machine.name}")
        if self.rules is not None:
            self.rules.look()

    def guest_ended(self, machine: Machine, guest: Guest, why: str) -> None:
        job = guest.job
        if job is not None and job.status == "in_progress":
            lived_s = self.loop.time() - guest.began
            why = "lifetime" if why == "destroyed" and lived_s >= LIFETIME_S else why
            if why == "destroyed" and self.people is not None and self.people.had_to_end(machine.name):
                why = "drained"
            self.losses[job.id] = f"{why} on {machine.name}"
            self.journal.note(f"job {job.id} lost its machine: {why}")

    def unbound(self, job: Job, machine: Machine, why: str) -> None:
        """Its hook was refused, or nobody answered it: also where its host had to be empty before its policy came."""
        drained = why.endswith(": drained") and self.people is not None and self.people.had_to_end(machine.name)
        self.losses[job.id] = "drained" if drained else f"no policy: {why}"
        self.journal.note(f"job {job.id} got no policy: {why}")

    def stopped(self, job: Job, machine: Machine) -> None:
        drained = self.people is not None and self.people.had_to_end(machine.name)
        self.losses[job.id] = "drained" if drained else "stopped"
        self.journal.note(f"job {job.id} was stopped")

    def stranger_takes(self, job: Job) -> None:
        """A runner of somebody else's serves a queued job."""
        github, repo = self.github, job.run.repository
        name = f"stranger-{len(self.strangers)}"
        runner: Runner = github.engine.add_runner(
            name=name,
            owner=repo.owner,
            repository=None if repo.owner.type == "Organization" else repo,
            group_id=1,
            labels=list(job.spec.labels),
            work_folder="_work",
            key=github.rest.spare_keys[0].public_key(),
        )
        self.strangers.append(name)
        job.runner, runner.job = runner, job
        github.engine.acquire(job)
        self.taken.setdefault(job.id, []).append(name)
        self.loop.call_later(30.0, github.engine.complete, job, "success")

    def wind_down(self) -> None:
        """No machine is to wait any more: an admin has set it so, and started the worker anew."""
        self.settings = msgspec.structs.replace(self.settings, classes=without_waiting(self.settings.classes))
        if self.worker.running:
            self.worker.kill()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """What a person does in the background."""
        task = asyncio.ensure_future(work)
        self._under_way.add(task)
        task.add_done_callback(self._is_done)
        self.settled = False

    def _is_done(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.journal.broke("people", error)
        self.settled = not self._under_way

    def control_back(self) -> None:
        """One after the other, in either order."""
        self.control_away = False
        for process in (self.api, self.worker):
            self.loop.call_later(self.rng.uniform(0.5, 40.0), process.begin)

    def api_back(self) -> None:
        self.api_away = False
        self.api.begin()

    def _listen_for_hosts(self) -> None:
        """Note hosts that were really out of reach for so long that they count as lost."""
        for host in self.hosts:
            if self.api.running and (host.cut_off or not host.up or host.agent is None):
                host.unheard_s += 2.0
            elif self.api.running:
                host.unheard_s = 0.0
            if host.unheard_s >= self.settings.pace.host_lost_s - 30.0:
                self.out_of_reach.add(host.name)

    async def close(self) -> None:
        self.deadly = 0.0
        self.control_away = True
        for host in self.hosts:
            host.up = False
            host.kill_agent()
            for guest in list(host.guests.values()):
                guest.end()
        self.api.kill()
        self.worker.kill()
        await self.github.hooks.stop()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        structlog.reset_defaults()

    async def clockwork(self) -> None:
        """GitHub's own time."""
        self.github.hooks.start()
        while True:
            try:
                self.github.pass_time()
                self._listen_for_hosts()
                self.chronicle.tick()
            except Exception as error:  # noqa: BLE001 - whatever it is goes on record
                self.journal.broke("github", error)
            await asyncio.sleep(2.0)


class _Late:
    """GitHub's line to the API, whichever process is that at the time."""

    def __init__(self, city: City) -> None:
        self._city = city

    async def handle_async_request(self, request: Any) -> Any:
        await asyncio.sleep(self._city.rng.uniform(0.05, 1.0))
        return await self._city.api.handle_async_request(request)

    async def aclose(self) -> None:
        pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass
