"""What the host agent tells the gateway about one VM's link, and what it answers.

The agent writes ``<run_dir>/links/<tap>.json`` (a `Link`, replaced atomically) and then asks over the gateway's Unix
socket (``<run_dir>/gateway.sock``, one JSON object a line each way) to have it applied.  A gateway that starts reads the
folder, so neither side has to remember what the other knew.  A VM that has no such file gets nothing through.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from orchestrator.core.flow import Identity
from orchestrator.core.policy import Policy


class Link(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tap: str
    guest_ip: str
    """IPv4 address of the VM, pinned to the tap by the L2 chain."""
    gateway_ip: str
    """IPv4 address of our end of the link."""
    identity: Identity
    policy: Policy
    generation: int
    bound: bool
    limits: Limits


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Per VM: open connections, hellos not yet whole, new connections a second, names under one wildcard, ICMP echoes a
    second (of a sandbox; nothing else of ICMP passes).

    ``bytes_up_per_host`` blocks nothing: past it the record has an ``alert``, since what is uploaded to an allowed place
    can't be read.
    """

    connections: int = 512
    half_open: int = 64
    new_per_second: int = 200
    events_per_second: int = 100
    names_per_wildcard: int = 32
    bytes_up_per_host: int = 256 << 20
    echoes_per_second: int = 5


class GatewayRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """``apply`` and ``drop`` name a tap; ``ping`` and ``stats`` don't."""

    op: Literal["apply", "drop", "ping", "stats"]
    tap: str = ""


class GatewayReply(msgspec.Struct, frozen=True, omit_defaults=True):
    """``apply`` answers the digest and generation now in force, ``drop`` once no flow of the link is left."""

    ok: bool
    error: str = ""
    policy: str = ""
    generation: int = 0
    flows_closed: int = 0
    links: int = 0
    flows: int = 0
    seq: int = 0
    """Of the last event written to the ledger."""
    modules: tuple[str, ...] = ()
    """For ``stats``: the top-level modules that the gateway's process has really loaded."""
