"""The packet filter of the VMs' network namespace as libnftables JSON: builders only, nothing here touches the kernel.

Three layers, each of which drops what it doesn't know:

1. ``netdev ironcd_l2``, one ingress chain per tap, before anything else sees a frame: only the VM's own MAC and address,
   only IPv4 TCP and UDP without IP options, and ARP for our end of the link.  A sandbox's ICMP echo requests, too.
2. ``inet ironcd``: TLS, DNS and the ranges that a policy names are redirected to the gateway's listeners; then, still
   before routing, a verdict map sends each tap to its VM's own chain, and an interface that isn't in the map is dropped.
   The VM's chain lets redirected flows in, within its limits, and refuses everything else at once (a job that tries
   QUIC or port 80 should fail in a millisecond, not in two minutes), each kind logged under its own prefix.  An ICMP echo
   ends here as well: it is handed to the gateway as a log message, which sends an echo of its own (ADR 14).
3. ``input``, ``forward`` and ``output`` chains that drop by default: they hold if the second layer had a hole.

The dispatch stands in prerouting and not in input: with ``ip_forward=0`` a packet for an outside address would be
discarded by routing, unlogged and unanswered, before any filter hook saw it.

The order of a match's parts and the form of each number are those that libnftables prints, so that `diff` can compare
what stands in the kernel with what was meant, object by object.  Every rule has a comment: its name in a difference.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from orchestrator.core.link import Limits

INET = "ironcd"
L2 = "ironcd_l2"
GUEST_MAC = "02:00:00:00:00:01"
"""Of every VM: a clone has the MAC of its template, and each is alone on its wire."""

ALL_TAPS = "ic*"
_HANDLED_PORTS = frozenset({53, 443})
_LOG_SNAPLEN = 128
_UDP_FLOWS = 4096
_ECHO_SNAPLEN = 1500
_ARP_PER_SECOND = 20
_SHARED = (("map", "vms"), ("set", "ranges"))

Json = dict[str, Any]


class Listeners(msgspec.Struct, frozen=True):
    """The ports of the gateway in the VMs' namespace, and the NFLOG groups that it reads: of drops, and of echoes."""

    tls: int
    tcp: int
    dns: int
    nflog_group: int
    echo_group: int


class VmRules(msgspec.Struct, frozen=True):
    """What is particular to one VM.  ``ranges`` are (CIDR, TCP port) pairs whose flows the gateway gets to judge.

    ``echo``: its ICMP echo requests get as far as the gateway.
    """

    tap: str
    guest_ip: str
    gateway_ip: str
    limits: Limits
    ranges: tuple[tuple[str, int], ...] = ()
    echo: bool = False

    @property
    def chain(self) -> str:
        return f"vm_{self.tap}"

    @property
    def l2_chain(self) -> str:
        return f"l2_{self.tap}"


def base_objects(ports: Listeners) -> list[Json]:
    """Tables, map, set and base chains: what stands there with no VM at all."""
    return [
        _table("netdev", L2),
        _table("inet", INET),
        {"map": {"family": "inet", "table": INET, "name": "vms", "type": "ifname", "map": "verdict"}},
        {
            "set": {
                "family": "inet",
                "table": INET,
                "name": "ranges",
                "type": ["ifname", "ipv4_addr", "inet_service"],
                "flags": ["interval"],
            }
        },
        _base_chain("pre", "nat", "prerouting", -100, "accept"),
        _base_chain("gate", "filter", "prerouting", -90, "drop"),
        _base_chain("input", "filter", "input", 0, "drop"),
        _base_chain("forward", "filter", "forward", 0, "drop"),
        _base_chain("output", "filter", "output", 0, "drop"),
        *_base_rules(ports),
    ]


def vm_objects(vm: VmRules, ports: Listeners) -> list[Json]:
    """Chains and rules of one VM (its map entry and ranges are elements: `vm_elements`)."""
    return [
        {
            "chain": {
                "family": "netdev",
                "table": L2,
                "name": vm.l2_chain,
                "type": "filter",
                "hook": "ingress",
                "prio": -500,
                "policy": "drop",
                "dev": vm.tap,
            }
        },
        {"chain": {"family": "inet", "table": INET, "name": vm.chain}},
        *l2_rules(vm, ports),
        *_vm_rules(vm, ports),
    ]


def vm_elements(vm: VmRules) -> list[tuple[str, Any]]:
    """(name of map or set, element) of one VM."""
    entry = [vm.tap, {"jump": {"target": vm.chain}}]
    return [("vms", entry), *(("ranges", range_element(vm.tap, cidr, port)) for cidr, port in merged(vm.ranges))]


def merged(ranges: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """``ranges`` without overlaps, which an interval set refuses, and without ports that are redirected anyway."""
    by_port: dict[int, list[ipaddress.IPv4Network]] = {}
    for cidr, port in ranges:
        if port not in _HANDLED_PORTS:
            by_port.setdefault(port, []).append(ipaddress.IPv4Network(cidr))
    return [(str(net), port) for port in sorted(by_port) for net in ipaddress.collapse_addresses(sorted(by_port[port]))]


def range_element(tap: str, cidr: str, port: int) -> Json:
    net = ipaddress.IPv4Network(cidr)
    address: Any = str(net.network_address)
    if net.prefixlen < 32:
        address = {"prefix": {"addr": address, "len": net.prefixlen}}
    return {"concat": [tap, address, port]}


def add(objects: Sequence[Json]) -> list[Json]:
    return [{"add": item} for item in objects]


def elements(op: str, name: str, items: Sequence[Any]) -> list[Json]:
    """A command that adds or deletes elements; none where there is nothing to do."""
    if not items:
        return []
    return [{op: {"element": {"family": "inet", "table": INET, "name": name, "elem": list(items)}}}]


def _table(family: str, name: str) -> Json:
    return {"table": {"family": family, "name": name}}


def _base_chain(name: str, kind: str, hook: str, prio: int, policy: str) -> Json:
    return {
        "chain": {
            "family": "inet",
            "table": INET,
            "name": name,
            "type": kind,
            "hook": hook,
            "prio": prio,
            "policy": policy,
        }
    }


def _rule(family: str, table: str, chain: str, comment: str, *expr: Json) -> Json:
    return {"rule": {"family": family, "table": table, "chain": chain, "comment": comment, "expr": list(expr)}}


def _match(left: Json, right: Any, op: str = "==") -> Json:
    return {"match": {"op": op, "left": left, "right": right}}


def _meta(key: str) -> Json:
    return {"meta": {"key": key}}


def _field(protocol: str, field: str) -> Json:
    return {"payload": {"protocol": protocol, "field": field}}


def _ct(key: str, value: Any) -> Json:
    return _match({"ct": {"key": key}}, value, "in")


def _count() -> Json:
    return {"counter": {"packets": 0, "bytes": 0}}


def _limit(rate: int, burst: int) -> Json:
    return {"limit": {"rate": rate, "burst": burst, "per": "second"}}


def _ports(protocol: str, *ports: int) -> Json:
    return _match(_field(protocol, "dport"), ports[0] if len(ports) == 1 else {"set": sorted(ports)})


def _log(tap: str, why: str, group: int, snaplen: int = _LOG_SNAPLEN) -> Json:
    return {"log": {"prefix": f"{tap} {why} ", "group": group, "snaplen": snaplen, "queue-threshold": 1}}


_DROP: Json = {"drop": None}
_ACCEPT: Json = {"accept": None}
_RESET: Json = {"reject": {"type": "tcp reset"}}
_REFUSE: Json = {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}
_TCP = _match(_meta("l4proto"), "tcp")
_FROM_VM = _match(_meta("iifname"), ALL_TAPS)
_ECHO = _match(_field("icmp", "type"), "echo-request")


def _base_rules(ports: Listeners) -> list[Json]:
    def rule(chain: str, comment: str, *expr: Json) -> Json:
        return _rule("inet", INET, chain, comment, *expr)

    both = _match(_meta("l4proto"), {"set": ["tcp", "udp"]})
    dns = _match(_field("th", "dport"), 53)
    target = {"concat": [_meta("iifname"), _field("ip", "daddr"), _field("tcp", "dport")]}
    return [
        rule("pre", "dns", _FROM_VM, both, dns, {"redirect": {"port": ports.dns}}),
        rule("pre", "tls", _FROM_VM, _ports("tcp", 443), {"redirect": {"port": ports.tls}}),
        rule("pre", "ranges", _match(target, "@ranges"), {"redirect": {"port": ports.tcp}}),
        rule("gate", "dispatch", {"vmap": {"key": _meta("iifname"), "data": "@vms"}}),
        rule("gate", "unknown", _count()),
        rule("input", "listeners", _FROM_VM, _ct("status", "dnat"), _ports("tcp", ports.tls, ports.tcp, ports.dns), _ACCEPT),
        rule("input", "resolver", _FROM_VM, _ct("status", "dnat"), _ports("udp", ports.dns), _ACCEPT),
        rule("input", "rest", _count()),
        rule("forward", "rest", _count()),
        rule("output", "answers", _match(_meta("oifname"), ALL_TAPS), _ct("state", ["established", "related"]), _ACCEPT),
        rule("output", "echoes", _match(_meta("oifname"), ALL_TAPS), _match(_field("icmp", "type"), {"set": ["echo-reply", "destination-unreachable"]}), _ACCEPT),
        rule("output", "rest", _count()),
    ]  # fmt: skip


def l2_rules(vm: VmRules, ports: Listeners) -> list[Json]:
    """The rules of the VM's first layer, in order."""

    def rule(comment: str, *expr: Json) -> Json:
        return _rule("netdev", L2, vm.l2_chain, comment, *expr)

    events = vm.limits.events_per_second
    icmp = _match(_field("ip", "protocol"), "icmp")
    return [
        rule("mac", _match(_field("ether", "saddr"), GUEST_MAC, "!="), _count(), _DROP),
        rule(
            "arp",  # the match on ARP's fields implies the EtherType; libnftables doesn't print one that is spelled out
            _match(_field("arp", "saddr ether"), GUEST_MAC),
            _match(_field("arp", "saddr ip"), vm.guest_ip),
            _match(_field("arp", "daddr ip"), vm.gateway_ip),
            _limit(_ARP_PER_SECOND, 10),
            _ACCEPT,
        ),
        rule("ethertype", _match(_field("ether", "type"), "ip", "!="), _count(), _DROP),
        rule("address", _match(_field("ip", "saddr"), vm.guest_ip, "!="), _count(), _DROP),
        rule("options", _match(_field("ip", "hdrlength"), 5, "!="), _count(), _DROP),
        rule("pass", _match(_field("ip", "protocol"), {"set": ["tcp", "udp"]}), _ACCEPT),
        *([rule("echo", _ECHO, _ACCEPT)] if vm.echo else []),
        rule("icmp", icmp, _count(), _limit(events, events), _log(vm.tap, "icmp", ports.nflog_group)),
        rule("rest", _count()),
    ]


def _vm_rules(vm: VmRules, ports: Listeners) -> list[Json]:
    def rule(comment: str, *expr: Json) -> Json:
        return _rule("inet", INET, vm.chain, comment, *expr)

    def refuse(why: str, *match: Json) -> list[Json]:
        events = vm.limits.events_per_second
        return [rule(why, *match, _count(), _limit(events, events), _log(vm.tap, why, ports.nflog_group))]

    echoes = _limit(vm.limits.echoes_per_second, 2 * vm.limits.echoes_per_second)
    redirected = _ct("status", "dnat")
    per_second = _limit(vm.limits.new_per_second, vm.limits.new_per_second)
    return [
        rule("established", _ct("state", "established"), _ACCEPT),
        rule("invalid", _ct("state", "invalid"), _count(), _DROP),
        rule("echo", _ECHO, echoes, _log(vm.tap, "echo", ports.echo_group, _ECHO_SNAPLEN), _DROP),
        rule("tcp-in", redirected, _ports("tcp", ports.tls, ports.tcp, ports.dns), per_second,
             {"ct count": {"val": vm.limits.connections}}, _ACCEPT),
        rule("udp-in", redirected, _ports("udp", ports.dns), per_second, {"ct count": {"val": _UDP_FLOWS}}, _ACCEPT),
        *refuse("limit", redirected),
        rule("limit-reset", redirected, _TCP, _RESET),
        rule("limit-refuse", redirected, _REFUSE),
        *refuse("http", _ports("tcp", 80)),
        rule("http-reset", _ports("tcp", 80), _RESET),
        *refuse("ssh", _ports("tcp", 22)),
        rule("ssh-reset", _ports("tcp", 22), _RESET),
        *refuse("quic", _ports("udp", 80, 443, 8443)),
        rule("quic-refuse", _ports("udp", 80, 443, 8443), _REFUSE),
        *refuse("other"),
        rule("other-reset", _TCP, _RESET),
        rule("other-refuse", _REFUSE),
    ]  # fmt: skip


def normalise(listing: Json) -> dict[str, Any]:
    """What ``list ruleset`` answered as ``{key: object}``, without handles and counts, ours only.

    Keys: ``table F T``, ``chain F T NAME``, ``set T NAME``; a chain's object has its rules under ``rules``, in order, and
    a set's or map's has its elements, sorted, under ``elem``.
    """
    found: dict[str, Any] = {}
    for item in listing.get("nftables", []):
        kind, body = next(iter(item.items()))
        if kind == "metainfo" or not _is_ours(kind, body):
            continue
        clean = _without(body, {"handle"})
        family, table = body["family"], body.get("table", body.get("name"))
        if kind == "table":
            found[f"table {family} {table}"] = clean
        elif kind == "chain":
            found.setdefault(f"chain {family} {table} {body['name']}", {"rules": []}).update(clean)
        elif kind == "rule":
            chain = found.setdefault(f"chain {family} {table} {body['chain']}", {"rules": []})
            chain["rules"].append({"comment": clean.get("comment", ""), "expr": _zeroed(clean["expr"])})
        else:
            clean["elem"] = sorted(clean.get("elem", []), key=_sort_key)
            found[f"{kind} {family} {table} {body['name']}"] = clean
    return found


def expected(vms: Iterable[VmRules], ports: Listeners) -> dict[str, Any]:
    """What `normalise` should give with exactly ``vms`` installed."""
    vms = list(vms)
    objects = base_objects(ports) + [item for vm in vms for item in vm_objects(vm, ports)]
    found = normalise({"nftables": objects})
    for vm in vms:
        for name, element in vm_elements(vm):
            kind = "map" if name == "vms" else "set"
            found[f"{kind} inet {INET} {name}"]["elem"].append(element)
    for key, item in found.items():
        if key.startswith(("map ", "set ")):
            item["elem"].sort(key=_sort_key)
    return found


def chains_of(tap: str) -> list[Json]:
    """The two chains of the VM on ``tap``, by name."""
    return [
        {"chain": {"family": "inet", "table": INET, "name": f"vm_{tap}"}},
        {"chain": {"family": "netdev", "table": L2, "name": f"l2_{tap}"}},
    ]


def places_of(tap: str) -> list[Json]:
    """Where something of the VM on ``tap`` may stand: its chains, the map and the set."""
    return chains_of(tap) + shared_places()


def shared_places() -> list[Json]:
    """The map and the set, which hold elements of every VM."""
    return [{kind: {"family": "inet", "table": INET, "name": name}} for kind, name in _SHARED]


def only_of(tap: str, found: dict[str, Any]) -> dict[str, Any]:
    """The part of ``found`` (see `normalise`) that is about the VM on ``tap``."""
    own: dict[str, Any] = {}
    for item in chains_of(tap):
        key = "chain {family} {table} {name}".format(**item["chain"])
        if key in found:
            own[key] = found[key]
    for kind, name in _SHARED:
        key = f"{kind} inet {INET} {name}"
        own[key] = {"elem": [item for item in found.get(key, {}).get("elem", []) if tap_of(item) == tap]}
    return own


def tap_of(element: Any) -> str:
    """The tap in an element of the map or of the set."""
    if isinstance(element, dict):
        element = element.get("concat", [""])
    return str(element[0])


def expected_of(vm: VmRules, ports: Listeners) -> dict[str, Any]:
    """What `only_of` should give once ``vm`` is installed."""
    return only_of(vm.tap, expected([vm], ports))


def diff(found: dict[str, Any], meant: dict[str, Any]) -> list[str]:
    """What differs, for a person to read; empty where the kernel has exactly what was meant."""
    missing = [f"missing: {key}" for key in meant if key not in found]
    extra = [f"not ours: {key}" for key in found if key not in meant]
    changed = [
        f"changed: {key}{_detail(found[key], meant[key])}" for key in meant if key in found and found[key] != meant[key]
    ]
    return missing + extra + changed


def _detail(found: Any, meant: Any) -> str:
    theirs = [rule.get("comment") for rule in found.get("rules", [])]
    ours = [rule.get("comment") for rule in meant.get("rules", [])]
    if theirs != ours:
        return f" (rules {theirs} for {ours})"
    for one, other in zip(found.get("rules", []), meant.get("rules", []), strict=True):
        if one != other:
            return f" (rule {one['comment']!r})"
    return ""


def _is_ours(kind: str, body: Json) -> bool:
    table = body.get("name") if kind == "table" else body.get("table")
    return (body.get("family"), table) in {("inet", INET), ("netdev", L2)}


def _without(body: Json, keys: set[str]) -> Json:
    return {key: value for key, value in body.items() if key not in keys}


def _zeroed(expr: list[Any]) -> list[Any]:
    return [_count() if isinstance(part, dict) and "counter" in part else part for part in expr]


def _sort_key(element: Any) -> str:
    return msgspec.json.encode(element, order="deterministic").decode()
