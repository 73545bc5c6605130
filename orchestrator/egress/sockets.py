"""The gateway's sockets: how they are opened, what they are told, and where a redirected connection was bound for.

A connection's two are of the interpreter's own type (`socket.SocketType`): what `socket.socket` adds to it in Python costs a
short connection several microseconds, and nothing of it is used.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

_SO_ORIGINAL_DST = 80
_BACKLOG = 4096


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


def original_destination(sock: socket.SocketType) -> tuple[str, int] | None:
    """Address and port that the client dialled before the redirect; None where there was no redirect."""
    try:
        raw = sock.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16)
    except OSError:
        return None
    port, packed = struct.unpack_from("!2xH4s", raw)
    return socket.inet_ntoa(packed), port


def tune(sock: socket.SocketType, *, idle_s: int = 60) -> None:
    """No delay for small pieces; a peer that is gone is noticed within about two minutes."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    keep_alive(sock, idle_s=idle_s)


def keep_alive(sock: socket.SocketType, *, idle_s: int = 60) -> None:
    """A peer that is gone is noticed within about two minutes."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 120_000)


def start_connecting(address: str, port: int) -> socket.SocketType:
    """A socket on its way to ``address``.  Raises OSError where that can't even begin."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.SocketType(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        error = sock.connect_ex((address, port))
        if error not in (0, errno.EINPROGRESS):
            raise OSError(error, os.strerror(error))
    except BaseException:
        sock.close()
        raise
    return sock


def reached_itself(sock: socket.SocketType, dialled: str) -> bool:
    """True where ``dialled`` is this host: the kernel takes the address itself as source only where it is ours.

    Raises OSError where ``sock`` isn't connected.
    """
    source = sock.getsockname()[0]
    if ":" not in dialled:
        return bool(source == dialled)
    return bool(source == sock.getpeername()[0])  # an IPv6 address has many spellings
