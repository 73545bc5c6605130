"""Which /31 link a VM gets: the lowest free one that hasn't been in use for a while.

A link's addresses rest after use, so that what the kernel or the gateway still remembers of the last VM there can't be
taken for the next one's.
"""

from __future__ import annotations

import ipaddress
import threading

import msgspec

from orchestrator.core.errors import HostError

REST_S = 60.0


class Slot(msgspec.Struct, frozen=True):
    """One link: the even address is ours, on the tap; the odd one the VM's."""

    index: int
    gateway_ip: str
    guest_ip: str


def slot_at(links_range: str, index: int) -> Slot:
    """The ``index``th /31 of ``links_range``.  Raises IndexError past its end."""
    net = ipaddress.IPv4Network(links_range)
    if not 0 <= index < net.num_addresses // 2:
        raise IndexError(index)
    first = net.network_address + 2 * index
    return Slot(index, str(first), str(first + 1))


class Slots:
    """Safe for threads: machines are made on many at once, and no two may have one link."""

    def __init__(self, links_range: str) -> None:
        self._range = links_range
        self._size = ipaddress.IPv4Network(links_range).num_addresses // 2
        self._used: set[int] = set()
        self._resting: dict[int, float] = {}
        self._lock = threading.Lock()

    def take(self, now: float) -> Slot:
        """Raises HostError (``links-exhausted``) where every link is in use or rests."""
        with self._lock:
            self._resting = {index: until for index, until in self._resting.items() if until > now}
            for index in range(self._size):
                if index not in self._used and index not in self._resting:
                    self._used.add(index)
                    return slot_at(self._range, index)
        raise HostError(
            f"every link of {self._range} is in use",
            code="links-exhausted",
            remedy="Set host.links_range to a larger range, or wait a minute.",
        )

    def adopt(self, index: int) -> Slot:
        """Take the link that a VM from before a restart has."""
        with self._lock:
            self._used.add(index)
        return slot_at(self._range, index)

    def release(self, index: int, now: float) -> None:
        with self._lock:
            self._used.discard(index)
            self._resting[index] = now + REST_S
