"""libnftables through its own Python binding, on the one thread that lives in the VMs' network namespace.

Debian ships the binding (``python3-nftables``: plain ctypes) for its own interpreter only.  It is loaded by path, so that
a virtual environment sees this package and nothing else of ``dist-packages``.  libnftables acts on the namespace of the
thread that opened it, hence `NamespaceThread`: one thread, moved into the namespace for good, which everything about
the VMs' links and filter runs on, one call after the other.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

from orchestrator.core.errors import HostError
from orchestrator.system import netns

_FOLDERS = (Path("/usr/lib/python3/dist-packages/nftables"),)
_FAMILIES = {"inet": 1, "netdev": 5}  # NFPROTO_INET, NFPROTO_NETDEV
_NLMSG_ERROR = 2
_NETLINK_NETFILTER = 12
_NEW_GENERATION = 10 << 8 | 15  # NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWGEN
_GET_GENERATION = 10 << 8 | 16
_NEW_CHAIN, _GET_CHAIN = 10 << 8 | 3, 10 << 8 | 4
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _HOOK_DEVICE = 1, 3, 4, 3
_NLM_F_REQUEST = 1
_NFTA_GEN_ID = 1
_ANSWER_S = 5.0
_T = TypeVar("_T")

Json = dict[str, Any]


class Nft(Protocol):
    """One libnftables context."""

    def apply(self, commands: list[Json]) -> None:
        """Run ``commands`` as one transaction: all of them, or none.  Raises HostError (``nft-refused``)."""

    def listing(self) -> Json:
        """The whole ruleset of the namespace, as ``list ruleset`` gives it, with each ``netdev`` chain's device."""

    def generation(self) -> int:
        """A number that the kernel changes with every change of the namespace's ruleset, whoever makes it."""

    def listing_of(self, objects: list[Json]) -> Json:
        """What there is of ``objects`` (each a chain, set or map by family, table and name), in the form of `listing`."""

    def has_chain(self, chain: Json) -> bool:
        """Whether there is a chain of that family, table and name; quick, where a listing of it isn't."""


class LibNft:
    """The real one.  Must be made and used on one thread (`NamespaceThread`)."""

    def __init__(self) -> None:
        self._context = _binding().Nftables()
        self._context.set_json_output(True)

    def apply(self, commands: list[Json]) -> None:
        if not commands:
            return
        status, _, error = self._context.json_cmd({"nftables": commands})
        if status != 0:
            raise _refused(error)

    def listing(self) -> Json:
        status, answer, error = self._context.json_cmd({"nftables": [{"list": {"ruleset": None}}]})
        if status != 0:
            raise _refused(error)
        listing: Json = answer if isinstance(answer, dict) else {"nftables": []}
        _add_devices(listing)
        return listing

    def generation(self) -> int:
        return _generation()

    def listing_of(self, objects: list[Json]) -> Json:
        found: list[Json] = []
        for item in objects:  # libnftables answers one list command at a time
            status, answer, _ = self._context.json_cmd({"nftables": [{"list": item}]})
            if status == 0 and isinstance(answer, dict):
                found += answer["nftables"]
        listing: Json = {"nftables": found}
        _add_devices(listing)
        return listing

    def has_chain(self, chain: Json) -> bool:
        with _netfilter() as netlink:
            return _chain(netlink, _FAMILIES[chain["family"]], chain["table"], chain["name"]) is not None


class NamespaceThread:
    """A thread that lives in network namespace ``name``; `call` runs a function there and gives back its result."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"netns-{name}")
        self._pool.submit(netns.enter, name).result()
        self._inode = self._pool.submit(lambda: os.stat("/proc/thread-self/ns/net").st_ino).result()

    def call(self, function: Callable[..., _T], *args: Any) -> _T:
        return self._pool.submit(function, *args).result()

    def is_current(self) -> bool:
        """False where the namespace of that name was deleted, or made anew, behind our back."""
        try:
            return os.stat(f"/run/netns/{self.name}").st_ino == self._inode
        except FileNotFoundError:
            return False

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def _binding() -> Any:
    """The module ``nftables``: the installed one, or Debian's."""
    module = sys.modules.get("nftables")
    if module is not None:
        return module
    for folder in _FOLDERS:
        init = folder / "__init__.py"
        if not init.exists():
            continue
        spec = importlib.util.spec_from_file_location("nftables", init, submodule_search_locations=[str(folder)])
        if spec is None or spec.loader is None:
            continue
        module = importlib.util.module_from_spec(spec)
        sys.modules["nftables"] = module
        spec.loader.exec_module(module)
        return module
    raise HostError(
        "libnftables' Python binding isn't installed",
        code="nftables-missing",
        remedy="apt-get install python3-nftables",
    )


def _add_devices(listing: Json) -> None:
    """Put the device of each ``netdev`` chain into ``listing``: libnftables before 1.0.8 leaves it out of its JSON."""
    chains = [item["chain"] for item in listing["nftables"] if item.get("chain", {}).get("family") == "netdev"]
    if all("dev" in chain for chain in chains):
        return
    with _netfilter() as netlink:
        for chain in chains:
            device = "" if "dev" in chain else _device_of(netlink, chain["table"], chain["name"])
            if device:
                chain["dev"] = device


def _netfilter() -> socket.socket:
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    netlink.settimeout(_ANSWER_S)
    return netlink


def _ask(netlink: socket.socket, kind: int, family: int, body: bytes = b"") -> tuple[int, bytes]:
    """The kind and the attributes of the kernel's answer to one question about nf_tables (linux/netfilter/nf_tables.h).

    For an error its number, as a (negative) int, is in the attributes' place.
    """
    netlink.send(struct.pack("=IHHIIBBH", 20 + len(body), kind, _NLM_F_REQUEST, 1, 0, family, 0, 0) + body)
    answer = netlink.recv(65_536)
    answered = struct.unpack_from("=H", answer, 4)[0]
    return answered, answer[16:20] if answered == _NLMSG_ERROR else answer[20:]


def _device_of(netlink: socket.socket, table: str, chain: str) -> str:
    """The device that a ``netdev`` chain is hooked to; empty where there is no such chain, or none.

    Asked for one chain at a time: what answers for all of them at once takes most of the time that a VM's rules take.
    """
    hook = (_chain(netlink, _FAMILIES["netdev"], table, chain) or {}).get(_CHAIN_HOOK, b"")
    return dict(_attributes(hook)).get(_HOOK_DEVICE, b"").rstrip(b"\0").decode("ascii", "replace")


def _chain(netlink: socket.socket, family: int, table: str, name: str) -> dict[int, bytes] | None:
    """The attributes of one chain; None where there is none.  Raises HostError where the kernel doesn't say."""
    place = ((_CHAIN_TABLE, table), (_CHAIN_NAME, name))
    body = b"".join(_attribute(number, text.encode() + b"\0") for number, text in place)
    kind, answer = _ask(netlink, _GET_CHAIN, family, body)
    if kind == _NEW_CHAIN:
        return dict(_attributes(answer))
    error = -struct.unpack_from("=i", answer)[0] if kind == _NLMSG_ERROR and len(answer) >= 4 else 0
    if error != errno.ENOENT:
        raise _refused(f"asked for the chain {name}, the kernel answers {os.strerror(error)}")
    return None


def _attribute(number: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), number) + value + bytes(-len(value) % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        length, number = struct.unpack_from("=HH", data, at)
        if length < 4:
            return
        yield number & 0x3FFF, data[at + 4 : at + length]
        at += length + (-length % 4)


def _generation() -> int:
    """Ask the kernel (``NFT_MSG_GETGEN``): libnftables knows the number and doesn't tell."""
    with _netfilter() as netlink:
        kind, answer = _ask(netlink, _GET_GENERATION, socket.AF_UNSPEC)
    number = dict(_attributes(answer)).get(_NFTA_GEN_ID, b"")
    if kind != _NEW_GENERATION or len(number) != 4:
        raise HostError(
            "the kernel doesn't say its ruleset's generation",
            code="nft-refused",
            remedy="Run `ironcd doctor`; the kernel must have nf_tables.",
        )
    return int.from_bytes(number)


def _refused(error: str) -> HostError:
    return HostError(
        f"nftables refused the rules: {error.strip()}",
        code="nft-refused",
        remedy="Run `ironcd doctor`; the kernel must have nf_tables with the inet and netdev families, NFLOG and conntrack.",
    )
