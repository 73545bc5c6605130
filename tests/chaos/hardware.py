"""What a host of the deterministic tier is made of: stand-ins for libvirt, gateway, channels and the agent's threads."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrator.core.errors import HostError
from orchestrator.core.link import Link
from orchestrator.core.names import names_of
from orchestrator.host import guest as wire
from orchestrator.host.fakes import FakeGateway, FakeHypervisor
from orchestrator.host.hypervisor import Ended
from orchestrator.host.record import Record, Records
from tests.chaos.mortal import Mortal

if TYPE_CHECKING:
    from tests.chaos.city import City
    from tests.chaos.machine import Machine


class Hypervisor(FakeHypervisor):
    """Tells the machine when a guest begins and ends to run."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self._machine = machine

    def resume(self, name: str) -> None:
        super().resume(name)
        spec = self.specs[name]
        if spec.memory is None or spec.memory.use != "template":
            self._machine.runs(spec)

    def load_state(self, name: str, source: int) -> None:
        if self._machine.fate_of("clone-fails"):
            raise HostError("the state can't be loaded", code="libvirt-failed", remedy="")
        super().load_state(name, source)

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

    def submit(self, work: Callable[..., None], *given: Any) -> None:
        later = self._machine.city.rng.uniform(0.0, 2.0)
        self._machine.city.loop.call_later(later, self._machine.does, self._mortal, partial(work, *given))

    def shutdown(self, **_: Any) -> None:
        pass


class Later:
    """In place of the thread that makes and checks templates: what it does takes effect when it would have come to its end."""

    def __init__(self, city: City, *, target: Callable[[], None], **_: Any) -> None:
        machine = self._machine = city.acting
        self._target = target
        self._mortal = machine.mortal
        self._over = False

    def start(self) -> None:
        takes = self._machine.city.rng.uniform(1.0, 30.0)
        self._machine.city.loop.call_later(takes, self._machine.does, self._mortal, self._work)

    def _work(self) -> None:
        try:
            self._target()
        finally:
            self._over = True

    def is_alive(self) -> bool:
        return not self._over

    def join(self, _timeout: float) -> None:
        pass
