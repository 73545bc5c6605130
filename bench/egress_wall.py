"""The wall with few and many VMs: how long one more takes to install and remove, how many packets a second pass, and
whether the kernel's log of what it dropped loses any.

Links are taps that nobody has open, in a namespace of their own; the one that packets come from is a real one.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from collections.abc import Iterable, Iterator

from rich.console import Console
from ulid import ULID

from bench.rows import Bench, Figure, Row, middle, row
from orchestrator.core.link import Limits
from orchestrator.core.names import names_of
from orchestrator.core.policy import Policy
from orchestrator.host.links import make_namespace
from orchestrator.host.nft import LibNft
from orchestrator.host.ruleset import Listeners, VmRules
from orchestrator.host.slots import slot_at
from orchestrator.host.wall import Wall
from orchestrator.system import netns
from orchestrator.system.process import run
from tests.security.lab.lab import LINKS, Lab
from tests.security.lab.world import ATTACKER

PRESENT = (10, 100, 200)
TIMES = 5
FEW, MANY = 10, 2_000
PACKETS = 30_000
BURST = 20_000
UNBOUNDED = Limits(1_000_000, 1_000_000, 1_000_000, 1_000_000)
PORTS = Listeners(10443, 10022, 10053, 5, 6)

ADD = {count: Figure(f"wall_add_vm_beside_{count}", "ms") for count in PRESENT}
REMOVE = {count: Figure(f"wall_remove_vm_beside_{count}", "ms") for count in PRESENT}
PER_SECOND = Figure("wall_packets_per_second_2000_vms", "1/s", bar=">= 0.8")
LOST = Figure("nflog_burst_lost", "1", bar="<= 0")


def measure(console: Console) -> Iterable[Row]:
    with _walled() as wall:
        for count in PRESENT:
            wall.fill(count)
            added, removed = wall.add_and_remove()
            console.print(f"  beside {count} VMs: add {middle(added):.1f} ms, remove {middle(removed):.1f} ms")
            note = f"chains, map entry and read-back, median of {TIMES}"
            yield row(ADD[count], middle(added), note=note)
            yield row(REMOVE[count], middle(removed), note=note)
    yield _packets(console)
    yield _burst(console)


class _Filled:
    """A wall in namespace ``name`` and the links that stand behind it."""

    def __init__(self, wall: Wall, name: str) -> None:
        self.wall = wall
        self._name = name
        self._vms: list[VmRules] = []

    def fill(self, count: int) -> None:
        """Bring the number of VMs to ``count``."""
        new = [self._link() for _ in range(count - len(self._vms))]
        run(["ip", "-n", self._name, "-batch", "-"], stdin="".join(f"tuntap add dev {vm.tap} mode tap\n" for vm in new))
        self._vms += new
        self.wall.ensure_base(list(self._vms))

    def add_and_remove(self) -> tuple[list[float], list[float]]:
        """Milliseconds that one more VM takes to install, and to remove."""
        added, removed = [], []
        vm = self._link()
        run(["ip", "-n", self._name, "tuntap", "add", "dev", vm.tap, "mode", "tap"])
        for _ in range(TIMES):
            began = time.perf_counter()
            self.wall.install(vm)
            done = time.perf_counter()
            self.wall.remove(vm.tap)
            added.append((done - began) * 1000)
            removed.append((time.perf_counter() - done) * 1000)
        run(["ip", "-n", self._name, "link", "delete", vm.tap])
        return added, removed

    def _link(self) -> VmRules:
        slot = slot_at(LINKS, 1000 + len(self._vms) + secrets.randbelow(20_000))
        return VmRules(names_of(str(ULID())).tap, slot.guest_ip, slot.gateway_ip, Limits())


@contextlib.contextmanager
def _walled() -> Iterator[_Filled]:
    name = f"icdt-{secrets.token_hex(3)}-wall"
    with contextlib.ExitStack() as stack:
        stack.callback(netns.delete, name)
        thread = make_namespace(name)
        stack.callback(thread.close)
        wall = Wall(thread, thread.call(LibNft), PORTS)
        wall.ensure_base([])
        yield _Filled(wall, name)


def _packets(console: Console) -> Row:
    """Packets of one established flow, through one VM's chains, with few other VMs there and with many."""
    rates = {}
    for others in (FEW, MANY):
        with contextlib.ExitStack() as stack:
            rates[others] = _rate(stack, others)
        console.print(f"  {others} VMs: {rates[others]:.0f} packets/s")
    note = f"UDP of one established flow, {PACKETS} packets a round, best of 3, by the sender's processor time"
    return row(PER_SECOND, rates[MANY], peer=f"the same with {FEW} VMs", peer_value=rates[FEW], note=note)


def _rate(stack: contextlib.ExitStack, others: int) -> float:
    lab = Lab()
    stack.callback(lab.stop)
    lab.start()
    vm = lab.machine("pps", Policy("enforce", ()), limits=UNBOUNDED)
    inside = lab.settings.netns
    others_taps = [names_of(str(ULID())).tap for _ in range(others - 1)]
    run(["ip", "-n", inside, "-batch", "-"], stdin="".join(f"tuntap add dev {tap} mode tap\n" for tap in others_taps))
    own = VmRules(vm.tap, vm.slot.guest_ip, vm.slot.gateway_ip, UNBOUNDED)
    rest = [
        VmRules(tap, (slot := slot_at(LINKS, 100 + n)).guest_ip, slot.gateway_ip, Limits())
        for n, tap in enumerate(others_taps)
    ]
    lab.wall.ensure_base([own, *rest])
    vm.lookup("nothing.example")  # the resolver answers: the flow below is established after its first answer too
    with vm.socket(kind=socket.SOCK_DGRAM) as sock:
        sock.connect((ATTACKER, 53))
        sock.send(b"\0" * 12)
        with contextlib.suppress(TimeoutError):
            sock.settimeout(1)
            sock.recv(100)
        lab.stop_gateway()  # nobody reads any more: the path through the wall is what is measured
        return max(_send(sock) for _ in range(3))


def _send(sock: socket.socket) -> float:
    began = time.process_time()
    for _ in range(PACKETS):
        with contextlib.suppress(OSError):
            sock.send(b"\0" * 64)
    return PACKETS / (time.process_time() - began)


def _burst(console: Console) -> Row:
    lab = Lab()
    with contextlib.ExitStack() as stack:
        stack.callback(lab.stop)
        lab.start()
        vm = lab.machine("burst", Policy("enforce", ()), limits=UNBOUNDED)
        seq = lab.seq()
        with vm.socket(kind=socket.SOCK_DGRAM) as sock:
            sock.connect((ATTACKER, 4444))
            began = time.perf_counter()
            sent = 0
            while sent < BURST:
                try:
                    sock.send(b"x")
                except OSError:  # the answer to an earlier one; this one was not sent
                    continue
                sent += 1
            seconds = time.perf_counter() - began
        deadline = time.monotonic() + 10
        while (seen := _recorded(lab, seq)) < BURST and time.monotonic() < deadline:
            time.sleep(0.5)
    console.print(f"  {BURST} dropped within {seconds:.2f} s: {seen} on record")
    return row(LOST, BURST - seen, note=f"{BURST} datagrams refused within {seconds:.2f} s, counted in the ledger")


def _recorded(lab: Lab, after: int) -> int:
    return sum(event.count for event in lab.events(after) if event.event == "drop" and event.port == 4444)


BENCH = Bench((*(figure for count in PRESENT for figure in (ADD[count], REMOVE[count])), PER_SECOND, LOST), measure)
