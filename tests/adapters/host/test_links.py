"""Taps in real namespaces: made in ours, moved with the descriptor that is open on them, settled, deleted."""

from __future__ import annotations

import os
import socket

import pytest

from orchestrator.core.errors import HostError
from orchestrator.host.links import Links
from orchestrator.host.slots import slot_at
from orchestrator.system import netns
from orchestrator.system.process import run
from tests.adapters.host.conftest import RANGE, new_tap, open_tap

pytestmark = pytest.mark.real


@pytest.fixture
def tap(links):
    name = new_tap()
    yield name
    links.delete(name)


def _sysctl(thread, key: str) -> str:
    def read() -> str:
        with open(f"/proc/sys/net/{key}") as file:
            return file.read().strip()

    return thread.call(read)


def test_the_namespace_has_no_forwarding_and_no_ipv6(namespace):
    assert _sysctl(namespace, "ipv4/ip_forward") == "0"
    assert _sysctl(namespace, "ipv6/conf/all/disable_ipv6") == "1"
    assert _sysctl(namespace, "netfilter/nf_conntrack_tcp_loose") == "0"
    assert run(["ip", "-n", namespace.name, "route", "show"]) == ""


def test_a_tap_is_down_until_it_is_raised(links, tap, namespace):
    links.make(tap)
    assert tap in links.present()
    assert tap not in links.in_namespace()
    links.move(tap)
    assert tap in links.in_namespace()
    assert "state UP" not in run(["ip", "-n", namespace.name, "link", "show", tap])
    links.up(tap, slot_at(RANGE, 3))
    shown = run(["ip", "-n", namespace.name, "addr", "show", tap])
    assert "10.201.0.6/31" in shown
    assert "inet6" not in shown
    neighbour = run(["ip", "-n", namespace.name, "neigh", "show", "dev", tap])
    assert neighbour.split()[:3] == ["10.201.0.7", "lladdr", "02:00:00:00:00:01"]
    assert "PERMANENT" in neighbour
    assert _sysctl(namespace, f"ipv4/conf/{tap}/rp_filter") == "1"
    assert _sysctl(namespace, f"ipv4/conf/{tap}/arp_ignore") == "1"


def test_raising_twice_is_raising_once(links, tap):
    links.make(tap)
    links.move(tap)
    links.up(tap, slot_at(RANGE, 0))
    links.up(tap, slot_at(RANGE, 0))


def test_the_open_descriptor_moves_with_the_tap(links, tap, namespace):
    links.make(tap)
    descriptor = open_tap(tap)
    try:
        links.move(tap)
        links.up(tap, slot_at(RANGE, 0))
        with netns.inside(namespace.name):
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sender:
            sender.sendto(b"to the guest", ("10.201.0.1", 9))
        os.set_blocking(descriptor, True)
        assert b"to the guest" in os.read(descriptor, 4096)
    finally:
        os.close(descriptor)


def test_the_permanent_neighbour_outlives_a_cut(links, tap, namespace):
    links.make(tap)
    links.move(tap)
    links.up(tap, slot_at(RANGE, 0))
    assert links.down_all() == {tap}
    assert links.down_all() == frozenset()
    links.raise_([tap, new_tap()])
    shown = run(["ip", "-n", namespace.name, "neigh", "show", "dev", tap])
    assert "02:00:00:00:00:01 PERMANENT" in shown
    assert "10.201.0.0/31" in run(["ip", "-n", namespace.name, "addr", "show", tap])


def test_deleting_finds_a_tap_in_either_namespace(links):
    one, two = new_tap(), new_tap()
    links.make(one)
    links.make(two)
    links.move(two)
    links.delete(one)
    links.delete(two)
    links.delete(two)
    assert not {one, two} & links.present()


def test_making_a_tap_for_a_vm_whose_link_moved_is_told_apart(links, tap):
    with pytest.raises(HostError, match="can't move the link"):
        links.move(tap)


def test_interfaces_that_arent_ours_arent_seen(links, namespace):
    run(["ip", "-n", namespace.name, "link", "add", "icother", "type", "veth", "peer", "name", "vethx"])
    assert links.in_namespace() == frozenset()
    assert links.down_all() == frozenset()


def test_flows_of_one_guest_are_forgotten(wire, links: Links, gateway, namespace):
    one, two = wire(0), wire(1)
    for vm in (one, two):
        assert vm.guest.tcp("198.51.100.66", 443) == "open"
    assert links.forget_flows(one.slot.guest_ip) >= 1
    assert links.forget_flows(one.slot.guest_ip) == 0
    assert links.forget_flows(two.slot.guest_ip) >= 1
