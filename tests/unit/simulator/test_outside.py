"""The world's answers and records, without the world: DNS, packets, workflow files and configuration."""

from __future__ import annotations

import socket
import struct

import dns.message
import dns.rcode
import pytest

from orchestrator.core.errors import ConfigurationError, UserError
from orchestrator.simulator.config import load_config
from orchestrator.simulator.github.spec import workflow_of
from orchestrator.simulator.outside.names import Names, question_of
from orchestrator.simulator.outside.records import KEPT_BYTES, Received, Recorder
from orchestrator.simulator.outside.sniffer import received_of
from orchestrator.simulator.world import World

NAMES = Names({"a.example": ["203.0.113.1"], "*.x.example": ["203.0.113.2"], "*.b.x.example": ["203.0.113.3"]})


@pytest.mark.parametrize(
    ("name", "addresses"),
    [
        ("a.example", ["203.0.113.1"]),
        ("A.Example.", ["203.0.113.1"]),
        ("c.x.example", ["203.0.113.2"]),
        ("deep.c.x.example", ["203.0.113.2"]),
        ("c.b.x.example", ["203.0.113.3"]),
        ("x.example", None),
        ("b.a.example", None),
    ],
)
def test_names(name, addresses):
    assert NAMES.find(name) == addresses


def ask(name: str, kind: str = "A") -> dns.message.Message:
    reply = NAMES.answer(dns.message.make_query(name, kind).to_wire())
    return dns.message.from_wire(reply)


def test_answers():
    assert [str(item[0]) for item in ask("a.example").answer] == ["203.0.113.1"]
    assert ask("a.example", "AAAA").answer == []
    assert ask("a.example", "AAAA").rcode() == dns.rcode.NOERROR
    assert ask("nothing.example").rcode() == dns.rcode.NXDOMAIN
    assert NAMES.answer(b"rubbish") is None
    assert NAMES.answer(ask("a.example").to_wire()) is None


def packet(protocol: int, body: bytes) -> bytes:
    head = struct.pack(
        "!BBHHHBBH4s4s",
        0x45,
        0,
        20 + len(body),
        0,
        0,
        64,
        protocol,
        0,
        *map(socket.inet_aton, ("192.0.2.1", "198.51.100.66")),
    )
    return head + body


def test_a_datagram_is_recorded_with_where_it_was_going():
    item = received_of(
        0x0800, packet(17, struct.pack("!HHHH", 4000, 443, 13, 0) + b"quic!" + b"padding of the frame")[:33]
    )
    assert (item.proto, item.source, item.address, item.port, item.raw) == (
        "udp",
        "192.0.2.1",
        "198.51.100.66",
        443,
        b"quic!",
    )


def test_a_query_is_recorded_by_its_name():
    query = dns.message.make_query("secret.evil.example", "TXT").to_wire()
    item = received_of(0x0800, packet(17, struct.pack("!HHHH", 4000, 53, 8 + len(query), 0) + query))
    assert (item.proto, item.name, item.kind) == ("dns", "secret.evil.example", "TXT")
    assert question_of(b"rubbish") == ("", "")


def test_other_protocols_are_recorded_and_the_wires_own_packets_are_not():
    assert received_of(0x0800, packet(1, b"ping")).proto == "icmp"
    assert received_of(0x0800, packet(47, b"gre")).proto == "ip-47"
    assert received_of(0x0806, b"arp" * 10) is None
    head = struct.pack("!IHBB", 6 << 28, 0, 58, 255)
    both = socket.inet_pton(socket.AF_INET6, "fe80::1"), socket.inet_pton(socket.AF_INET6, "ff02::1")
    assert received_of(0x86DD, head + b"".join(both)) is None
    assert received_of(0x86DD, head + socket.inet_pton(socket.AF_INET6, "2001:db8::1") + both[1]).proto == "ip-58"


def test_records_keep_the_first_bytes_and_count_all():
    item = Received("tcp", "192.0.2.1", 1, "198.51.100.66", 443)
    for _ in range(3):
        item.take(bytes(KEPT_BYTES - 1))
    assert (len(item.raw), item.bytes_in) == (KEPT_BYTES, 3 * (KEPT_BYTES - 1))


def test_records_are_found_by_all_that_is_asked_for():
    recorder = Recorder()
    items = [
        recorder.add(Received(proto, "s", 1, address, port))
        for proto, address, port in (("tcp", "a", 1), ("udp", "a", 2), ("tcp", "b", 1))
    ]
    assert recorder.find() == items
    assert recorder.find(address="a", proto="tcp") == items[:1]
    assert recorder.find(port=1) == [items[0], items[2]]


def test_a_workflow_file_as_people_write_it():
    text = """
name: Build
on: push
jobs:
  build:
    runs-on: ironcd
    steps:
      - name: Say
        run: echo hello
        continue-on-error: true
"""
    workflow = workflow_of(text)
    assert (workflow.name, workflow.jobs["build"].labels) == ("Build", ["ironcd"])
    assert workflow.jobs["build"].steps[0].continue_on_error


@pytest.mark.parametrize("text", ["jobs: [", "jobs: {a: {runs-on: x, steps: [{uses: y}]}}", "just text"])
def test_what_the_simulator_cant_run_is_refused(text):
    with pytest.raises(UserError) as caught:
        workflow_of(text)
    assert caught.value.code == "workflow-invalid"


@pytest.mark.parametrize("prefix", ["eth", "icdt-", "icdt-a/../b", "icd-demo-" + "x" * 17, "ironcd"])
def test_namespaces_that_arent_the_simulators_are_refused(prefix):
    with pytest.raises(ConfigurationError):
        World(prefix)


def test_configuration(tmp_path):
    path = tmp_path / "c.json"
    path.write_text('{"org": "acme", "world": {"prefix": "icdt-x"}}')
    assert load_config(path).world.prefix == "icdt-x"
    for wrong in ('{"orgg": 1}', "nonsense"):
        path.write_text(wrong)
        with pytest.raises(ConfigurationError):
            load_config(path)
    with pytest.raises(ConfigurationError):
        load_config(tmp_path / "none.json")
