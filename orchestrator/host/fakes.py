"""In-memory stand-ins for what the agent works with, for tests and trials: each keeps the contract of the real thing.

They keep state and can be told to fail; they decide nothing.  `tests/adapters/host` runs one suite against these and the
real ones.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from orchestrator.core.errors import HostError
from orchestrator.core.link import GatewayReply, GatewayRequest, Link
from orchestrator.core.names import is_tap, ulid_of
from orchestrator.host.domain_xml import DomainSpec
from orchestrator.host.gateway import GatewayAway
from orchestrator.host.guest import Order
from orchestrator.host.hypervisor import Domain, DomainState, Ended
from orchestrator.host.ruleset import VmRules, merged
from orchestrator.host.slots import Slot
from orchestrator.host.wall import Present, disturbed


class FakeHypervisor:
    """Domains in a dictionary.  `power_off` and `crash` are what a guest does."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._domains: dict[str, DomainState] = {}
        self._seeded: set[str] = set()
        self._ended: Ended | None = None
        self.specs: dict[str, DomainSpec] = {}
        self.fail_with: HostError | None = None
        self.fail_load: HostError | None = None
        self.loaded: dict[str, bytes] = {}
        self.destroy_does_nothing = False
        self.hold_destroy: threading.Event | None = None
        """`destroy` waits for it, as libvirt's waits for PID 1."""
        self.killed: set[str] = set()
        self.hold_kill: threading.Event | None = None
        self.hold_start: threading.Event | None = None
        self.made: list[str] = []
        """The names of all domains that were ever started, in their order."""

    def start_paused(self, spec: DomainSpec) -> None:
        self._maybe_fail()
        if self.hold_start is not None:
            self.hold_start.wait(60)
        with self._lock:
            if spec.name in self._domains:
                raise HostError(f"domain {spec.name} exists already", code="libvirt-failed", remedy="")
            self.specs[spec.name] = spec
            self.made.append(spec.name)
            self._domains[spec.name] = "paused"
            self._seeded.add(spec.name)

    def resume(self, name: str) -> None:
        self._maybe_fail()
        with self._lock:
            self._must(name)
            self._domains[name] = "running"

    def save_state(self, name: str, target: int) -> None:
        self._maybe_fail()
        with self._lock:
            self._must(name)
            self._domains[name] = "paused"
        os.write(target, b"state of " + name.encode())

    def load_state(self, name: str, source: int) -> None:
        self._maybe_fail()
        if self.fail_load is not None:
            raise self.fail_load
        with self._lock:
            self._must(name)
            self.loaded[name] = os.read(source, 4096)

    def kill(self, name: str) -> bool:
        self._maybe_fail()
        if self.hold_kill is not None:
            self.hold_kill.wait(60)
        with self._lock:
            if name not in self._domains or ulid_of(name) is None or self.destroy_does_nothing:
                return False
            self.killed.add(name)
        return True

    def destroy(self, name: str) -> None:
        self._maybe_fail()
        if self.hold_destroy is not None:
            self.hold_destroy.wait(60)
        with self._lock:
            if name not in self._domains:
                return
            if ulid_of(name) is None:
                raise HostError(f"domain {name!r} isn't one of ours", code="domain-foreign", remedy="")
            if self.destroy_does_nothing:
                return
        self._end(name, "destroyed")

    def ours(self) -> list[Domain]:
        self._maybe_fail()
        with self._lock:
            return [Domain(ulid, name, state) for name, state in self._domains.items() if (ulid := ulid_of(name))]

    def state(self, name: str) -> DomainState | None:
        self._maybe_fail()
        return self._domains.get(name)

    def eject_seed(self, name: str) -> bool:
        with self._lock:
            self._must(name)
            self._seeded.discard(name)
        return True

    def on_end(self, ended: Ended) -> None:
        self._maybe_fail()
        self._ended = ended

    def group(self) -> int | None:
        return 0

    def version(self) -> str:
        return "0.0.0"

    def identity(self) -> str:
        return "fake 0"

    def alive(self) -> bool:
        return self.fail_with is None

    def close(self) -> None:
        self._ended = None

    def plant(self, name: str, state: DomainState = "running") -> None:
        """Somebody else's domain."""
        self._domains[name] = state

    def has_seed(self, name: str) -> bool:
        return name in self._seeded

    def power_off(self, name: str) -> None:
        self._end(name, "shutdown")

    def crash(self, name: str) -> None:
        self._end(name, "crashed")

    def vanish(self, name: str) -> None:
        """End without an event."""
        self._domains.pop(name, None)

    def _end(self, name: str, why: str) -> None:
        with self._lock:
            self._domains.pop(name, None)
            self._seeded.discard(name)
        if self._ended is not None and ulid_of(name) is not None:
            self._ended(name, why)

    def _must(self, name: str) -> None:
        if name not in self._domains:
            raise HostError(f"no domain {name}", code="libvirt-failed", remedy="")

    def _maybe_fail(self) -> None:
        if self.fail_with is not None:
            raise self.fail_with


@dataclass
class FakeWall:
    """Rules by tap.  ``flushed`` is what another program's ``flush ruleset`` does."""

    vms: dict[str, VmRules] = field(default_factory=dict)
    meant: dict[str, VmRules] = field(default_factory=dict)
    base: bool = False
    fail_with: HostError | None = None
    remove_does_nothing: bool = False
    before_install: Callable[[], None] = lambda: None
    """What another program does just then."""

    def ensure_base(self, vms: list[VmRules]) -> None:
        self._maybe_fail()
        self.base = True
        self.meant = {vm.tap: vm for vm in vms}
        self.vms = dict(self.meant)

    def install(self, vm: VmRules) -> None:
        self._maybe_fail()
        self.before_install()
        self.meant.pop(vm.tap, None)
        self.vms.pop(vm.tap, None)
        others = self.drift()
        if others:
            raise disturbed(others)
        self.meant[vm.tap] = self.vms[vm.tap] = vm

    def change(self, vm: VmRules) -> None:
        self._maybe_fail()
        new = msgspec.structs.replace(self.meant[vm.tap], ranges=vm.ranges, echo=vm.echo)
        self.meant[vm.tap] = self.vms[vm.tap] = new

    def remove(self, tap: str) -> None:
        self._maybe_fail()
        if not self.remove_does_nothing:
            self.meant.pop(tap, None)
            self.vms.pop(tap, None)

    def present(self) -> Present:
        self._maybe_fail()
        vms = dict(self.vms)  # steps of other VMs go on meanwhile
        taps = frozenset(vms)
        ranged = frozenset(tap for tap, vm in vms.items() if merged(vm.ranges))
        return Present(taps, taps, taps, ranged)

    def drift(self) -> list[str]:
        self._maybe_fail()
        if not self.base:
            return ["missing: table inet ironcd"]
        return [f"missing: {tap}" for tap in list(self.meant) if tap not in self.vms]

    def restore(self, taps: frozenset[str]) -> None:
        self.ensure_base([vm for vm in list(self.meant.values()) if vm.tap in taps])

    def flush(self) -> None:
        self.base = False
        self.vms = {}

    def _maybe_fail(self) -> None:
        if self.fail_with is not None:
            raise self.fail_with


@dataclass
class FakeWires:
    """Taps by name: where they are (``host`` or ``vms``) and whether they are up."""

    taps: dict[str, str] = field(default_factory=dict)
    links_up: set[str] = field(default_factory=set)
    history: list[tuple[str, str]] = field(default_factory=list)

    def make(self, tap: str) -> None:
        if tap in self.taps:
            raise HostError(f"can't make the link {tap}: it exists", code="link-failed", remedy="")
        self._note("make", tap)
        self.taps[tap] = "host"

    def move(self, tap: str) -> None:
        if self.taps.get(tap) != "host":
            raise HostError(f"can't move the link {tap}", code="link-failed", remedy="")
        self._note("move", tap)
        self.taps[tap] = "vms"

    def up(self, tap: str, slot: Slot) -> None:  # noqa: ARG002 - the fake has no addresses
        if self.taps.get(tap) != "vms":
            raise HostError(f"can't bring up the link {tap}", code="link-failed", remedy="")
        self._note("up", tap)
        self.links_up.add(tap)

    def down_all(self) -> frozenset[str]:
        were_up = frozenset(self.links_up)
        self.links_up.clear()
        self._note("down", "*")
        return were_up

    def raise_(self, taps: list[str]) -> None:
        self.links_up |= {tap for tap in taps if self.taps.get(tap) == "vms"}

    def delete(self, tap: str) -> None:
        self._note("delete", tap)
        self.taps.pop(tap, None)
        self.links_up.discard(tap)

    def forget_flows(self, guest_ip: str) -> int:
        self._note("forget", guest_ip)
        return 0

    def present(self) -> frozenset[str]:
        return frozenset(tap for tap in list(self.taps) if is_tap(tap))

    def in_namespace(self) -> frozenset[str]:
        return frozenset(tap for tap, where in list(self.taps.items()) if where == "vms" and is_tap(tap))

    def _note(self, what: str, of: str) -> None:
        self.history.append((what, of))


class FakeGateway:
    """Applies what is in the links' folder, as the gateway does.  ``lie`` makes it answer another policy's digest."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.links: dict[str, Link] = {}
        self.away = False
        self.lie = False
        self.refuse_drop = False

    def ask(self, request: GatewayRequest) -> GatewayReply:
        if self.away:
            raise GatewayAway("no gateway listens", code="gateway-away", remedy="")
        if request.op == "drop":
            if self.refuse_drop:
                return GatewayReply(ok=False, error="flows are left")
            self.links.pop(request.tap, None)
            return GatewayReply(ok=True)
        if request.op == "apply":
            try:
                data = (self._folder / f"{request.tap}.json").read_bytes()
            except FileNotFoundError:
                return GatewayReply(ok=False, error="no such link")
            link = self.links[request.tap] = msgspec.json.decode(data, type=Link)
            digest = "sha256:other" if self.lie else link.policy.digest
            return GatewayReply(ok=True, policy=digest, generation=link.generation)
        return GatewayReply(ok=True, links=len(self.links))


@dataclass
class FakeTalk:
    """Channels that are open as soon as somebody asks; ``said`` are the orders that guests got."""

    said: list[tuple[str, Order]] = field(default_factory=list)
    open: set[str] = field(default_factory=set)
    shut: bool = False
    deaf: set[str] = field(default_factory=set)
    """Guests that orders don't reach, though their channels are open."""
    on_order: Callable[[str, Order], None] = lambda _ulid, _order: None

    def ensure(self, ulid: str, path: Path) -> bool:  # noqa: ARG002 - the fake has no socket
        if not self.shut:
            self.open.add(ulid)
        return not self.shut

    def send(self, ulid: str, order: Order) -> bool:
        if ulid not in self.open or self.shut or ulid in self.deaf:
            return False
        self.said.append((ulid, order))
        self.on_order(ulid, order)
        return True

    def close(self, ulid: str) -> None:
        self.open.discard(ulid)
