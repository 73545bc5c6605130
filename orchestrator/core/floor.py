"""The floor: ranges that no policy, mode or rule reaches by accident.

Sources: the IANA special-purpose registries for IPv4 and IPv6, and the metadata addresses of the large clouds.  An IPv6
address that carries an IPv4 one (mapped, compatible, NAT64, 6to4, Teredo, ISATAP) is judged by what it carries, since a
translator on the way would deliver it there.

Documentation ranges aren't on the floor: nothing answers there, and test set-ups use them as the outside world.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

NAMES_RANGE = IPv4Network("198.18.0.0/15")
"""Where the resolver's answers lie: an address there stands for a name, in one VM."""

_METADATA = ("169.254.169.254/32", "169.254.170.2/32", "100.100.100.200/32", "192.0.0.192/32", "168.63.129.16/32")
_PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")

_V4: tuple[tuple[IPv4Network, str], ...] = (
    *((IPv4Network(net), "metadata") for net in _METADATA),
    (IPv4Network("127.0.0.0/8"), "loopback"),
    (IPv4Network("169.254.0.0/16"), "link_local"),
    *((IPv4Network(net), "private") for net in _PRIVATE),
    (IPv4Network("0.0.0.0/8"), "this_network"),
    (IPv4Network("192.0.0.0/24"), "protocol"),
    (IPv4Network("192.88.99.0/24"), "relay"),
    (NAMES_RANGE, "benchmark"),
    (IPv4Network("224.0.0.0/4"), "multicast"),
    (IPv4Network("240.0.0.0/4"), "reserved"),
)
_V6: tuple[tuple[IPv6Network, str], ...] = (
    (IPv6Network("::/127"), "loopback"),
    (IPv6Network("fd00:ec2::254/128"), "metadata"),
    (IPv6Network("fc00::/7"), "private"),
    (IPv6Network("fe80::/10"), "link_local"),
    (IPv6Network("fec0::/10"), "private"),
    (IPv6Network("ff00::/8"), "multicast"),
    (IPv6Network("100::/64"), "discard"),
    (IPv6Network("2001::/23"), "protocol"),
    (IPv6Network("5f00::/16"), "protocol"),
)
_NAT64 = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))
_LIFTABLE = frozenset({"private"})


@lru_cache(maxsize=4096)
def floor_reason(address: str) -> str | None:
    """Which part of the floor ``address`` lies on; None where it lies above.  What can't be read is ``malformed``."""
    if "%" in address:
        return "link_local"
    try:
        ip = ip_address(address)
    except ValueError:
        return "malformed"
    if isinstance(ip, IPv4Address):
        return next((why for net, why in _V4 if ip in net), None)
    inner = _embedded(ip)
    if inner is not None:
        return floor_reason(str(inner)) or "embedded"
    return next((why for net, why in _V6 if ip in net), None)


def floor_verdict(address: str, *, own: Iterable[str] = (), private: Iterable[str] = ()) -> str | None:
    """`floor_reason`, with the host's ``own`` addresses on the floor and ``private`` ranges (CIDR) lifted off it.

    Only private and shared ranges can be lifted: metadata, loopback, link-local and the host itself never are.  ``own``
    is in the form that the kernel gives: lower case, zeroes of IPv6 left out.
    """
    if _canonical(address) in own:
        return "own_address"
    why = floor_reason(address)
    if why in _LIFTABLE:
        ip = ip_address(address)
        if any(ip in ip_network(net) for net in private):
            return None
    return why


def floor_parts(net: IPv4Network) -> tuple[tuple[IPv4Network, str], ...]:
    """The parts of the floor that ``net`` touches, each with its reason."""
    return tuple((part, why) for part, why in _V4 if part.overlaps(net))


def is_liftable(net: IPv4Network) -> bool:
    """True where all of ``net`` is a private or shared range, which a ``private:`` entry can lift off the floor."""
    reasons = {why for part, why in _V4 if net.subnet_of(part)}
    return bool(reasons) and reasons <= _LIFTABLE


@lru_cache(maxsize=4096)
def _canonical(address: str) -> str:
    try:
        return str(ip_address(address))
    except ValueError:
        return address


def _embedded(ip: IPv6Address) -> IPv4Address | None:
    packed = ip.packed
    inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
    if inner is not None:
        return inner
    translated = any(ip in net for net in _NAT64)
    isatap = packed[8:12] in (b"\x00\x00\x5e\xfe", b"\x02\x00\x5e\xfe")
    compatible = packed[:12] == bytes(12) and int.from_bytes(packed[12:]) > 1
    return IPv4Address(packed[12:]) if translated or isatap or compatible else None
