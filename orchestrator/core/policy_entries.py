"""The parts that a policy file and a preset file write alike: hosts, ranges, ports and tests."""

from __future__ import annotations

from ipaddress import AddressValueError, IPv4Address, IPv4Network
from typing import Any

import yaml

from orchestrator.core.hazards import RangeProblem, read_range
from orchestrator.core.host_pattern import HostProblem, read_host, read_name
from orchestrator.core.policy import HTTPS
from orchestrator.core.presets import PolicyTest
from orchestrator.core.yaml_text import Reader, kind_of, place_of

PORTS_LIMIT = 16

TEST_KEYS = ("expect", "host", "address", "port")
TEST_WORDS = {"cidr": "address", "ip": "address", "domain": "host", "verdict": "expect"}
VERDICT_WORDS = {"allowed": "allow", "pass": "allow", "deny": "block", "blocked": "block", "denied": "block"}

NEVER_OPEN = {
    53: "DNS never leaves: allowed names are answered by IronCD's own resolver",
    80: "plain HTTP is never allowed",
    853: "DNS over TLS never leaves: allowed names are answered by IronCD's own resolver",
}


def host_of(reader: Reader, node: yaml.Node) -> str | None:
    """The canonical pattern that ``node`` holds; None where it holds none, which is then in the reader's errors."""
    text = reader.text(node, "host")
    if text is None:
        return None
    try:
        return read_host(text)
    except HostProblem as problem:
        reader.add(node, problem.message, problem.remedy)
        return None


def range_of(reader: Reader, node: yaml.Node, what: str = "cidr") -> str | None:
    """The canonical IPv4 range that ``node`` holds, or None."""
    text = reader.text(node, what)
    if text is None:
        return None
    try:
        return read_range(text)
    except RangeProblem as problem:
        reader.add(node, problem.message, problem.remedy)
        return None


def network(cidr: str) -> IPv4Network:
    """A range that `range_of` gave."""
    return IPv4Network(cidr)


def ports_of(reader: Reader, node: yaml.Node | None, *, default: tuple[int, ...] = HTTPS) -> tuple[int, ...]:
    """The ports in a list; ``default`` where there is no list, and for one that can't be read."""
    if node is None:
        return default
    if isinstance(node, yaml.ScalarNode) and kind_of(node) == "a number":
        reader.add(node, "ports must be a list", f"write ports: [{node.value}]")
        return default
    items = reader.sequence(node, "ports")
    if isinstance(node, yaml.SequenceNode) and not items:
        reader.add(node, "ports is an empty list", "write the ports, like ports: [22]")
    if len(items) > PORTS_LIMIT:
        reader.add(node, f"{len(items)} ports, and the limit is {PORTS_LIMIT}", "write a rule for each service")
        return default
    ports = [port for item in items if (port := reader.integer(item, "a port", 1, 65535)) is not None]
    return tuple(sorted(set(ports))) or default


def refuse_ports_that_stay_shut(reader: Reader, node: yaml.Node | None, ports: tuple[int, ...]) -> None:
    for port in ports:
        if node is not None and port in NEVER_OPEN:
            reader.add(node, f"port {port} can't be opened: {NEVER_OPEN[port]}", f"take {port} out")


def tests_of(reader: Reader, node: yaml.Node | None) -> tuple[PolicyTest, ...]:
    if node is None:
        return ()
    return tuple(test for item in reader.sequence(node, "tests") if (test := _test_of(reader, item)) is not None)


def _test_of(reader: Reader, node: yaml.Node) -> PolicyTest | None:
    fields = reader.mapping(node, TEST_KEYS, "a test", TEST_WORDS)
    if not fields:
        return None
    line, column = place_of(node)
    expect: Any = None
    if "expect" in fields:
        expect = reader.choice(fields["expect"], "expect", ("allow", "block"), VERDICT_WORDS)
    else:
        reader.add(node, "a test says what it expects", "write expect: allow or expect: block")
    port = reader.integer(fields["port"], "port", 1, 65535) if "port" in fields else 443
    if ("host" in fields) == ("address" in fields):
        reader.add(node, "a test is about one host or one address", "write host: NAME or address: ADDRESS")
        return None
    host = _name_of(reader, fields["host"]) if "host" in fields else ""
    address = _address_of(reader, fields["address"]) if "address" in fields else ""
    if expect is None or port is None or host is None or address is None:
        return None
    return PolicyTest(expect=expect, host=host, address=address, port=port, line=line, column=column)


def _name_of(reader: Reader, node: yaml.Node) -> str | None:
    text = reader.text(node, "host")
    if text is None:
        return None
    try:
        return read_name(text)
    except HostProblem as problem:
        reader.add(node, problem.message, problem.remedy)
        return None


def _address_of(reader: Reader, node: yaml.Node) -> str | None:
    text = reader.text(node, "address")
    if text is None:
        return None
    try:
        return str(IPv4Address(text))
    except AddressValueError:
        reader.add(node, f"{text[:80]!a} isn't an IPv4 address", "write one address, like 192.0.2.7")
        return None
