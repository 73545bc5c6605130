"""VMs' links: the network namespace without a way out, and one tap per VM in it.

A tap is made in the host's own namespace, since libvirtd opens it there, and moved into the VMs' namespace while the VM
is paused; the open descriptor moves with it.  It is down until the VM's rules have been read back.

Per link (see the reference in `docs/adr/0002`): our address with a /31, a permanent neighbour entry for the VM, so that
no ARP from it is believed, and no IPv6.  Everything that touches the namespace runs on the `NamespaceThread`: sysctls
and netlink sockets belong to the namespace of the thread that opens them.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any, Protocol

from pyroute2 import IPRoute
from pyroute2.conntrack import Conntrack, NFCTAttrTuple
from pyroute2.netlink.exceptions import NetlinkError

from orchestrator.core.errors import HostError
from orchestrator.core.names import is_tap
from orchestrator.host.nft import NamespaceThread
from orchestrator.host.ruleset import GUEST_MAC
from orchestrator.host.slots import Slot
from orchestrator.system import netns

TAP_MAC = "02:00:00:00:00:02"
"""Of our end, the same on each link: what a clone remembers of its template's link stays true."""

_TUNSETIFF, _TUNSETPERSIST = 0x400454CA, 0x400454CB
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_NUD_PERMANENT = 0x80
_IFF_UP = 0x1

_NAMESPACE_SYSCTLS = {
    "ipv4/ip_forward": "0",
    "ipv4/conf/all/forwarding": "0",
    "ipv6/conf/all/disable_ipv6": "1",
    "ipv6/conf/default/disable_ipv6": "1",
    "ipv6/conf/all/forwarding": "0",
    "ipv4/conf/all/accept_source_route": "0",
    "ipv4/conf/all/accept_redirects": "0",
    "ipv4/conf/all/send_redirects": "0",
    "ipv4/conf/default/send_redirects": "0",
    "ipv4/conf/all/rp_filter": "1",
    "ipv4/conf/default/rp_filter": "1",
    "ipv4/icmp_echo_ignore_broadcasts": "1",
    "netfilter/nf_conntrack_tcp_loose": "0",
    "netfilter/nf_conntrack_udp_timeout": "10",
    "netfilter/nf_conntrack_udp_timeout_stream": "20",
}
_LINK_SYSCTLS = {
    "ipv6/conf/{tap}/disable_ipv6": "1",
    "ipv6/conf/{tap}/accept_ra": "0",
    "ipv4/conf/{tap}/rp_filter": "1",
    "ipv4/conf/{tap}/arp_ignore": "1",
    "ipv4/conf/{tap}/arp_announce": "2",
    "ipv4/conf/{tap}/proxy_arp": "0",
    "ipv4/conf/{tap}/route_localnet": "0",
    "ipv4/conf/{tap}/forwarding": "0",
    "ipv4/conf/{tap}/send_redirects": "0",
    "ipv4/conf/{tap}/accept_source_route": "0",
}


class Wires(Protocol):
    """What the agent needs of VMs' links; `Links` is the real one."""

    def make(self, tap: str) -> None:
        """Make ``tap``, down, where libvirtd opens it."""

    def move(self, tap: str) -> None:
        """Move ``tap`` into the VMs' namespace and set it up, still down, without an address."""

    def up(self, tap: str, slot: Slot) -> None: ...

    def down_all(self) -> frozenset[str]:
        """Take every link in the VMs' namespace down; which of them were up."""

    def raise_(self, taps: list[str]) -> None:
        """Put links that `down_all` took down up again; those that are gone are passed over."""

    def delete(self, tap: str) -> None:
        """Delete ``tap`` wherever it is; nothing happens where there is none."""

    def forget_flows(self, guest_ip: str) -> int:
        """Delete the kernel's connection entries of ``guest_ip``; how many there were."""

    def present(self) -> frozenset[str]:
        """Every tap with a name of ours, in either namespace."""

    def in_namespace(self) -> frozenset[str]:
        """Those in the VMs' namespace."""


def make_namespace(name: str) -> NamespaceThread:
    """Make the VMs' namespace where it isn't there, with no forwarding and no IPv6, and give its thread."""
    netns.create(name)
    thread = NamespaceThread(name)
    thread.call(_write_sysctls, _NAMESPACE_SYSCTLS)
    return thread


class Links:
    def __init__(self, thread: NamespaceThread) -> None:
        self._thread = thread

    def make(self, tap: str) -> None:
        request = struct.pack("16sH22x", tap.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
        try:
            descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise _failed("make", tap, error) from error
        try:
            fcntl.ioctl(descriptor, _TUNSETIFF, request)
            fcntl.ioctl(descriptor, _TUNSETPERSIST, 1)
        except OSError as error:
            raise _failed("make", tap, error) from error
        finally:
            os.close(descriptor)

    def move(self, tap: str) -> None:
        namespace = os.open(f"/run/netns/{self._thread.name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with _rtnl("move", tap) as ip:
                ip.link("set", index=_index(ip, tap), net_ns_fd=namespace)
        finally:
            os.close(namespace)
        self._thread.call(_settle, tap)

    def up(self, tap: str, slot: Slot) -> None:
        self._thread.call(_up, tap, slot)

    def down_all(self) -> frozenset[str]:
        return self._thread.call(_down_all)

    def raise_(self, taps: list[str]) -> None:
        self._thread.call(_raise, taps)

    def delete(self, tap: str) -> None:
        _delete(tap)
        self._thread.call(_delete, tap)

    def forget_flows(self, guest_ip: str) -> int:
        return self._thread.call(_forget_flows, guest_ip)

    def present(self) -> frozenset[str]:
        return _taps() | self.in_namespace()

    def in_namespace(self) -> frozenset[str]:
        return self._thread.call(_taps)


def _write_sysctls(values: dict[str, str]) -> None:
    for key, value in values.items():
        path = f"/proc/sys/net/{key}"
        if key.startswith("ipv6/") and not os.path.exists(path):
            continue  # a kernel without IPv6 has nothing to turn off
        try:
            with open(path, "w") as file:
                file.write(value)
        except OSError as error:
            raise HostError(
                f"can't set {key.replace('/', '.')} to {value}: {error}",
                code="sysctl-refused",
                remedy="The agent must run as root on the host itself, with nf_conntrack in the kernel.",
            ) from error


@contextlib.contextmanager
def _rtnl(verb: str, tap: str) -> Iterator[Any]:
    with IPRoute() as ip:
        try:
            yield ip
        except (NetlinkError, OSError) as error:
            raise _failed(verb, tap, error) from error


def _index(ip: Any, tap: str) -> int:
    found = ip.link_lookup(ifname=tap)
    if not found:
        raise OSError(f"no interface {tap}")
    return int(found[0])


def _settle(tap: str) -> None:
    with _rtnl("set up", tap) as ip:
        ip.link("set", index=_index(ip, tap), address=TAP_MAC)
    _write_sysctls({key.format(tap=tap): value for key, value in _LINK_SYSCTLS.items()})


def _up(tap: str, slot: Slot) -> None:
    with _rtnl("bring up", tap) as ip:
        index = _index(ip, tap)
        ip.addr("replace", index=index, address=slot.gateway_ip, prefixlen=31)
        ip.link("set", index=index, state="up")
        _pin_neighbour(ip, index, slot.guest_ip)


def _down_all() -> frozenset[str]:
    were_up = set()
    with IPRoute() as ip:
        for link in ip.get_links():
            name = link.get_attr("IFLA_IFNAME")
            if is_tap(name) and link["flags"] & _IFF_UP:
                were_up.add(name)
                ip.link("set", index=link["index"], state="down")
    return frozenset(were_up)


def _raise(taps: list[str]) -> None:
    """The address outlives a link's going down; the neighbour entry doesn't, permanent or not."""
    with IPRoute() as ip:
        for tap in taps:
            for index in ip.link_lookup(ifname=tap):
                ip.link("set", index=index, state="up")
                for address in ip.get_addr(index=index, family=socket.AF_INET):
                    guest = ipaddress.IPv4Address(address.get_attr("IFA_LOCAL")) + 1
                    _pin_neighbour(ip, index, str(guest))


def _pin_neighbour(ip: Any, index: int, guest_ip: str) -> None:
    ip.neigh("replace", dst=guest_ip, lladdr=GUEST_MAC, ifindex=index, state=_NUD_PERMANENT)


def _delete(tap: str) -> None:
    with _rtnl("delete", tap) as ip:
        for index in ip.link_lookup(ifname=tap):
            with contextlib.suppress(NetlinkError):
                ip.link("del", index=index)


def _taps() -> frozenset[str]:
    with IPRoute() as ip:
        names = [link.get_attr("IFLA_IFNAME") for link in ip.get_links()]
    return frozenset(name for name in names if name and is_tap(name))


def _forget_flows(guest_ip: str) -> int:
    with Conntrack() as conntrack:
        entries = list(conntrack.dump_entries(tuple_orig=NFCTAttrTuple(saddr=guest_ip)))
        for entry in entries:
            with contextlib.suppress(NetlinkError):
                conntrack.delete(entry)
    return len(entries)


def _failed(verb: str, tap: str, error: Exception) -> HostError:
    return HostError(
        f"can't {verb} the link {tap}: {error}",
        code="link-failed",
        remedy="The agent must run as root, with /dev/net/tun; `ironcd doctor` checks both.",
    )
