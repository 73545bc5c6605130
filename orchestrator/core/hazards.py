"""Which entries of a policy would undo it, and why: judged when a policy is read, never when a packet comes.

Refused whatever is said for it: a wildcard on a public suffix (``*.com``), a range wider than /8, a range on the floor.
Accepted with an ``acknowledge:`` that gives a reason: DNS over HTTPS, tunnels, drop boxes, and places where anyone can
rent a name or an account.
"""

from __future__ import annotations

from ipaddress import AddressValueError, IPv4Network, NetmaskValueError, ip_network
from typing import NamedTuple

from orchestrator.core.floor import floor_parts, is_liftable
from orchestrator.core.host_pattern import base_of, covers, overlaps
from orchestrator.core.presets import Hazard, Presets

WIDEST = 8

_KINDS = {
    "doh": "DNS over HTTPS: names that it answers never pass our resolver",
    "tunnel": "a tunnel: it leads to any host its user likes",
    "drop": "a drop box: what is sent there, anyone can fetch",
    "multi_tenant": "shared by many tenants: anyone can get a place there",
}


class Danger(NamedTuple):
    why: str
    remedy: str
    refused: bool
    """True where no acknowledgement helps."""
    multi_tenant: bool = False


class RangeProblem(ValueError):
    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


def host_danger(pattern: str, presets: Presets) -> Danger | None:
    """Why the canonical ``pattern`` must not be allowed just like that; None where nothing is known against it."""
    wildcard = pattern.startswith("*")
    base = base_of(pattern)
    if wildcard and presets.suffix(base) == "icann":
        why = f'"{pattern}" is every site under {base}: anyone can register one'
        return Danger(why, "name the hosts, or the organisation's own domain", refused=True)
    hazard = next((h for h in presets.hazards if _applies(h, pattern, wildcard=wildcard)), None)
    if hazard is not None:
        return Danger(
            f"{hazard.host} is {_KINDS[hazard.kind]} ({hazard.why})",
            "leave it out, or say why it is needed: acknowledge: REASON",
            refused=False,
            multi_tenant=hazard.kind != "doh",
        )
    if wildcard and presets.suffix(base) == "private":
        return Danger(
            f'"{pattern}": {base} is a public suffix, under which anyone can get a name',
            "write the exact host, or say why the wildcard is needed: acknowledge: REASON",
            refused=False,
            multi_tenant=True,
        )
    return None


def read_range(text: str) -> str:
    """The canonical form of an IPv4 range.  Raises `RangeProblem`."""
    if ":" in text:
        raise RangeProblem("IPv6 ranges have no use: VMs speak IPv4 only", "write the IPv4 range")
    try:
        net = IPv4Network(text)
    except (AddressValueError, NetmaskValueError):
        raise RangeProblem(f"{text[:80]!a} isn't an IPv4 range", "write ADDRESS/LENGTH, like 192.0.2.0/24") from None
    except ValueError:
        whole = ip_network(text, strict=False)
        raise RangeProblem(f"{text} has bits set beyond its length", f"write {whole}, or a longer length") from None
    if net.prefixlen < WIDEST:
        raise RangeProblem(f"{net} is wider than /{WIDEST}", "list the ranges that are needed")
    return str(net)


def floor_problem(cidr: str, private: tuple[str, ...]) -> str | None:
    """Why an allow rule for all of ``cidr`` could never apply; None where it can.

    ``private`` holds the ranges that the organisation has lifted off the floor.
    """
    net = IPv4Network(cidr)
    part = next(((part, why) for part, why in floor_parts(net) if net.subnet_of(part)), None)
    if part is None:
        return None
    if is_liftable(net) and any(net.subnet_of(IPv4Network(lifted)) for lifted in private):
        return None
    return f"{cidr} lies on the floor ({part[1].replace('_', ' ')}, {part[0]}), which no rule reaches"


def _applies(hazard: Hazard, pattern: str, *, wildcard: bool) -> bool:
    """An exact name below a tenants' wildcard is one tenant's, and his who wrote it; below a tunnel's it is anyone's."""
    if wildcard:
        return overlaps(pattern, hazard.host)
    if hazard.kind == "multi_tenant":
        return pattern == hazard.host
    return covers(hazard.host, pattern)
