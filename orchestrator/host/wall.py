"""The wall around every VM: installs its rules in one transaction, reads them back, watches that they stay.

`Wall` is the only writer of the two tables.  It knows what should stand there (``meant``), so a check compares the whole
and not just what was touched last.  Each public call runs on the namespace's own thread, one at a time.
"""

from __future__ import annotations

import contextlib
from typing import Any, Protocol

import msgspec

from orchestrator.core.errors import HostError
from orchestrator.host import ruleset
from orchestrator.host.nft import Json, NamespaceThread, Nft
from orchestrator.host.ruleset import Listeners, VmRules


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
        """Install ``vm`` whole, and read it back.  The tap must be in the namespace."""

    def set_ranges(self, tap: str, ranges: tuple[tuple[str, int], ...]) -> None: ...

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

    def ensure_base(self, vms: list[VmRules]) -> None:
        self._thread.call(self._ensure_base, vms)

    def install(self, vm: VmRules) -> None:
        self._thread.call(self._install, vm)

    def set_ranges(self, tap: str, ranges: tuple[tuple[str, int], ...]) -> None:
        self._thread.call(self._set_ranges, tap, ranges)

    def remove(self, tap: str) -> None:
        self._thread.call(self._remove, tap)

    def present(self) -> Present:
        return self._thread.call(lambda: _present(self._nft.listing()))

    def drift(self) -> list[str]:
        return self._thread.call(self._drift)

    def restore(self, taps: frozenset[str]) -> None:
        self._thread.call(lambda: self._ensure_base([vm for vm in self._meant.values() if vm.tap in taps]))

    def _drift(self) -> list[str]:
        return ruleset.diff(ruleset.normalise(self._nft.listing()), ruleset.expected(self._meant.values(), self._ports))

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
        self._remove(vm.tap)
        self._nft.apply(self._commands(vm))
        self._meant[vm.tap] = vm
        try:
            self._must_match(vm)
        except HostError:
            with contextlib.suppress(HostError):
                self._remove(vm.tap)
            raise

    def _commands(self, vm: VmRules) -> list[Json]:
        commands = ruleset.add(ruleset.vm_objects(vm, self._ports))
        for name, element in ruleset.vm_elements(vm):
            commands += ruleset.elements("add", name, [element])
        return commands

    def _set_ranges(self, tap: str, ranges: tuple[tuple[str, int], ...]) -> None:
        vm = self._meant[tap]
        before, after = ruleset.merged(vm.ranges), ruleset.merged(ranges)
        gone = [ruleset.range_element(tap, *item) for item in before if item not in after]
        new = [ruleset.range_element(tap, *item) for item in after if item not in before]
        self._nft.apply(ruleset.elements("delete", "ranges", gone) + ruleset.elements("add", "ranges", new))
        self._meant[tap] = msgspec.structs.replace(vm, ranges=ranges)

    def _remove(self, tap: str) -> None:
        listing = self._nft.listing()
        found = ruleset.normalise(listing)
        commands: list[Json] = []
        for kind, name in (("map", "vms"), ("set", "ranges")):
            stored = found.get(f"{kind} inet {ruleset.INET} {name}", {}).get("elem", [])
            commands += ruleset.elements("delete", name, [item for item in stored if _tap_of(item) == tap])
        for family, table, name in (("inet", ruleset.INET, f"vm_{tap}"), ("netdev", ruleset.L2, f"l2_{tap}")):
            if f"chain {family} {table} {name}" in found:
                chain = {"chain": {"family": family, "table": table, "name": name}}
                commands += [{"flush": chain}, {"delete": chain}]
        self._meant.pop(tap, None)
        self._nft.apply(commands)

    def _must_match(self, vm: VmRules | None = None) -> None:
        """Compare the kernel's state with what is meant: of ``vm`` and the base only, where ``vm`` is given."""
        meant = ruleset.expected(self._meant.values(), self._ports)
        found = ruleset.normalise(self._nft.listing())
        differences = ruleset.diff(found, meant)
        if vm is not None:
            others = {name for tap in self._meant if tap != vm.tap for name in (f" vm_{tap}", f" l2_{tap}")}
            differences = [line for line in differences if not any(name in line for name in others)]
        if differences:
            raise HostError(
                "the packet filter reads back otherwise than it was written: " + "; ".join(differences[:5]),
                code="wall-readback",
                remedy="See what else writes to nftables in the VMs' namespace (`ip netns exec NAME nft list ruleset`).",
            )


_L2_TABLE: Json = {"table": {"family": "netdev", "name": ruleset.L2}}


def _tap_of(element: Any) -> str:
    """The tap in an element of ``vms`` or of ``ranges``."""
    if isinstance(element, dict):
        element = element.get("concat", [""])
    return str(element[0])


def _present(listing: Json) -> Present:
    found = ruleset.normalise(listing)
    names = [key.split(" ", 3)[1:] for key in found if key.startswith("chain ")]
    vms = found.get(f"map inet {ruleset.INET} vms", {}).get("elem", [])
    ranges = found.get(f"set inet {ruleset.INET} ranges", {}).get("elem", [])
    return Present(
        chains=frozenset(name[3:] for family, _, name in names if family == "inet" and name.startswith("vm_")),
        l2_chains=frozenset(name[3:] for family, _, name in names if family == "netdev" and name.startswith("l2_")),
        map_entries=frozenset(map(_tap_of, vms)),
        ranges=frozenset(map(_tap_of, ranges)),
    )
