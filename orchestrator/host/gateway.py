"""Asking the gateway, over its Unix socket, to put a link in force or to let it go.

One connection a request: either process may restart at any moment, and a request costs far less than a VM's boot.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Protocol

import msgspec

from orchestrator.core.errors import HostError
from orchestrator.core.link import GatewayReply, GatewayRequest

TIMEOUT_S = 10.0
_MAX_REPLY = 1 << 16


class GatewayAway(HostError):
    """No gateway listens: nothing passes, and no flow is open."""


class Gateway(Protocol):
    def ask(self, request: GatewayRequest) -> GatewayReply:
        """Raises `GatewayAway` where none listens, and HostError (``gateway-silent``) where it doesn't answer."""


class GatewaySocket:
    def __init__(self, path: Path, *, timeout_s: float = TIMEOUT_S) -> None:
        self._path = path
        self._timeout_s = timeout_s

    def ask(self, request: GatewayRequest) -> GatewayReply:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.settimeout(self._timeout_s)
            try:
                link.connect(str(self._path))
            except (FileNotFoundError, ConnectionRefusedError) as error:
                raise GatewayAway(
                    f"no gateway listens on {self._path}",
                    code="gateway-away",
                    remedy="Start it: `ironcd up` does, or the service ironcd-gateway.",
                ) from error
            except OSError as error:
                raise _silent(str(error)) from error
            try:
                link.sendall(msgspec.json.encode(request) + b"\n")
                return msgspec.json.decode(_line(link), type=GatewayReply)
            except (OSError, msgspec.MsgspecError) as error:
                raise _silent(str(error)) from error


def _line(link: socket.socket) -> bytes:
    data = bytearray()
    while not data.endswith(b"\n"):
        part = link.recv(4096)
        if not part or len(data) > _MAX_REPLY:
            raise _silent("the connection ended in the middle of an answer")
        data += part
    return bytes(data)


def _silent(why: str) -> HostError:
    return HostError(
        f"the gateway doesn't answer: {why}",
        code="gateway-silent",
        remedy="See the gateway's log; nothing passes until it answers.",
    )
