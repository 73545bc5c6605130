"""The addresses that stand for names: each VM has the whole of 198.18.0.0/15 to itself.

An address is derived from its name, so a VM's cached answer keeps its meaning when the gateway restarts.  The table only
says what a dialled address was handed out for; the decision is on the name in the hello.
"""

from __future__ import annotations

import zlib
from ipaddress import IPv4Address

from orchestrator.core.floor import NAMES_RANGE

MAX_NAMES = 4096
_BASE = int(NAMES_RANGE.network_address)
_ROOM = NAMES_RANGE.num_addresses - 2


class FakeNames:
    """One VM's table, both ways."""

    __slots__ = ("_addresses", "_names")

    def __init__(self) -> None:
        self._addresses: dict[str, str] = {}
        self._names: dict[str, str] = {}

    def address_of(self, name: str) -> str | None:
        """The address that stands for ``name``, now or from now on; None once the VM has had `MAX_NAMES` names."""
        address = self._addresses.get(name)
        if address is not None:
            return address
        if len(self._addresses) >= MAX_NAMES:
            return None
        slot = zlib.crc32(name.encode()) % _ROOM
        while True:
            address = str(IPv4Address(_BASE + 1 + slot))
            if address not in self._names:
                break
            slot = (slot + 1) % _ROOM
        self._addresses[name] = address
        self._names[address] = name
        return address

    def name_of(self, address: str) -> str | None:
        """The name that ``address`` was handed out for."""
        return self._names.get(address)
