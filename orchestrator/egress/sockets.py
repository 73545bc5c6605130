"""The gateway's sockets: how they are opened, what they are told, and where a redirected connection was bound for."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Sequence

CONNECT_TIMEOUT_S = 5.0
_SO_ORIGINAL_DST = 80
_BACKLOG = 4096


class OwnAddress(OSError):
    """What was dialled turned out to be this host."""


def listen_tcp(port: int) -> socket.socket:
    """A non-blocking listener on every IPv4 address of the present namespace.  What it takes is tuned as it is."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    tune(sock)  # Linux hands these down to accepted sockets
    sock.bind(("0.0.0.0", port))  # noqa: S104 - the VMs' namespace has no other way in
    sock.listen(_BACKLOG)
    sock.setblocking(False)
    return sock


def listen_udp(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("0.0.0.0", port))  # noqa: S104 - as above
    sock.setblocking(False)
    return sock


def original_destination(sock: socket.socket) -> tuple[str, int] | None:
    """Address and port that the client dialled before the redirect; None where there was no redirect."""
    try:
        raw = sock.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16)
    except OSError:
        return None
    port, packed = struct.unpack_from("!2xH4s", raw)
    return socket.inet_ntoa(packed), port


def tune(sock: socket.socket, *, idle_s: int = 60) -> None:
    """No delay for small pieces; a peer that is gone is noticed within about two minutes."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 120_000)


async def dial(addresses: Sequence[str], port: int) -> tuple[socket.socket, str]:
    """A connection to the first of ``addresses`` that takes one, and which it was.

    Raises OSError: the last one's, where none does; TimeoutError where it didn't answer; OwnAddress where it is this host.
    """
    error: OSError = ConnectionRefusedError("no address")
    for address in addresses[:4]:
        try:
            return await _connect(address, port), address
        except OwnAddress:
            raise
        except OSError as failed:
            error = failed
    raise error


async def _connect(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        tune(sock)
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await asyncio.get_running_loop().sock_connect(sock, (address, port))
        # The kernel takes the address itself as source only where it is one of ours.
        if sock.getsockname()[0] == sock.getpeername()[0]:
            raise OwnAddress(f"{address} is this host")
    except BaseException:
        with contextlib.suppress(OSError):
            sock.close()
        raise
    return sock
