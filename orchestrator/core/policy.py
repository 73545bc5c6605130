"""What a VM may reach: `Policy` is the list of rules, `compile_policy` makes it quick to ask, `decide` is the one answer.

The order of a decision, first match wins:

1. the floor (`orchestrator.core.floor`): blocked, in every mode;
2. a protocol that no rule can allow (plain HTTP, QUIC, DNS elsewhere; ICMP, but for the profile *sandbox*): blocked, in
   every mode;
3. a connection with no name, to an address that no ``cidr`` rule allows: blocked, in every mode;
4. a ``deny`` rule: blocked, in every mode (a denied range holds for the address that a name resolves to as well);
5. an ``allow`` rule: allowed;
6. nothing matched: blocked, or in ``warn`` passed and recorded as would-block.

``*.x`` is exactly one label below x, ``**.x`` one or more, and neither is x itself.  Names are compared label by label
in lower-case ASCII; a name in any other form never gets here (`orchestrator.egress.hello`, the resolver).  A lookup costs
one dictionary access per label and one per prefix length in use, however many rules there are.

An ICMP echo has no port.  In the profile *sandbox* it may go where a ``host`` or ``cidr`` rule lets anything go, whatever
the rule's ports; a ``deny`` of any port there blocks it; ``warn`` lets no more of them pass than ``enforce`` does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cached_property, lru_cache
from ipaddress import IPv4Address, IPv4Network
from typing import Literal

import msgspec

from orchestrator.core.floor import NAMES_RANGE, floor_verdict
from orchestrator.core.flow import Flow, Verdict

Mode = Literal["enforce", "warn"]
Action = Literal["allow", "deny", "expect"]
Profile = Literal["runner", "sandbox"]

HTTPS = (443,)


class Rule(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of a policy.  Exactly one of ``host`` (pattern) and ``cidr`` (IPv4 range) is set."""

    id: str
    """Says where it is written: ``builtin/github@1#3``, ``org#2``, ``repo#5``."""
    action: Action = "allow"
    host: str = ""
    cidr: str = ""
    ports: tuple[int, ...] = HTTPS
    """None at all is every port, which only a ``deny`` may say."""
    origin: str = ""
    """For people: ``.ironcd/policy.yml:7`` or ``preset node, version 1``."""
    comment: str = ""
    multi_tenant: bool = False
    """Anyone can rent a name or a place there: its flows are flagged."""


class Private(msgspec.Struct, frozen=True):
    """A private range that the organisation really needs: lifts it off the floor.  The reason is on record."""

    cidr: str
    reason: str


class Policy(msgspec.Struct, frozen=True, omit_defaults=True, dict=True):
    mode: Mode
    rules: tuple[Rule, ...]
    profile: Profile = "runner"
    private: tuple[Private, ...] = ()
    allow_ech: bool = False
    """Let hellos pass that carry encrypted_client_hello (browsers send a dummy of it); their flows are flagged ``ech``."""

    @cached_property
    def digest(self) -> str:
        """``sha256:`` and 64 hexadecimal digits over the canonical JSON: equal policies have equal digests."""
        return "sha256:" + hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()


class Decision(msgspec.Struct, frozen=True):
    """``reason`` is one word for programs; ``rule`` the id of the rule that decided, empty where none did."""

    verdict: Verdict
    reason: str
    rule: str = ""
    would_block: bool = False
    flags: tuple[str, ...] = ()

    @property
    def passes(self) -> bool:
        return self.verdict != "blocked"


class _Hosts:
    """Host patterns of one action, by the labels that they end in."""

    __slots__ = ("deep", "exact", "one")

    def __init__(self) -> None:
        self.exact: dict[str, Rule] = {}
        self.one: dict[str, Rule] = {}
        self.deep: dict[str, Rule] = {}

    def add(self, rule: Rule) -> None:
        if rule.host.startswith("**."):
            self.deep.setdefault(rule.host[3:], rule)
        elif rule.host.startswith("*."):
            self.one.setdefault(rule.host[2:], rule)
        else:
            self.exact.setdefault(rule.host, rule)

    def find(self, name: str) -> Rule | None:
        """The most specific rule that matches ``name``."""
        rule = self.exact.get(name)
        if rule is not None:
            return rule
        _, _, rest = name.partition(".")
        if not rest:
            return None
        rule = self.one.get(rest)
        if rule is not None:
            return rule
        while rest:
            rule = self.deep.get(rest)
            if rule is not None:
                return rule
            _, _, rest = rest.partition(".")
        return None


class _Ranges:
    """CIDR rules of one action, by prefix length."""

    __slots__ = ("by_length",)

    def __init__(self) -> None:
        self.by_length: dict[int, dict[int, list[Rule]]] = {}

    def add(self, rule: Rule) -> None:
        net = IPv4Network(rule.cidr)
        slot = self.by_length.setdefault(net.prefixlen, {})
        slot.setdefault(int(net.network_address), []).append(rule)
        self.by_length = dict(sorted(self.by_length.items(), reverse=True))

    def find(self, address: int, port: int | None) -> Rule | None:
        """The narrowest rule about ``address`` and ``port``; about any port where that is None."""
        for length, slot in self.by_length.items():
            for rule in slot.get(address >> (32 - length) << (32 - length), ()):
                if port is None or port in rule.ports or not rule.ports:
                    return rule
        return None


class CompiledPolicy:
    """A `Policy` made ready for `decide`.  Immutable once made; swap the whole to change it."""

    __slots__ = ("_hosts", "_ranges", "digest", "policy", "private")

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.digest = policy.digest
        self.private = tuple(entry.cidr for entry in policy.private)
        self._hosts = {action: _Hosts() for action in ("allow", "deny", "expect")}
        self._ranges = {action: _Ranges() for action in ("allow", "deny", "expect")}
        for rule in policy.rules:
            if bool(rule.host) == bool(rule.cidr):
                raise ValueError(f"rule {rule.id}: exactly one of host and cidr must be set")
            if rule.action == "allow" and not rule.ports:
                raise ValueError(f"rule {rule.id}: an allow rule names its ports")
            (self._hosts if rule.host else self._ranges)[rule.action].add(rule)

    def host_rule(self, action: Action, name: str) -> Rule | None:
        return self._hosts[action].find(name)

    def range_rule(self, action: Action, address: str, port: int | None) -> Rule | None:
        return self._ranges[action].find(_number(address), port)

    def cidr_ports(self) -> Iterable[tuple[str, int]]:
        """Every (range, port) that an allow rule names, for the kernel's redirect set."""
        return ((r.cidr, port) for r in self.policy.rules if r.cidr and r.action == "allow" for port in r.ports)


def compile_policy(policy: Policy) -> CompiledPolicy:
    """Index ``policy``.  Raises ValueError for a rule that is neither a host's nor a range's."""
    return CompiledPolicy(policy)


def decide(policy: CompiledPolicy, flow: Flow, *, own: Iterable[str] = ()) -> Decision:
    """The verdict on ``flow``.  Total: every flow gets one, and what isn't understood is blocked.

    ``own`` holds the host's own addresses.  The address that a name resolved to is judged with `judge_address`.
    """
    if flow.address is not None and is_dialled(flow.address):
        why = floor_verdict(flow.address, own=own, private=policy.private)
        if why is not None:
            return Decision("blocked", f"floor_{why}")
    match flow.protocol:
        case "tls" | "dns" if flow.name is not None:
            return _by_name(policy, flow.name, flow.port)
        case "tls" | "tcp" if flow.address is not None:
            return _by_range(policy, flow, flow.address)
        case "icmp" if policy.policy.profile == "sandbox":
            return _echo(policy, flow)
        case _:
            return Decision("blocked", f"protocol_{flow.protocol}")


def judge_address(
    policy: CompiledPolicy, address: str, *, own: Iterable[str] = (), port: int | None = HTTPS[0]
) -> str | None:
    """Why an address that an allowed name resolved to must not be dialled; None where it may be.

    ``floor_...`` for the floor, ``denied_range`` for a range that a ``deny`` rule names (with any port where ``port`` is
    None).
    """
    why = floor_verdict(address, own=own, private=policy.private)
    if why is not None:
        return f"floor_{why}"
    try:
        return "denied_range" if policy.range_rule("deny", address, port) is not None else None
    except ValueError:
        return None


@lru_cache(maxsize=4096)
def is_dialled(address: str) -> bool:
    """False for an address out of the resolver's range, which stands for a name and is never dialled."""
    try:
        return IPv4Address(address) not in NAMES_RANGE
    except ValueError:
        return True


@lru_cache(maxsize=4096)
def _number(address: str) -> int:
    """Raises ValueError for what isn't an IPv4 address."""
    return int(IPv4Address(address))


def _by_name(policy: CompiledPolicy, name: str, port: int) -> Decision:
    denied = policy.host_rule("deny", name)
    if denied is not None:
        return _blocked(policy, name, "denied", denied.id)
    rule = policy.host_rule("allow", name)
    if rule is not None and port in rule.ports:
        return _allowed(rule)
    if policy.policy.mode == "warn" and port in HTTPS:
        return Decision("warn", "not_allowed", would_block=True, flags=_expected(policy, name))
    return _blocked(policy, name, "not_allowed", "")


def _by_range(policy: CompiledPolicy, flow: Flow, address: str) -> Decision:
    try:
        denied = policy.range_rule("deny", address, flow.port)
        rule = policy.range_rule("allow", address, flow.port)
    except ValueError:
        return Decision("blocked", "malformed_address")
    if denied is not None:
        return Decision("blocked", "denied", denied.id)
    if rule is not None:
        return _allowed(rule)
    return Decision("blocked", "missing_sni" if flow.protocol == "tls" else "not_allowed")


def _echo(policy: CompiledPolicy, flow: Flow) -> Decision:
    if flow.name is not None:
        denied, rule = policy.host_rule("deny", flow.name), policy.host_rule("allow", flow.name)
    elif flow.address is None or not is_dialled(flow.address):
        return Decision("blocked", "unknown_name")
    else:
        try:
            denied = policy.range_rule("deny", flow.address, None)
            rule = policy.range_rule("allow", flow.address, None)
        except ValueError:
            return Decision("blocked", "malformed_address")
    if denied is not None:
        return Decision("blocked", "denied", denied.id)
    return Decision("blocked", "not_allowed") if rule is None else _allowed(rule)


def _allowed(rule: Rule) -> Decision:
    return Decision("allowed", "rule", rule.id, flags=("multi_tenant",) if rule.multi_tenant else ())


def _expected(policy: CompiledPolicy, name: str) -> tuple[str, ...]:
    return ("expected",) if policy.host_rule("expect", name) is not None else ()


def _blocked(policy: CompiledPolicy, name: str, reason: str, rule: str) -> Decision:
    return Decision("blocked", reason, rule, flags=_expected(policy, name))
