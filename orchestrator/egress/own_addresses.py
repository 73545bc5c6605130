"""The host's own addresses: nothing that a VM asks for is dialled there.

Read from the kernel (`ip -json address`) in the namespace that the gateway dials from, again every few seconds, since
addresses come and go.  The links' range counts as the host's own as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, ip_address

from orchestrator.core.floor import floor_reason
from orchestrator.system.process import run

_NOT_ALWAYS_BLOCKED = frozenset({None, "private"})
"""What else lies on the floor (loopback, link-local, metadata) can't be lifted, and keeps its own, clearer reason."""


class OwnAddresses:
    """A set of addresses to look up in; `refresh` reads it anew."""

    def __init__(self, links_range: str) -> None:
        links = IPv4Network(links_range)
        self._in_range = lru_cache(4096)(lambda address: _within(address, links))
        self._addresses: frozenset[str] = frozenset()

    def __contains__(self, address: object) -> bool:
        return address in self._addresses or (isinstance(address, str) and self._in_range(address))

    def __iter__(self) -> Iterator[str]:
        return iter(self._addresses)

    def refresh(self) -> None:
        """Blocks for some milliseconds.  Raises CommandFailed; what was known stays."""
        self._addresses = frozenset(_parse(run(["ip", "-json", "address"], timeout_s=10)))


def _within(address: str, links: IPv4Network) -> bool:
    try:
        return IPv4Address(address) in links
    except ValueError:
        return False


def _parse(listing: str) -> Iterator[str]:
    for interface in json.loads(listing):
        for entry in interface.get("addr_info", ()):
            local = str(ip_address(entry.get("local", "::")))
            if floor_reason(local) in _NOT_ALWAYS_BLOCKED:
                yield local
