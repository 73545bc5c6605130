"""What arrived in the world, kept in order.  Written by the world's thread, read by any."""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass, field
from typing import Any

KEPT_BYTES = 65_536


@dataclass
class Request:
    """One HTTP request, read from the plain or the decrypted stream."""

    method: str
    target: str
    headers: dict[str, str]
    body_bytes: int = 0


@dataclass
class Received:
    """One TCP connection, or one packet of another protocol, as it arrived.

    ``proto`` is tcp, udp, dns (a query, over either), icmp, or ip-N.  ``raw`` is what came over the wire, cut at 64 KiB;
    ``bytes_in`` and ``bytes_out`` count all of it.  ``sni`` and ``requests`` are filled as a connection goes on.
    """

    proto: str
    source: str
    source_port: int
    address: str
    port: int
    at: float = field(default_factory=time.time)
    raw: bytes = b""
    bytes_in: int = 0
    bytes_out: int = 0
    sni: str | None = None
    tls: bool = False
    """The TLS handshake was completed."""
    requests: list[Request] = field(default_factory=list)
    name: str = ""
    """The name that a DNS query asks for, with its type in ``kind``."""
    kind: str = ""
    closed: bool = False

    def take(self, data: bytes) -> None:
        self.bytes_in += len(data)
        if len(self.raw) < KEPT_BYTES:
            self.raw += data[: KEPT_BYTES - len(self.raw)]

    def as_dict(self) -> dict[str, Any]:
        return {
            "proto": self.proto,
            "source": self.source,
            "source_port": self.source_port,
            "address": self.address,
            "port": self.port,
            "at": self.at,
            "raw_base64": base64.b64encode(self.raw[:4096]).decode(),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "sni": self.sni,
            "tls": self.tls,
            "requests": [
                {"method": it.method, "target": it.target, "headers": it.headers, "body_bytes": it.body_bytes}
                for it in self.requests
            ],
            "name": self.name,
            "kind": self.kind,
            "closed": self.closed,
        }


class Recorder:
    def __init__(self) -> None:
        self._items: list[Received] = []

    def add(self, item: Received) -> Received:
        self._items.append(item)
        return item

    def clear(self) -> None:
        self._items = []

    def find(self, *, address: str | None = None, port: int | None = None, proto: str | None = None) -> list[Received]:
        """What matches all that is given, oldest first."""
        return [
            item
            for item in list(self._items)
            if (address is None or item.address == address)
            and (port is None or item.port == port)
            and (proto is None or item.proto == proto)
        ]
