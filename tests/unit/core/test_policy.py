"""`decide` against plain readings of its rules: each property is said again here, without the indexes."""

from __future__ import annotations

import hashlib
from ipaddress import IPv4Address, IPv4Network

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.flow import Flow
from orchestrator.core.policy import (
    Decision,
    Policy,
    Private,
    Rule,
    compile_policy,
    decide,
    judge_address,
)

LABELS = st.sampled_from(["a", "b", "ab", "evil", "example", "evilexample", "com", "co", "uk", "test"])
NAMES = st.lists(LABELS, min_size=1, max_size=5).map(".".join)
PATTERNS = st.tuples(st.sampled_from(["", "", "*.", "**."]), NAMES).map("".join)
PUBLIC = st.sampled_from(["192.0.2.1", "192.0.2.9", "198.51.100.7", "203.0.113.5", "203.0.113.200"])
RANGES = st.sampled_from(["192.0.2.0/24", "192.0.2.0/29", "203.0.113.0/25", "203.0.0.0/16", "198.51.100.7/32"])
PORTS = st.lists(st.sampled_from([22, 443, 2222]), min_size=1, max_size=2, unique=True).map(tuple)
FLOOR = st.sampled_from(
    ["127.0.0.1", "169.254.169.254", "10.1.2.3", "100.64.0.1", "224.0.0.1", "::1", "::ffff:10.0.0.1"]
)


@st.composite
def host_rules(draw: st.DrawFn) -> Rule:
    return Rule(
        id=draw(st.text("abc#1", min_size=1, max_size=5)),
        action=draw(st.sampled_from(["allow", "deny", "expect"])),
        host=draw(PATTERNS),
        multi_tenant=draw(st.booleans()),
    )


@st.composite
def range_rules(draw: st.DrawFn) -> Rule:
    action = draw(st.sampled_from(["allow", "deny"]))
    ports = draw(st.just(()) | PORTS) if action == "deny" else draw(PORTS)
    return Rule(id="range", action=action, cidr=draw(RANGES), ports=ports)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    rules = draw(st.lists(host_rules() | range_rules(), max_size=8))
    return Policy(
        mode=draw(st.sampled_from(["enforce", "warn"])),
        rules=tuple(rules),
        profile=draw(st.sampled_from(["runner", "sandbox"])),
    )


PROTOCOLS = st.sampled_from(["tls", "tcp", "udp", "dns", "icmp", "other"])
FLOWS = st.builds(
    Flow,
    protocol=PROTOCOLS,
    port=st.sampled_from([22, 53, 80, 443, 2222, 0, -1, 70000]),
    name=st.none() | NAMES | st.text(max_size=8),
    address=st.none() | PUBLIC | FLOOR | st.just("198.18.0.7") | st.text(max_size=8),
)
NAMED = st.builds(Flow, protocol=st.just("tls"), port=st.just(443), name=NAMES)


def matches(pattern: str, name: str) -> bool:
    """What a pattern means, said label by label."""
    star, _, _ = pattern.partition(".")
    labels, wanted = name.split("."), pattern.split(".")
    if star not in ("*", "**"):
        return labels == wanted
    base = wanted[1:]
    below = len(labels) - len(base)
    if below < 1 or labels[below:] != base:
        return False
    return star == "**" or below == 1


def matched(policy: Policy, action: str, name: str) -> bool:
    return any(rule.host and rule.action == action and matches(rule.host, name) for rule in policy.rules)


@given(policies(), FLOWS)
def test_every_flow_gets_a_verdict_with_a_reason(policy: Policy, flow: Flow) -> None:
    decision = decide(compile_policy(policy), flow, own=("203.0.113.200",))
    assert isinstance(decision, Decision)
    assert decision.verdict in ("allowed", "warn", "blocked")
    assert decision.reason
    assert decision.would_block == (decision.verdict == "warn")
    assert decision.passes == (decision.verdict != "blocked")


@given(PATTERNS, NAMES)
def test_a_rule_matches_a_name_label_by_label(pattern: str, name: str) -> None:
    policy = compile_policy(Policy(mode="enforce", rules=(Rule(id="it", host=pattern),)))
    decision = decide(policy, Flow("tls", 443, name=name))
    assert (decision.verdict == "allowed") == matches(pattern, name)
    assert decision.rule == ("it" if matches(pattern, name) else "")


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("example.com", "example.com", True),
        ("example.com", "evilexample.com", False),
        ("example.com", "example.com.evil.test", False),
        ("example.com", "www.example.com", False),
        ("*.example.com", "www.example.com", True),
        ("*.example.com", "a.b.example.com", False),
        ("*.example.com", "example.com", False),
        ("*.example.com", "wwwexample.com", False),
        ("**.example.com", "www.example.com", True),
        ("**.example.com", "a.b.c.example.com", True),
        ("**.example.com", "example.com", False),
        ("**.example.com", "evilexample.com", False),
        ("**.example.com", "example.com.evil.test", False),
    ],
)
def test_what_a_pattern_takes_in(pattern: str, name: str, expected: bool) -> None:
    policy = compile_policy(Policy(mode="enforce", rules=(Rule(id="it", host=pattern),)))
    assert (decide(policy, Flow("tls", 443, name=name)).verdict == "allowed") is expected


@given(policies(), NAMED)
def test_deny_beats_allow_and_allow_beats_silence(policy: Policy, flow: Flow) -> None:
    assert flow.name is not None
    decision = decide(compile_policy(policy), flow)
    if matched(policy, "deny", flow.name):
        assert (decision.verdict, decision.reason) == ("blocked", "denied")
    elif matched(policy, "allow", flow.name):
        assert (decision.verdict, decision.reason) == ("allowed", "rule")
    else:
        assert decision.reason == "not_allowed"
        assert decision.verdict == ("warn" if policy.mode == "warn" else "blocked")


@given(policies(), NAMED, st.randoms(use_true_random=False))
def test_the_order_of_the_rules_changes_no_verdict(policy: Policy, flow: Flow, rng: object) -> None:
    shuffled = list(policy.rules)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    other = msgspec.structs.replace(policy, rules=tuple(shuffled))
    first, second = (decide(compile_policy(p), flow) for p in (policy, other))
    assert (first.verdict, first.reason) == (second.verdict, second.reason)


@given(policies(), FLOWS)
def test_warn_changes_a_name_that_is_not_allowed_and_nothing_else(policy: Policy, flow: Flow) -> None:
    strict = decide(compile_policy(msgspec.structs.replace(policy, mode="enforce")), flow)
    loose = decide(compile_policy(msgspec.structs.replace(policy, mode="warn")), flow)
    if (
        strict.reason == "not_allowed"
        and flow.name is not None
        and flow.protocol in ("tls", "dns")
        and flow.port == 443
    ):
        assert (strict.verdict, loose.verdict, loose.would_block) == ("blocked", "warn", True)
        assert loose.flags == strict.flags
    else:
        assert strict == loose


@given(policies(), FLOOR, st.none() | NAMES, st.sampled_from(["tls", "tcp", "udp", "icmp"]))
def test_the_floor_stands_below_every_rule_and_mode(
    policy: Policy, address: str, name: str | None, protocol: str
) -> None:
    opened = (*policy.rules, Rule(id="all", cidr="0.0.0.0/0", ports=(443, 22)))
    flow = Flow(protocol, 443, name=name, address=address)  # type: ignore[arg-type]
    decision = decide(compile_policy(msgspec.structs.replace(policy, rules=opened)), flow)
    assert decision.verdict == "blocked"
    assert decision.reason.startswith("floor_")


@given(policies(), FLOWS, st.sampled_from(["enforce", "warn"]))
def test_no_echo_passes_for_a_runner(policy: Policy, flow: Flow, mode: str) -> None:
    runner = msgspec.structs.replace(policy, mode=mode, profile="runner")
    assert not decide(compile_policy(runner), msgspec.structs.replace(flow, protocol="icmp")).passes


@given(policies(), NAMES, st.sampled_from(["enforce", "warn"]))
def test_an_echo_of_a_sandbox_goes_where_a_host_rule_lets_anything_go(policy: Policy, name: str, mode: str) -> None:
    sandbox = msgspec.structs.replace(policy, mode=mode, profile="sandbox")
    decision = decide(compile_policy(sandbox), Flow("icmp", 0, name=name, address="198.18.0.7"))
    if matched(policy, "deny", name):
        assert (decision.verdict, decision.reason) == ("blocked", "denied")
    elif matched(policy, "allow", name):
        assert (decision.verdict, decision.reason) == ("allowed", "rule")
    else:
        assert (decision.verdict, decision.reason) == ("blocked", "not_allowed")


@given(policies(), PUBLIC, st.sampled_from(["enforce", "warn"]))
def test_an_echo_of_a_sandbox_goes_where_a_range_rule_lets_anything_go(policy: Policy, address: str, mode: str) -> None:
    def hit(action: str) -> bool:
        of_ranges = (rule for rule in policy.rules if rule.cidr and rule.action == action)
        return any(IPv4Address(address) in IPv4Network(rule.cidr) for rule in of_ranges)

    sandbox = msgspec.structs.replace(policy, mode=mode, profile="sandbox")
    decision = decide(compile_policy(sandbox), Flow("icmp", 0, address=address))
    if hit("deny"):
        assert (decision.verdict, decision.reason) == ("blocked", "denied")
    elif hit("allow"):
        assert (decision.verdict, decision.reason) == ("allowed", "rule")
    else:
        assert (decision.verdict, decision.reason) == ("blocked", "not_allowed")


@pytest.mark.parametrize("address", [None, "198.18.0.7"])
def test_an_echo_to_an_address_that_stands_for_no_known_name_is_blocked(address: str | None) -> None:
    everything = (Rule(id="all", cidr="0.0.0.0/0"), Rule(id="names", host="**.example"))
    policy = compile_policy(Policy(mode="warn", rules=everything, profile="sandbox"))
    assert decide(policy, Flow("icmp", 0, address=address)) == Decision("blocked", "unknown_name")


@given(policies(), FLOWS, host_rules() | range_rules())
def test_a_deny_never_opens_and_an_allow_never_closes(policy: Policy, flow: Flow, rule: Rule) -> None:
    before = decide(compile_policy(policy), flow)
    after = decide(compile_policy(msgspec.structs.replace(policy, rules=(*policy.rules, rule))), flow)
    order = {"blocked": 0, "warn": 1, "allowed": 2}
    if rule.action == "allow":
        assert order[after.verdict] >= order[before.verdict]
    elif rule.action == "deny":
        assert order[after.verdict] <= order[before.verdict]
    else:
        assert after.verdict == before.verdict


@given(policies(), PUBLIC, st.sampled_from([22, 443, 2222, 8443]))
def test_a_range_rule_is_about_its_addresses_and_its_ports(policy: Policy, address: str, port: int) -> None:
    def hit(action: str) -> bool:
        return any(
            rule.cidr
            and rule.action == action
            and IPv4Address(address) in IPv4Network(rule.cidr)
            and (port in rule.ports or not rule.ports)
            for rule in policy.rules
        )

    decision = decide(compile_policy(policy), Flow("tcp", port, address=address))
    expected = "blocked" if hit("deny") or not hit("allow") else "allowed"
    assert decision.verdict == expected


def test_a_nameless_hello_is_judged_by_the_address_it_dialled() -> None:
    policy = compile_policy(Policy(mode="warn", rules=(Rule(id="r", cidr="203.0.113.0/24", ports=(443,)),)))
    assert decide(policy, Flow("tls", 443, address="203.0.113.9")).verdict == "allowed"
    assert decide(policy, Flow("tls", 443, address="198.51.100.9")) == Decision("blocked", "missing_sni")


def test_a_range_opens_nothing_for_a_name_that_is_not_allowed() -> None:
    policy = compile_policy(Policy(mode="enforce", rules=(Rule(id="r", cidr="203.0.113.0/24", ports=(443,)),)))
    decision = decide(policy, Flow("tls", 443, name="evil.test", address="203.0.113.9"))
    assert (decision.verdict, decision.reason) == ("blocked", "not_allowed")


def test_where_a_name_was_dialled_does_not_matter_above_the_floor() -> None:
    policy = compile_policy(Policy(mode="enforce", rules=(Rule(id="r", host="a.example"),)))
    for address in ("198.51.100.66", "198.18.0.5", None):
        assert decide(policy, Flow("tls", 443, name="a.example", address=address)).verdict == "allowed"


@pytest.mark.parametrize("protocol", ["udp", "icmp", "other"])
def test_protocols_that_no_rule_can_allow(protocol: str) -> None:
    rules = (Rule(id="r", host="a.example"), Rule(id="s", cidr="203.0.113.0/24", ports=(443,)))
    policy = compile_policy(Policy(mode="warn", rules=rules))
    flow = Flow(protocol, 443, name="a.example", address="203.0.113.9")  # type: ignore[arg-type]
    assert decide(policy, flow) == Decision("blocked", f"protocol_{protocol}")


def test_flags_say_what_a_reader_of_the_record_should_know() -> None:
    rules = (
        Rule(id="shared", host="shared.example", multi_tenant=True),
        Rule(id="git", cidr="203.0.113.0/24", ports=(22,), multi_tenant=True),
        Rule(id="noise", action="expect", host="**.noise.example"),
    )
    enforce, warn = (compile_policy(Policy(mode=mode, rules=rules)) for mode in ("enforce", "warn"))
    assert decide(enforce, Flow("tls", 443, name="shared.example")).flags == ("multi_tenant",)
    assert decide(enforce, Flow("tcp", 22, address="203.0.113.9")).flags == ("multi_tenant",)
    assert decide(enforce, Flow("dns", 443, name="ocsp.noise.example")).flags == ("expected",)
    assert decide(warn, Flow("tls", 443, name="ocsp.noise.example")).flags == ("expected",)
    assert decide(enforce, Flow("tls", 443, name="other.example")).flags == ()


def test_the_most_specific_rule_is_the_one_on_record() -> None:
    rules = tuple(Rule(id=host, host=host) for host in ("**.example.com", "*.b.example.com", "a.b.example.com"))
    policy = compile_policy(Policy(mode="enforce", rules=rules))
    assert decide(policy, Flow("tls", 443, name="a.b.example.com")).rule == "a.b.example.com"
    assert decide(policy, Flow("tls", 443, name="c.b.example.com")).rule == "*.b.example.com"
    assert decide(policy, Flow("tls", 443, name="c.d.b.example.com")).rule == "**.example.com"


def test_of_ranges_the_longest_is_the_one_on_record() -> None:
    cidrs = ("203.0.0.0/16", "203.0.113.7/32", "203.0.113.0/24")
    policy = compile_policy(
        Policy(mode="enforce", rules=tuple(Rule(id=cidr, cidr=cidr, ports=(22,)) for cidr in cidrs))
    )
    for address, rule in (("203.0.113.7", cidrs[1]), ("203.0.113.8", cidrs[2]), ("203.0.1.1", cidrs[0])):
        assert decide(policy, Flow("tcp", 22, address=address)).rule == rule


def test_an_address_that_a_name_resolved_to_is_judged_too() -> None:
    rules = (Rule(id="d", action="deny", cidr="198.51.100.0/24", ports=()), Rule(id="a", host="a.example"))
    policy = compile_policy(Policy(mode="warn", rules=rules, private=(Private("10.1.0.0/16", "the company's mirror"),)))
    assert judge_address(policy, "203.0.113.9") is None
    assert judge_address(policy, "198.51.100.9") == "denied_range"
    assert judge_address(policy, "10.1.2.3") is None
    assert judge_address(policy, "10.2.2.3") == "floor_private"
    assert judge_address(policy, "169.254.169.254") == "floor_metadata"
    assert judge_address(policy, "203.0.113.9", own=("203.0.113.9",)) == "floor_own_address"
    assert judge_address(policy, "::ffff:203.0.113.9") == "floor_embedded"
    assert judge_address(policy, "2130706433") == "floor_malformed"


def test_a_deny_of_one_port_leaves_the_others() -> None:
    policy = compile_policy(
        Policy(mode="enforce", rules=(Rule(id="d", action="deny", cidr="203.0.113.0/24", ports=(22,)),))
    )
    assert judge_address(policy, "203.0.113.9", port=443) is None
    assert judge_address(policy, "203.0.113.9", port=22) == "denied_range"


@pytest.mark.parametrize(
    "rule",
    [
        Rule(id="none"),
        Rule(id="both", host="a.example", cidr="203.0.113.0/24"),
        Rule(id="ports", cidr="203.0.113.0/24", ports=()),
        Rule(id="ports", host="a.example", ports=()),
    ],
)
def test_a_rule_that_says_too_little_or_too_much_is_refused(rule: Rule) -> None:
    with pytest.raises(ValueError, match=f"rule {rule.id}"):
        compile_policy(Policy(mode="enforce", rules=(rule,)))


def test_the_kernel_is_told_every_range_and_port_that_is_allowed() -> None:
    rules = (
        Rule(id="a", cidr="203.0.113.0/24", ports=(22, 2222)),
        Rule(id="d", action="deny", cidr="198.51.100.0/24", ports=()),
        Rule(id="h", host="a.example"),
    )
    ranges = compile_policy(Policy(mode="enforce", rules=rules)).cidr_ports()
    assert list(ranges) == [("203.0.113.0/24", 22), ("203.0.113.0/24", 2222)]


@given(policies())
def test_a_policy_that_travelled_has_the_digest_it_left_with(policy: Policy) -> None:
    there = msgspec.json.decode(msgspec.json.encode(policy), type=Policy)
    assert there == policy
    assert there.digest == policy.digest
    assert policy.digest.startswith("sha256:")
    assert len(policy.digest) == 71


def test_every_part_of_a_policy_is_in_its_digest() -> None:
    base = Policy(mode="enforce", rules=(Rule(id="a", host="a.example"),))
    others = [
        msgspec.structs.replace(base, mode="warn"),
        msgspec.structs.replace(base, profile="sandbox"),
        msgspec.structs.replace(base, allow_ech=True),
        msgspec.structs.replace(base, private=(Private("10.0.0.0/8", "x"),)),
        msgspec.structs.replace(base, rules=()),
        msgspec.structs.replace(base, rules=(Rule(id="b", host="a.example"),)),
        msgspec.structs.replace(base, rules=(Rule(id="a", action="deny", host="a.example"),)),
        msgspec.structs.replace(base, rules=(Rule(id="a", host="a.example", multi_tenant=True),)),
    ]
    assert len({base.digest, *(other.digest for other in others)}) == len(others) + 1


def test_the_digest_of_a_policy_is_the_same_on_every_machine() -> None:
    policy = Policy(mode="enforce", rules=(Rule(id="org#1", host="api.example.com", origin="org.yml:2"),))
    written = b'{"mode":"enforce","rules":[{"id":"org#1","host":"api.example.com","origin":"org.yml:2"}]}'
    assert policy.digest == "sha256:" + hashlib.sha256(written).hexdigest()
