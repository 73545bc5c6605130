"""The reader of kernel drops against a real kernel: every packet that a rule logs becomes part of an event's count."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.core.flow import Event
from orchestrator.egress.links import Links
from orchestrator.egress.nflog import DropReader, open_nflog
from orchestrator.egress.recorder import Recorder
from orchestrator.system import netns
from orchestrator.system.process import run

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("nft") is None, reason="needs root and nftables"),
]

TAP = "ickekrnevmn9t95"
RULES = f"""
table inet drops {{
  chain out {{
    type filter hook output priority 0; policy accept;
    udp dport 4444 log group 5 prefix "{TAP} quic " drop
    tcp dport 4445 log group 5 prefix "{TAP} other " drop
  }}
}}
"""


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"icdt-{secrets.token_hex(4)}"
    netns.create(name)
    try:
        run(["ip", "netns", "exec", name, "nft", "-f", "-"], stdin=RULES)
        yield name
    finally:
        netns.delete(name)


async def test_a_burst_of_drops_is_counted_in_full(namespace: str, tmp_path: Path) -> None:
    burst = 20_000
    events: list[Event] = []
    recorder = Recorder(SimpleNamespace(append=events.append), gateway="host-1")  # type: ignore[arg-type]
    with netns.inside(namespace):
        reader = DropReader(open_nflog(5), links=Links(tmp_path), recorder=recorder)
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        for number in range(burst):
            with contextlib.suppress(PermissionError):  # how the kernel tells the sender of a drop
                udp.sendto(b"x", ("127.0.0.9", 4444))
            if number % 1000 == 0:
                await asyncio.sleep(0)
        tcp.settimeout(0.05)
        with pytest.raises(OSError, match=r"timed out|not permitted"):
            tcp.connect(("127.0.0.9", 4445))
        async with asyncio.timeout(60):
            while not any(event.protocol == "tcp" for event in events):  # noqa: ASYNC110 - the kernel hands over when it likes
                await asyncio.sleep(0.05)
        reader.flush()
        recorder.flush()
        counts = {
            (protocol, kind): sum(e.count for e in events if (e.protocol, e.event) == (protocol, kind))
            for protocol, kind in (("udp", "drop"), ("other", "lost"))
        }
        assert counts == {("udp", "drop"): burst, ("other", "lost"): 0}
        first = events[0]
        assert (first.reason, first.orig_dst, first.port) == ("quic", "127.0.0.9", 4444)
        assert next(event for event in events if event.protocol == "tcp").port == 4445
    finally:
        reader.close()
        udp.close()
        tcp.close()


async def test_what_the_kernel_could_not_hand_over_is_said(namespace: str, tmp_path: Path) -> None:
    events: list[Event] = []
    recorder = Recorder(SimpleNamespace(append=events.append), gateway="host-1")  # type: ignore[arg-type]
    with netns.inside(namespace):
        sock = open_nflog(5)
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader = DropReader(sock, links=Links(tmp_path), recorder=recorder)
    sent = 5_000

    def send(count: int) -> None:
        for _ in range(count):
            with contextlib.suppress(PermissionError):
                udp.sendto(b"x", ("127.0.0.9", 4444))

    try:
        send(sent)  # nobody reads meanwhile
        await asyncio.sleep(0.3)
        send(1)
        await asyncio.sleep(0.3)
        reader.flush()
        recorder.flush()
        lost = sum(event.count for event in events if event.event == "lost")
        dropped = sum(event.count for event in events if event.event == "drop")
        assert lost > 0
        assert lost + dropped == sent + 1
    finally:
        reader.close()
        udp.close()
