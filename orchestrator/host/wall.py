"""The wall around every VM: installs its rules in one transaction, reads them back, watches that they stay.

`Wall` is the only writer of the two tables.  It knows what should stand there (``meant``), so the watch, each second,
compares the whole.  What is installed or removed for one VM is read back by itself, in a time that hardly grows with
the number of VMs.  Each public call runs on the namespace's own thread, one at a time.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, Protocol

import msgspec

from orchestrator.core.errors import HostError
from orchestrator.host import ruleset
from orchestrator.host.nft import Json, NamespaceThread, Nft
from orchestrator.host.ruleset import Listeners, VmRules

DISTURBED = "wall-disturbed"
_COMPARE_S = 30.0
"""The whole is compared at least this often: a chain that went with its device changes no generation."""


class Present(msgspec.Struct, frozen=True):
    """What the kernel has of VMs' rules, by tap."""

    chains: frozenset[str]
    l2_chains: frozenset[str]
    map_entries: frozenset[str]
    ranges: frozenset[str]

    @property
    def taps(self) -> frozenset[str]:
        return self.chains | self.l2_chains | self.map_entries | self.ranges


class Firewall(Protocol):
    """What the agent needs of the wall; `Wall` is the real one, `orchestrator.host.fakes.FakeWall` the other."""

    def ensure_base(self, vms: list[VmRules]) -> None:
        """Make the kernel have the base tables and exactly ``vms``, whatever stood there before."""

    def install(self, vm: VmRules) -> None:
        """Install ``vm`` whole, and read it back.  The tap must be in the namespace.

        Raises HostError, with nothing of ``vm`` left; its code is ``wall-disturbed`` where the rest of the wall isn't what it
        should be either: another program changes it, and it can be tried again once the watch has restored it.
        """

    def change(self, vm: VmRules) -> None:
        """Bring in force what a new policy changes of an installed VM: its ranges, and whether it may send echoes."""

    def remove(self, tap: str) -> None:
        """Remove what there is of ``tap``; nothing happens where there is nothing."""

    def present(self) -> Present: ...

    def drift(self) -> list[str]:
        """What differs between the kernel and what was installed, for a person to read."""

    def restore(self, taps: frozenset[str]) -> None:
        """Make the kernel have again what was installed, of those VMs whose tap is one of ``taps``."""


class Wall:
    def __init__(self, thread: NamespaceThread, nft: Nft, ports: Listeners) -> None:
        self._thread = thread
        self._nft = nft
        self._ports = ports
        self._meant: dict[str, VmRules] = {}
        self._checked: tuple[int, dict[str, VmRules]] | None = None
        """The kernel's generation at which the whole was last found as meant, and what was meant then."""
        self._compare_at = 0.0

    def ensure_base(self, vms: list[VmRules]) -> None:
        self._thread.call(self._ensure_base, vms)

    def install(self, vm: VmRules) -> None:
        self._thread.call(self._install, vm)

    def change(self, vm: VmRules) -> None:
        self._thread.call(self._change, vm)

    def remove(self, tap: str) -> None:
        self._thread.call(self._remove, tap)

    def present(self) -> Present:
        return self._thread.call(lambda: _present(self._nft.listing()))

    def drift(self) -> list[str]:
        return self._thread.call(self._drift)

    def restore(self, taps: frozenset[str]) -> None:
        self._thread.call(lambda: self._ensure_base([vm for vm in self._meant.values() if vm.tap in taps]))

    def _drift(self) -> list[str]:
        """Compare the whole, unless nothing was changed since that was done last: it costs a millisecond for each VM."""
        state = (self._nft.generation(), dict(self._meant))
        if state == self._checked and time.monotonic() < self._compare_at:
            return []
        found, meant = ruleset.normalise(self._nft.listing()), ruleset.expected(self._meant.values(), self._ports)
        differences = ruleset.diff(found, meant)
        self._checked = None if differences else state
        self._compare_at = time.monotonic() + _COMPARE_S
        return differences

    def _ensure_base(self, vms: list[VmRules]) -> None:
        self._meant = {vm.tap: vm for vm in vms}
        if not self._drift():
            return
        # The tables are deleted and made again in one transaction: no packet sees a state between the two.
        commands = ruleset.add([{"table": {"family": "inet", "name": ruleset.INET}}, _L2_TABLE])
        commands += [{"delete": {"table": {"family": "inet", "name": ruleset.INET}}}, {"delete": _L2_TABLE}]
        commands += ruleset.add(ruleset.base_objects(self._ports))
        for vm in vms:
            commands += self._commands(vm)
        self._nft.apply(commands)
        self._must_match()

    def _install(self, vm: VmRules) -> None:
        try:
            self._remove(vm.tap)
            self._nft.apply(self._commands(vm))
            self._meant[vm.tap] = vm
            _refuse_difference(
                ruleset.diff(self._found(vm.tap, ruleset.places_of(vm.tap)), ruleset.expected_of(vm, self._ports))
            )
        except HostError as error:
            with contextlib.suppress(HostError):
                self._remove(vm.tap)
            self._meant.pop(vm.tap, None)
            others = self._drift()
            if others:
                raise disturbed(others) from error
            raise

    def _commands(self, vm: VmRules) -> list[Json]:
        commands = ruleset.add(ruleset.vm_objects(vm, self._ports))
        for name, element in ruleset.vm_elements(vm):
            commands += ruleset.elements("add", name, [element])
        return commands

    def _change(self, vm: VmRules) -> None:
        old = self._meant[vm.tap]
        before, after = ruleset.merged(old.ranges), ruleset.merged(vm.ranges)
        gone = [ruleset.range_element(vm.tap, *item) for item in before if item not in after]
        new = [ruleset.range_element(vm.tap, *item) for item in after if item not in before]
        commands = ruleset.elements("delete", "ranges", gone) + ruleset.elements("add", "ranges", new)
        meant = msgspec.structs.replace(old, ranges=vm.ranges, echo=vm.echo)
        if meant.echo != old.echo:
            # The chain is written anew, in the same transaction: no frame sees it without its rules.
            chain = {"chain": {"family": "netdev", "table": ruleset.L2, "name": vm.l2_chain}}
            commands += [{"flush": chain}, *ruleset.add(ruleset.l2_rules(meant, self._ports))]
        self._nft.apply(commands)
        self._meant[vm.tap] = meant

    def _remove(self, tap: str) -> None:
        found = self._found(tap, ruleset.shared_places())
        commands: list[Json] = []
        for kind, name in (("map", "vms"), ("set", "ranges")):
            commands += ruleset.elements("delete", name, found[f"{kind} inet {ruleset.INET} {name}"]["elem"])
        for chain in ruleset.chains_of(tap):
            if self._nft.has_chain(chain["chain"]):
                commands += [{"flush": chain}, {"delete": chain}]
        self._meant.pop(tap, None)
        self._nft.apply(commands)

    def _found(self, tap: str, places: list[Json]) -> dict[str, Any]:
        """What the kernel has of the VM on ``tap`` at ``places``: its chains, and its elements of the map and of the set."""
        return ruleset.only_of(tap, ruleset.normalise(self._nft.listing_of(places)))

    def _must_match(self) -> None:
        meant = ruleset.expected(self._meant.values(), self._ports)
        _refuse_difference(ruleset.diff(ruleset.normalise(self._nft.listing()), meant))


_L2_TABLE: Json = {"table": {"family": "netdev", "name": ruleset.L2}}


def disturbed(differences: list[str]) -> HostError:
    return HostError(
        "another program changed the packet filter while a VM's rules were written: " + "; ".join(differences[:3]),
        code="wall-disturbed",
        remedy="Find what writes to nftables in the VMs' namespace; the VM was cleared away and its job gets another.",
    )


def _refuse_difference(differences: list[str]) -> None:
    if differences:
        raise HostError(
            "the packet filter reads back otherwise than it was written: " + "; ".join(differences[:5]),
            code="wall-readback",
            remedy="See what else writes to nftables in the VMs' namespace (`ip netns exec NAME nft list ruleset`).",
        )


def _present(listing: Json) -> Present:
    found = ruleset.normalise(listing)
    names = [key.split(" ", 3)[1:] for key in found if key.startswith("chain ")]
    vms = found.get(f"map inet {ruleset.INET} vms", {}).get("elem", [])
    ranges = found.get(f"set inet {ruleset.INET} ranges", {}).get("elem", [])
    return Present(
        chains=frozenset(name[3:] for family, _, name in names if family == "inet" and name.startswith("vm_")),
        l2_chains=frozenset(name[3:] for family, _, name in names if family == "netdev" and name.startswith("l2_")),
        map_entries=frozenset(map(ruleset.tap_of, vms)),
        ranges=frozenset(map(ruleset.tap_of, ranges)),
    )
