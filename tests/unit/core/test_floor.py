"""The floor's ranges at their edges, and the IPv6 addresses that carry an IPv4 one."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.floor import NAMES_RANGE, floor_parts, floor_reason, floor_verdict, is_liftable

ON_THE_FLOOR = [
    ("169.254.169.254", "metadata"),
    ("169.254.170.2", "metadata"),
    ("100.100.100.200", "metadata"),
    ("192.0.0.192", "metadata"),
    ("168.63.129.16", "metadata"),
    ("fd00:ec2::254", "metadata"),
    ("127.0.0.1", "loopback"),
    ("127.255.255.255", "loopback"),
    ("::1", "loopback"),
    ("::", "loopback"),
    ("169.254.0.0", "link_local"),
    ("169.254.255.255", "link_local"),
    ("fe80::1", "link_local"),
    ("10.0.0.0", "private"),
    ("10.255.255.255", "private"),
    ("172.16.0.0", "private"),
    ("172.31.255.255", "private"),
    ("192.168.0.0", "private"),
    ("192.168.255.255", "private"),
    ("100.64.0.0", "private"),
    ("100.127.255.255", "private"),
    ("fc00::1", "private"),
    ("fdff::1", "private"),
    ("fec0::1", "private"),
    ("0.0.0.0", "this_network"),
    ("0.255.255.255", "this_network"),
    ("192.0.0.1", "protocol"),
    ("192.88.99.1", "relay"),
    ("198.18.0.0", "benchmark"),
    ("198.19.255.255", "benchmark"),
    ("224.0.0.0", "multicast"),
    ("239.255.255.255", "multicast"),
    ("ff02::1", "multicast"),
    ("240.0.0.0", "reserved"),
    ("255.255.255.255", "reserved"),
    ("100::1", "discard"),
    ("5f00::1", "protocol"),
]

ABOVE_IT = [
    "1.0.0.0",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "169.253.255.255",
    "169.255.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.0",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "203.0.113.10",
    "2606:4700::1111",
    "2001:db8::1",
]

CARRIERS = {
    "mapped": lambda ip: IPv6Address((0xFFFF << 32) | ip),
    "compatible": IPv6Address,
    "nat64": lambda ip: IPv6Address((0x64FF9B << 96) | ip),
    "local_nat64": lambda ip: IPv6Address((0x64FF9B0001 << 80) | ip),
    "sixtofour": lambda ip: IPv6Address((0x2002 << 112) | (ip << 80)),
    "teredo": lambda ip: IPv6Address((0x20010000 << 96) | (ip ^ 0xFFFFFFFF)),
    "isatap": lambda ip: IPv6Address((0x20010DB8 << 96) | (0x5EFE << 32) | ip),
    "isatap_global": lambda ip: IPv6Address((0x20010DB8 << 96) | (0x02005EFE << 32) | ip),
}
V4 = st.integers(min_value=256, max_value=2**32 - 1)


@pytest.mark.parametrize(("address", "reason"), ON_THE_FLOOR)
def test_an_address_on_the_floor(address: str, reason: str) -> None:
    assert floor_reason(address) == reason
    assert floor_verdict(address) == reason


@pytest.mark.parametrize("address", ABOVE_IT)
def test_an_address_above_the_floor(address: str) -> None:
    assert floor_reason(address) is None


@pytest.mark.parametrize("carrier", CARRIERS)
@given(number=V4)
def test_a_carried_address_is_judged_by_what_it_carries(carrier: str, number: int) -> None:
    inner = floor_reason(str(IPv4Address(number)))
    assert floor_reason(str(CARRIERS[carrier](number))) == (inner or "embedded")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2130706433",
        "0x7f.1",
        "127.1",
        "010.0.0.1",
        "1.2.3",
        "1.2.3.4.5",
        "localhost",
        "1.2.3.4\n",
        " 1.2.3.4",
        "[::1]",
    ],
)
def test_what_is_no_address_counts_as_the_floor(text: str) -> None:
    assert floor_reason(text) == "malformed"


def test_a_zone_makes_an_address_link_local() -> None:
    assert floor_reason("2606:4700::1111%eth0") == "link_local"


@given(st.text(max_size=20))
def test_any_text_gets_an_answer(text: str) -> None:
    assert floor_verdict(text, own=(text + "x",), private=("10.0.0.0/8",)) is None or floor_reason(text) is not None


EVERYTHING = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "0.0.0.0/0")


@given(V4)
def test_only_private_ranges_are_ever_lifted(number: int) -> None:
    address = str(IPv4Address(number))
    before, after = floor_reason(address), floor_verdict(address, private=EVERYTHING)
    assert after == (None if before == "private" else before)


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "100.100.100.200", "127.0.0.1", "169.254.1.1", "::ffff:10.0.0.1"]
)
def test_what_a_private_entry_never_lifts(address: str) -> None:
    assert floor_verdict(address, private=EVERYTHING) is not None


def test_a_lifted_range_ends_where_it_ends() -> None:
    lifted = ("10.1.0.0/16",)
    assert floor_verdict("10.1.255.255", private=lifted) is None
    assert floor_verdict("10.2.0.0", private=lifted) == "private"


def test_the_hosts_own_addresses_are_on_the_floor_whatever_is_lifted() -> None:
    assert floor_verdict("10.1.2.3", own=("10.1.2.3",), private=EVERYTHING) == "own_address"
    assert floor_verdict("203.0.113.1", own=("203.0.113.1",)) == "own_address"
    assert floor_verdict("::ffff:203.0.113.1", own=("203.0.113.1",)) == "embedded"
    assert floor_verdict("2606:4700:0:0::1111", own=("2606:4700::1111",)) == "own_address"


def test_the_range_of_names_is_never_dialled() -> None:
    assert floor_reason(str(NAMES_RANGE[0])) == "benchmark"
    assert floor_reason(str(NAMES_RANGE[-1])) == "benchmark"


def test_the_parts_that_a_range_touches() -> None:
    touched = {why for _, why in floor_parts(IPv4Network("192.168.0.0/15"))}
    assert touched == {"private"}
    assert floor_parts(IPv4Network("203.0.113.0/24")) == ()
    assert {why for _, why in floor_parts(IPv4Network("169.0.0.0/8"))} == {"metadata", "link_local"}


@pytest.mark.parametrize(
    ("cidr", "expected"),
    [
        ("10.0.0.0/8", True),
        ("10.1.2.3/32", True),
        ("100.64.0.0/10", True),
        ("192.168.0.0/15", False),
        ("100.100.100.200/32", False),
        ("169.254.169.254/32", False),
        ("127.0.0.0/8", False),
        ("203.0.113.0/24", False),
    ],
)
def test_which_ranges_can_be_lifted_as_a_whole(cidr: str, expected: bool) -> None:
    assert is_liftable(IPv4Network(cidr)) is expected
