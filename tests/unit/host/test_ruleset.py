from __future__ import annotations

import copy
import ipaddress
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.link import Limits
from orchestrator.host import ruleset
from orchestrator.host.ruleset import Listeners, VmRules

PORTS = Listeners(tls=10443, tcp=10022, dns=10053, nflog_group=7, echo_group=8)
TAP = "ic0123456789abc"
VM = VmRules(TAP, "10.0.0.1", "10.0.0.0", Limits(connections=5, new_per_second=9, events_per_second=3))


def _listing(*vms: VmRules) -> dict:
    """What the kernel would print: every object with a handle, counters that have counted."""
    objects = ruleset.base_objects(PORTS) + [item for vm in vms for item in ruleset.vm_objects(vm, PORTS)]
    objects = copy.deepcopy(objects)
    for number, item in enumerate(objects):
        kind, body = next(iter(item.items()))
        body["handle"] = number
        if kind == "rule":
            for part in body["expr"]:
                if "counter" in part:
                    part["counter"] = {"packets": number, "bytes": number}
        if kind in ("map", "set"):
            elements = [e for vm in vms for name, e in ruleset.vm_elements(vm) if name == body["name"]]
            if elements:
                body["elem"] = elements[::-1]
    return {"nftables": [{"metainfo": {"version": "1.0.6"}}, *objects]}


def _chain(objects: list, name: str) -> dict[str, list]:
    rules = [item["rule"] for item in objects if "rule" in item and item["rule"]["chain"] == name]
    return {rule["comment"]: rule["expr"] for rule in rules}


def test_what_is_printed_is_what_was_meant():
    other = VmRules(
        "icaaaaaaaaaaaaa", "10.0.0.3", "10.0.0.2", Limits(), (("203.0.113.0/24", 22), ("198.51.100.1/32", 22))
    )
    assert ruleset.diff(ruleset.normalise(_listing(VM, other)), ruleset.expected([other, VM], PORTS)) == []


RECORDED = sorted((Path(__file__).parent / "listings").glob("nft-*.json"))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_what_real_kernels_and_nft_versions_answered_reads_back_as_meant(path):
    """Recorded from Debian 12's and Debian 13's nft after the commands of this module were applied."""
    ports = Listeners(10443, 10022, 10053, 5, 6)
    vm = VmRules(
        "ic0000000000000", "10.0.0.1", "10.0.0.0", Limits(), (("1.2.3.0/24", 22), ("1.2.4.4/32", 22)), echo=True
    )
    found = ruleset.normalise(json.loads(path.read_text()))
    assert ruleset.diff(found, ruleset.expected([vm], ports)) == []


def test_both_versions_are_recorded():
    assert [path.stem for path in RECORDED] == ["nft-1.0.6", "nft-1.1.3"]


def test_a_missing_vm_an_extra_vm_and_a_changed_rule_are_told_apart():
    meant = ruleset.expected([VM], PORTS)
    assert f"missing: chain inet ironcd vm_{TAP}" in ruleset.diff(ruleset.normalise(_listing()), meant)
    extra = VmRules("icaaaaaaaaaaaaa", "10.0.0.3", "10.0.0.2", Limits())
    assert "not ours: chain inet ironcd vm_icaaaaaaaaaaaaa" in ruleset.diff(
        ruleset.normalise(_listing(VM, extra)), meant
    )
    listing = _listing(VM)
    rule = next(i["rule"] for i in listing["nftables"] if i.get("rule", {}).get("comment") == "address")
    rule["expr"][0]["match"]["right"] = "10.0.0.9"
    (line,) = ruleset.diff(ruleset.normalise(listing), meant)
    assert line == f"changed: chain netdev ironcd_l2 l2_{TAP} (rule 'address')"


@pytest.mark.parametrize("field", ["policy", "prio", "hook", "dev"])
def test_a_changed_chain_shows(field):
    listing = _listing(VM)
    chain = next(i["chain"] for i in listing["nftables"] if i.get("chain", {}).get("name") == f"l2_{TAP}")
    chain[field] = "other"
    assert ruleset.diff(ruleset.normalise(listing), ruleset.expected([VM], PORTS))


def test_other_peoples_tables_dont_count():
    listing = _listing(VM)
    listing["nftables"] += [
        {"table": {"family": "inet", "name": "docker", "handle": 9}},
        {"chain": {"family": "ip", "table": "ironcd", "name": "x", "handle": 9}},
    ]
    assert ruleset.diff(ruleset.normalise(listing), ruleset.expected([VM], PORTS)) == []


def test_every_base_chain_but_nat_drops():
    chains = [item["chain"] for item in ruleset.base_objects(PORTS) if "chain" in item]
    assert {chain["name"]: chain["policy"] for chain in chains} == {
        "pre": "accept", "gate": "drop", "input": "drop", "forward": "drop", "output": "drop",
    }  # fmt: skip


def test_the_dispatch_comes_after_nat_and_before_routing():
    chains = {item["chain"]["name"]: item["chain"] for item in ruleset.base_objects(PORTS) if "chain" in item}
    assert chains["gate"]["hook"] == chains["pre"]["hook"] == "prerouting"
    assert chains["pre"]["prio"] < chains["gate"]["prio"] < 0


def test_every_vm_rule_that_accepts_wants_a_redirected_or_known_flow():
    for comment, expr in _chain(ruleset.vm_objects(VM, PORTS), VM.chain).items():
        if {"accept": None} in expr:
            keys = [part["match"]["left"].get("ct", {}).get("key") for part in expr if "match" in part]
            assert "status" in keys or "state" in keys, comment


def test_a_vms_chain_ends_in_a_refusal_of_everything():
    rules = list(_chain(ruleset.vm_objects(VM, PORTS), VM.chain).values())
    assert rules[-1] == [{"reject": {"type": "icmpx", "expr": "admin-prohibited"}}]


def test_each_kind_has_its_prefix_and_group():
    logs = [
        part["log"]
        for expr in _chain(ruleset.vm_objects(VM, PORTS), VM.chain).values()
        for part in expr
        if "log" in part
    ]
    assert [log["prefix"] for log in logs] == [
        f"{TAP} {why} " for why in ("echo", "limit", "http", "ssh", "quic", "other")
    ]
    assert {log["group"] for log in logs[1:]} == {7}
    assert logs[0]["group"] == 8


def test_limits_are_the_vms():
    rules = _chain(ruleset.vm_objects(VM, PORTS), VM.chain)
    assert {"ct count": {"val": 5}} in rules["tcp-in"]
    assert {"limit": {"rate": 9, "burst": 9, "per": "second"}} in rules["tcp-in"]
    assert {"limit": {"rate": 3, "burst": 3, "per": "second"}} in rules["other"]


def test_the_first_layer_passes_tcp_and_udp_only():
    rules = _chain(ruleset.vm_objects(VM, PORTS), VM.l2_chain)
    passes = [comment for comment, expr in rules.items() if {"accept": None} in expr]
    assert passes == ["arp", "pass"]
    assert rules["pass"][0]["match"]["right"] == {"set": ["tcp", "udp"]}


def test_the_first_layer_passes_a_sandboxs_echo_requests_and_nothing_else_of_icmp():
    sandbox = msgspec.structs.replace(VM, echo=True)
    rules = _chain(ruleset.vm_objects(sandbox, PORTS), VM.l2_chain)
    assert [comment for comment, expr in rules.items() if {"accept": None} in expr] == ["arp", "pass", "echo"]
    assert [part["match"]["right"] for part in rules["echo"] if "match" in part] == ["echo-request"]


def test_an_echo_ends_in_the_vms_chain_within_its_rate():
    rules = _chain(ruleset.vm_objects(VM, PORTS), VM.chain)
    assert {"limit": {"rate": 5, "burst": 10, "per": "second"}} in rules["echo"]
    assert rules["echo"][-1] == {"drop": None}


ranges = st.lists(
    st.tuples(
        st.builds(
            lambda address, length: (
                f"{(address >> (32 - length) << (32 - length)) >> 24}."
                f"{(address >> (32 - length) << (32 - length)) >> 16 & 255}."
                f"{(address >> (32 - length) << (32 - length)) >> 8 & 255}."
                f"{(address >> (32 - length) << (32 - length)) & 255}/{length}"
            ),
            st.integers(0, 2**32 - 1),
            st.integers(8, 32),
        ),
        st.sampled_from([22, 443, 53, 5432]),
    ),
    max_size=12,
)


@given(ranges)
def test_merged_ranges_never_overlap_and_cover_the_same(given_ranges):
    merged = ruleset.merged(given_ranges)
    nets = [(ipaddress.IPv4Network(cidr), port) for cidr, port in merged]
    assert not [1 for i, (a, p) in enumerate(nets) for b, q in nets[i + 1 :] if p == q and a.overlaps(b)]
    for cidr, port in given_ranges:
        net = ipaddress.IPv4Network(cidr)
        covered = any(net.subnet_of(other) for other, at in nets if at == port)
        assert covered == (port not in (53, 443))


def test_elements_of_nothing_are_no_command():
    assert ruleset.elements("add", "ranges", []) == []
