"""One bare-metal host: the real agent on stand-ins for libvirt, nftables, links and gateway; folders and records are real.

The agent is killed and started anew while domains, rules and guests go on; a reboot takes all of these with it and
leaves what is on disk.  Things of somebody else stand on it, and must stand there at the end.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrator.core.decided import Decided
from orchestrator.core.errors import HostError
from orchestrator.core.names import is_tap, names_of, ulid_of
from orchestrator.core.settings import HostSettings
from orchestrator.core.wire import Desired
from orchestrator.host import guest as wire
from orchestrator.host.accelerator import Choice
from orchestrator.host.agent import Agent
from orchestrator.host.domain_xml import DomainSpec
from orchestrator.host.fakes import FakeWall, FakeWires
from orchestrator.host.parts import Parts
from orchestrator.host.paths import HostPaths, host_paths, make_folders
from orchestrator.host.pool_plan import Memory
from orchestrator.host.slots import Slots
from orchestrator.host.templates import UNWANTED_S
from tests.chaos.guest import Guest
from tests.chaos.hardware import Gateway, GuardedRecords, Hypervisor, Steps, Talk
from tests.chaos.mortal import Guarded, Mortal, is_killed

if TYPE_CHECKING:
    from tests.chaos.city import City

FOREIGN_DOMAINS = ("debian-of-somebody", "ironcd-router", "ironcd-")
FOREIGN_TAP = "tap0"
FOREIGN_FILES = ("somebody.qcow2", "ironcd-notes.txt")


class Machine:
    def __init__(self, city: City, name: str, folder: Path) -> None:
        self.city = city
        self.name = name
        self.boots = 1
        self.settings = HostSettings(
            name=name,
            state_dir=str(folder / name / "state"),
            cache_dir=str(folder / name / "cache"),
            run_dir=str(folder / name / "run"),
            netns=name,
            reserve_memory_mib=0,
            reserve_disk_gib=0,
        )
        self.paths: HostPaths = host_paths(self.settings)
        make_folders(self.paths)
        self.guests: dict[str, Guest] = {}
        self.up = True
        self.booted_at = 0.0
        self.cut_off = False
        self.unheard_s = 0.0
        """The control plane can't be reached from here."""
        self.disk_full = self.memory_tight = False
        self.skew_s = 0.0
        """By so much its clock is ahead of everybody's."""
        self.fates: list[str] = []
        """Of the next guests; those beyond are well."""
        self.mortal = Mortal(name)
        self.agent: Agent | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._power_on()
        for folder_of_files in (self.paths.disks, self.paths.seeds):
            for file in FOREIGN_FILES:
                (folder_of_files / file).write_text("not ours")

    def now(self) -> float:
        """By its own clock."""
        return self.city.now() + self.skew_s

    def _power_on(self) -> None:
        self.hypervisor, self.wall, self.wires = Hypervisor(self), FakeWall(), FakeWires()
        make_folders(self.paths)
        self.gateway = Gateway(self.paths.links)
        for domain in FOREIGN_DOMAINS:
            self.hypervisor.plant(domain)
        self.wires.taps[FOREIGN_TAP] = "host"

    # The agent's process

    def start_agent(self) -> None:
        self.city.acting = self
        mortal = self.mortal = Mortal(self.name)
        self.mortal.dies_in = self.city.next_death(self.name)
        parts = Parts(
            settings=self.settings,
            paths=self.paths,
            hypervisor=Guarded(self.hypervisor, mortal),
            wall=Guarded(self.wall, mortal),
            wires=Guarded(self.wires, mortal),
            gateway=Guarded(self.gateway, mortal),
            slots=Slots(self.settings.links_range),
            records=GuardedRecords(self.paths.records, self, mortal),
            domain_type="test",
            clock=self.now,
            uptime=lambda: self.city.loop.time() - self.booted_at,
            talk=Talk(self, mortal),
        )
        agent = Agent(parts, Choice("kvm", "it is said so"))
        for pool in (agent._pool, agent._ends):
            pool.shutdown()
        for pool in (agent.pool._maker, agent.pool._ender):
            pool.shutdown()
        agent._pool = agent._ends = agent.pool._maker = agent.pool._ender = Steps(self, mortal)
        agent.pool._look_at_memory = lambda: Memory(tight=self.memory_tight, roomy=not self.memory_tight)
        agent.pool._records = GuardedRecords(self.paths.waiting, self, mortal)
        self.agent = agent
        self._guarded(mortal, agent.begin)
        self._tasks = [asyncio.ensure_future(loop(mortal, agent)) for loop in (self._turn, self._wish, self._tell)]

    def kill_agent(self) -> None:
        """At once, between two lines."""
        self.mortal.die()
        self._buried(self.mortal)

    def _buried(self, mortal: Mortal) -> None:
        if mortal is not self.mortal or self.agent is None:
            return
        self.agent = None
        self.hypervisor.let_go()
        for task in self._tasks:
            task.cancel()
        for guest in list(self.guests.values()):
            if guest.connected:
                guest.closed()
        self.city.died(self.name, self._again)

    def _again(self) -> None:
        if self.up and self.agent is None:
            self.start_agent()

    def _guarded(self, mortal: Mortal, work: Callable[[], Any], *, survives: bool = False) -> bool:
        """Do ``work`` in the agent's process; True where that lives on, as it does by itself where the error stays in a thread."""
        if not mortal.alive or mortal is not self.mortal:
            return False
        self.city.acting = self
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - whatever it is goes on record
            if not is_killed(error) and survives:
                self.city.journal.note(f"{self.name} lost a step to {type(error).__name__}")
                self.city.journal.broke(self.name, error)
                return True
            if not is_killed(error):
                self.city.journal.broke(self.name, error)
                self.city.journal.note(f"{self.name} agent broke: {type(error).__name__}")
                mortal.die()
            self._buried(mortal)
            return False
        return True

    def does(self, mortal: Mortal, work: Callable[[], None]) -> None:
        self._guarded(mortal, work, survives=True)

    async def _turn(self, mortal: Mortal, agent: Agent) -> None:
        idle = 0
        while mortal.alive:
            if agent.wake.is_set() or idle >= 5:
                agent.wake.clear()
                idle = 0
                if not self._guarded(mortal, agent.turn):
                    return
            else:
                idle += 1
            if int(self.city.loop.time()) % 10 == 0 and not self._guarded(mortal, agent.check_wall):
                return
            await asyncio.sleep(1.0)

    async def _wish(self, mortal: Mortal, agent: Agent) -> None:
        whole_at = 0.0
        while mortal.alive:
            whole = self.city.now() - whole_at >= 60.0
            raw = await self.city.api.desired(self, -1 if whole else agent.generation)
            if raw is not None:
                whole_at = self.city.now() if whole else whole_at
                desired = msgspec.json.decode(raw, type=Desired)
                if not self._guarded(mortal, lambda desired=desired: self._take(agent, desired)):
                    return
            await asyncio.sleep(2.5)

    def _take(self, agent: Agent, desired: Desired) -> None:
        self.mortal.point("wished")
        agent.wished(desired)
        self.mortal.point("wished")

    async def _tell(self, mortal: Mortal, agent: Agent) -> None:
        told_at = float("-inf")
        while mortal.alive:
            await asyncio.sleep(2.0)
            if agent.dirty.is_set() or self.city.now() - told_at >= 10.0:
                agent.dirty.clear()
                self.city.acting = self
                if await self.city.api.observed(self, msgspec.json.encode(agent.observe())):
                    told_at = self.city.now()
                else:
                    agent.dirty.set()

    # Its guests

    def runs(self, spec: DomainSpec) -> None:
        ulid = ulid_of(spec.name) or ""
        fate = self.fates.pop(0) if self.fates and self.fates[0].startswith("guest-") else ""
        if fate:
            self.city.used[fate] += 1
        boot_s = self.city.rng.uniform(0.5, 2.0) if spec.memory is not None else self.city.rng.uniform(1.0, 8.0)
        guest = self.guests[ulid] = Guest(self, ulid, "", boot_s=boot_s, fate=fate.removeprefix("guest-"))
        guest.seed = Path(spec.seed)
        if self.agent is not None:  # its channel was opened before
            guest.opened()

    def fate_of(self, what: str) -> bool:
        """Whether ``what`` is in store for this host, for once."""
        found = what in self.fates
        if found:
            self.fates.remove(what)
            self.city.used[what] += 1
        return found

    def stops(self, name: str, why: str) -> None:
        guest = self.guests.pop(ulid_of(name) or "", None)
        if guest is not None:
            guest.end()
            self.city.guest_ended(self, guest, why)

    def says(self, ulid: str, message: wire.Message | None) -> None:
        agent, mortal = self.agent, self.mortal
        if agent is not None and message is not None:
            self.city.loop.call_later(0.05, self.does, mortal, lambda: agent.heard(ulid, message))

    def powers_off(self, ulid: str, guest: Guest) -> None:
        if guest.alive:
            self.hypervisor.power_off(names_of(ulid).domain)

    # What befalls it

    def crash_a_guest(self) -> bool:
        busy = sorted(ulid for ulid, guest in self.guests.items() if guest.alive)
        if busy:
            self.crash(self.city.rng.choice(busy))
        return bool(busy)

    def crash(self, ulid: str) -> None:
        end = self.city.rng.choice((self.hypervisor.crash, self.hypervisor.vanish))
        end(names_of(ulid).domain)

    def decided(self) -> Decided:
        """What people had said of it, as it keeps that."""
        try:
            return msgspec.json.decode(self.paths.decided.read_bytes(), type=Decided)
        except FileNotFoundError:
            return Decided()

    def libvirt_away(self, away: bool) -> None:
        error = HostError("libvirt doesn't answer", code="libvirt-away", remedy="Start libvirtd.")
        self.hypervisor.fail_with = error if away else None

    def flushes(self) -> None:
        """Another program flushes the packet filter."""
        self.wall.flush()

    def reboot(self) -> None:
        """Processes, namespaces, rules and ``/run`` go; what is on disk stays."""
        self.city.journal.note(f"{self.name} reboots")
        self.up = False
        self.boots += 1
        self.mortal.die()
        self._buried(self.mortal)
        for name in sorted(self.hypervisor.names()):
            self.stops(name, "reboot")
        shutil.rmtree(self.settings.run_dir)
        self._power_on()
        self.city.loop.call_later(self.city.rng.uniform(40.0, 150.0), self._booted)

    def _booted(self) -> None:
        self.up, self.booted_at = True, self.city.loop.time()
        self._again()

    # What is there

    def left(self) -> dict[str, list[str]]:
        """What is on it with a name of ours."""
        rules = self.wall.present()
        return {
            "domains": sorted(name for name in self.hypervisor.names() if ulid_of(name)),
            "disks": _ours(self.paths.disks) + _ours(self.paths.boot),
            "seeds": _ours(self.paths.seeds),
            "taps": sorted(tap for tap in self.wires.taps if is_tap(tap)),
            "chains": sorted(tap for tap in rules.taps if is_tap(tap)),
            "links": sorted(path.name for path in self.paths.links.iterdir()) + sorted(self.gateway.links),
            "channels": _ours(self.paths.channels) + _ours(self.paths.consoles),
            "records": sorted(path.name for path in self.paths.records.iterdir()),
            "waiting": sorted(path.name for path in self.paths.waiting.iterdir()),
            "half_made": self._half_made(),
        }

    def _half_made(self) -> list[str]:
        """Templates that nobody makes any more and that were not cleared away in time."""
        there = {path.name for path in self.paths.templates.iterdir() if path.name.startswith(".")}
        since = self.city.half_made
        for name in there - since.keys():
            since[name] = self.city.now()
        return sorted(name for name in there if self.city.now() - since[name] > UNWANTED_S + 60.0)

    def foreign_gone(self) -> list[str]:
        """What is missing of somebody else's."""
        found = [domain for domain in FOREIGN_DOMAINS if self.hypervisor.state(domain) != "running"]
        found += [] if self.wires.taps.get(FOREIGN_TAP) == "host" else [FOREIGN_TAP]
        for folder in (self.paths.disks, self.paths.seeds):
            found += [file for file in FOREIGN_FILES if not (folder / file).exists()]
        return [f"{self.name}: {what}" for what in found]


def _ours(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in FOREIGN_FILES)
