"""One attempt to reach the outside, who made it, and what the record of it looks like.

`Event` is the schema of the egress ledger: the gateway, the resolver and the kernel's drops all use it, one line of
JSON each, so a reader needs one parser.  Fields that an attempt doesn't have are absent from the line.
"""

from __future__ import annotations

from typing import Literal

import msgspec

SCHEMA = 1

Verdict = Literal["allowed", "warn", "blocked"]
Protocol = Literal["tls", "tcp", "udp", "dns", "icmp", "other"]
EventKind = Literal["open", "progress", "close", "dns", "drop", "alert", "lost", "mark"]


class Identity(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whose attempt it is.  Before a job is bound only ``org`` (or ``repo``'s owner) and ``runner`` are known."""

    runner: str
    """ULID of the runner; its VM has the name that `names_of` gives."""
    org: str = ""
    repo: str = ""
    """``owner/name``"""
    workflow: str = ""
    run_id: int = 0
    attempt: int = 0
    job: str = ""
    job_id: int = 0


class Flow(msgspec.Struct, frozen=True):
    """What `decide` is asked about."""

    protocol: Protocol
    port: int
    name: str | None = None
    """Lower-case A-label host name without the final dot, as `hello` or the resolver gave it; None where there is none."""
    address: str | None = None
    """The address that the VM dialled; for a name it isn't what we dial."""


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the egress ledger.  Times are seconds since the epoch, sizes are bytes."""

    event: EventKind
    ts: float
    seq: int
    """Grows by one with each event of this gateway, across its restarts; a gap is a loss."""
    gateway: str
    """The host's name."""
    who: Identity
    protocol: Protocol
    verdict: Verdict
    reason: str
    schema: int = SCHEMA
    conn: str = ""
    """Shared by the open, progress and close events of one connection."""
    host: str = ""
    host_source: str = ""
    """``sni``, ``dns`` or ``ip``: where the name comes from."""
    port: int = 0
    orig_dst: str = ""
    resolved: str = ""
    mode: str = ""
    would_block: bool = False
    rule: str = ""
    policy: str = ""
    """Digest of the policy in force."""
    generation: int = 0
    flags: tuple[str, ...] = ()
    """``dst_mismatch``, ``multi_tenant``, ``expected``, ``ech``; ``bytes_up`` where the job has sent more to this host than its
    budget, ``long`` for a flow of more than ten minutes; ``repeated`` and ``suppressed`` where ``count`` stands for
    attempts that have no line of their own"""
    tls: dict[str, str | int] = {}
    bytes_up: int = 0
    bytes_down: int = 0
    duration_ms: int = 0
    close_reason: str = ""
    count: int = 1
    """How many attempts this line stands for, where they were put together."""
    prev: str = ""
    """Hexadecimal leaf hash (`orchestrator.core.merkle`) of the line before; empty in the ledger's first line."""
