"""One bare-metal host: the real agent on stand-ins for libvirt, nftables, links and gateway; folders and records are real.

The agent is killed and started anew while domains, rules and guests go on; a reboot takes all of these with it and
leaves what is on disk.  Things of somebody else stand on it, and must stand there at the end.
"""

from __future__ import annotations

import asyncio
import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrator.core.errors import HostError
from orchestrator.core.link import Link
from orchestrator.core.machine import Capacity
from orchestrator.core.names import is_tap, names_of, ulid_of
from orchestrator.core.settings import HostSettings
from orchestrator.core.wire import Desired, Image
from orchestrator.host import agent as agent_module
from orchestrator.host import guest as wire
from orchestrator.host import room as room_module
from orchestrator.host import start as start_module
from orchestrator.host import vm as vm_module
from orchestrator.host.accelerator import Choice
from orchestrator.host.agent import Agent
from orchestrator.host.domain_xml import DomainSpec
from orchestrator.host.fakes import FakeGateway, FakeHypervisor, FakeWall, FakeWires
from orchestrator.host.hypervisor import Ended
from orchestrator.host.images import LocalImage, Manifest
from orchestrator.host.parts import Parts
from orchestrator.host.paths import HostPaths, host_paths, make_folders
from orchestrator.host.record import Record, Records
from orchestrator.host.slots import Slots
from tests.chaos.guest import Guest
from tests.chaos.mortal import Guarded, Mortal, is_killed

if TYPE_CHECKING:
    from tests.chaos.city import City

ROOM = Capacity(64, 256 * 1024, 4000)
FOREIGN_DOMAINS = ("debian-of-somebody", "ironcd-router", "ironcd-")
FOREIGN_TAP = "tap0"
FOREIGN_FILES = ("somebody.qcow2", "ironcd-notes.txt")
IMAGE = Image("default", "sha256:0", "2.336.0", {"apt": ("deb.example",)})


class Hypervisor(FakeHypervisor):
    """Tells the machine when a guest begins and ends to run."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self._machine = machine

    def start_paused(self, spec: DomainSpec) -> None:
        super().start_paused(spec)
        self._machine.makes(spec)

    def resume(self, name: str) -> None:
        super().resume(name)
        self._machine.runs(name)

    def on_end(self, ended: Ended) -> None:
        """The agent hears of it in its own process, and may die of it there."""
        mortal = self._machine.mortal
        super().on_end(lambda name, why: self._machine.does(mortal, lambda: ended(name, why)))

    def let_go(self) -> None:
        """Whoever listened to events is dead."""
        self._ended = None

    def names(self) -> set[str]:
        return set(self._domains)

    def vanish(self, name: str) -> None:
        super().vanish(name)
        self._machine.stops(name, "vanished")

    def _end(self, name: str, why: str) -> None:
        self._machine.stops(name, why)
        super()._end(name, why)


class Gateway(FakeGateway):
    """One that reads its links anew when it starts again, as the real one does."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._links_folder = folder

    def restart(self) -> None:
        self.links = {}
        for path in sorted(self._links_folder.glob("*.json")):
            link = msgspec.json.decode(path.read_bytes(), type=Link)
            self.links[link.tap] = link
        self.away = False


class Talk:
    """Channels to the guests, for as long as the agent lives that opened them."""

    def __init__(self, machine: Machine, mortal: Mortal) -> None:
        self._machine = machine
        self._mortal = mortal

    def ensure(self, ulid: str, path: Path) -> bool:
        guest = self._machine.guests.get(ulid)
        if guest is None and names_of(ulid).domain not in self._machine.hypervisor.names():
            return False
        if guest is not None and not guest.connected:
            self._machine.city.loop.call_soon(guest.opened)
        return True

    def send(self, ulid: str, order: wire.Order) -> bool:
        self._mortal.point("talk")
        guest = self._machine.guests.get(ulid)
        if guest is None or not guest.connected:
            return False
        self._machine.city.loop.call_later(0.05, guest.heard, order)
        return True

    def close(self, ulid: str) -> None:
        guest = self._machine.guests.get(ulid)
        if guest is not None:
            guest.connected = False


class GuardedRecords(Records):
    def __init__(self, folder: Path, machine: Machine, mortal: Mortal) -> None:
        super().__init__(folder)
        self._machine = machine
        self._mortal = mortal

    def save(self, record: Record) -> None:
        self._mortal.point("record")
        super().save(record)
        self._mortal.point("record")

    def _write(self, path: Path, data: bytes) -> None:
        if self._machine.disk_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        super()._write(path, data)

    def forget(self, ulid: str) -> None:
        self._mortal.point("record")
        super().forget(ulid)


class Steps:
    """In place of the agent's threads: each step is carried out some moments later, if its agent still lives."""

    def __init__(self, machine: Machine, mortal: Mortal) -> None:
        self._machine = machine
        self._mortal = mortal

    def submit(self, work: Callable[[], None]) -> None:
        later = self._machine.city.rng.uniform(0.0, 2.0)
        self._machine.city.loop.call_later(later, self._machine.does, self._mortal, work)

    def shutdown(self, **_: Any) -> None:
        pass


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
        self.cut_off = False
        self.unheard_s = 0.0
        """The control plane can't be reached from here."""
        self.disk_full = False
        self.fates: list[str] = []
        """Of the next guests; those beyond are well."""
        self.mortal = Mortal(name)
        self.agent: Agent | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._power_on()
        for folder_of_files in (self.paths.disks, self.paths.seeds):
            for file in FOREIGN_FILES:
                (folder_of_files / file).write_text("not ours")

    def _power_on(self) -> None:
        self.hypervisor, self.wall, self.wires = Hypervisor(self), FakeWall(), FakeWires()
        make_folders(self.paths)
        self.gateway = Gateway(self.paths.links)
        for domain in FOREIGN_DOMAINS:
            self.hypervisor.plant(domain)
        self.wires.taps[FOREIGN_TAP] = "host"

    # The agent's process

    def start_agent(self) -> None:
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
            clock=self.city.now,
            talk=Talk(self, mortal),
        )
        agent = Agent(parts, Choice("kvm", "it is said so"))
        for pool in (agent._pool, agent._ends):
            pool.shutdown()
        agent._pool = agent._ends = Steps(self, mortal)
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
                if await self.city.api.observed(self, msgspec.json.encode(agent.observe())):
                    told_at = self.city.now()
                else:
                    agent.dirty.set()

    # Its guests

    def makes(self, spec: DomainSpec) -> None:
        """The seed is read when the guest boots, as cloud-init would."""
        self.seeds_read[spec.name] = Path(spec.seed).read_text()

    @property
    def seeds_read(self) -> dict[str, str]:
        return self.__dict__.setdefault("_seeds_read", {})

    def runs(self, name: str) -> None:
        ulid = ulid_of(name) or ""
        fate = self.fates.pop(0) if self.fates else ""
        if fate:
            self.city.used[f"guest-{fate}"] += 1
        boot_s = self.city.rng.uniform(1.0, 8.0)
        self.guests[ulid] = Guest(self, ulid, self.seeds_read.pop(name, ""), boot_s=boot_s, fate=fate)
        self.city.loop.call_soon(self._connect, ulid)

    def _connect(self, ulid: str) -> None:
        guest = self.guests.get(ulid)
        if guest is not None and self.agent is not None and not guest.connected:
            guest.opened()

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
        if not busy:
            return False
        ulid = self.city.rng.choice(busy)
        end = self.city.rng.choice((self.hypervisor.crash, self.hypervisor.vanish))
        end(names_of(ulid).domain)
        return True

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
        self.up = True
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
        }

    def foreign_gone(self) -> list[str]:
        """What is missing of somebody else's."""
        found = [domain for domain in FOREIGN_DOMAINS if self.hypervisor.state(domain) != "running"]
        found += [] if self.wires.taps.get(FOREIGN_TAP) == "host" else [FOREIGN_TAP]
        for folder in (self.paths.disks, self.paths.seeds):
            found += [file for file in FOREIGN_FILES if not (folder / file).exists()]
        return [f"{self.name}: {what}" for what in found]


def _ours(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in FOREIGN_FILES)


def furnish(city: City) -> None:
    """Put light things in the place of those parts of the agent that would start programs."""
    image = LocalImage(Manifest("default", "sha256:0", "2.336.0"), Path("d"), Path("k"), Path("i"), 1 << 30)

    def make_disk(_image: LocalImage, path: Path, **_: Any) -> None:
        if city.is_full(path):
            raise HostError("can't make the disk: no space left", code="disk-failed", remedy="Make room.")
        path.touch()

    def copy_boot(_kernel: Path, _initrd: Path, folder: Path) -> None:
        folder.mkdir(exist_ok=True)

    def make_seed(path: Path, *_: Any, jit: str, **__: Any) -> None:
        path.write_text(jit)

    agent_module.capacity_of = lambda *_, **__: ROOM  # type: ignore[assignment]
    agent_module.device_problem = lambda: None  # type: ignore[assignment]
    agent_module.list_images = lambda _folder: (IMAGE,)  # type: ignore[assignment]
    start_module.find_image = room_module.find_image = lambda *_: image  # type: ignore[assignment]
    vm_module.make_disk, vm_module.copy_boot = make_disk, copy_boot  # type: ignore[assignment]
    start_module.make_seed = make_seed  # type: ignore[assignment]
