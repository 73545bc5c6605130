"""What people decided of a host, and when: cordoned, drained, or taken back into use.

The control plane keeps it, tells the host, and the host says it again.  So it outlives either one's memory.  Each of the two
decisions has a time of its own, of the control plane's clock; of two that differ the later one counts (`later`), and a
decision that was never made (time 0) counts against none.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class Drain(msgspec.Struct, frozen=True, omit_defaults=True):
    """A host that is to be empty.  Times are seconds since the epoch."""

    since: float
    until: float
    """Jobs that still run then are told to end."""
    why: str = ""
    by: Literal["admin", "host"] = "admin"
    """The host itself asks for it when it goes down; what an admin wants, it doesn't take back."""


class Decided(msgspec.Struct, frozen=True, omit_defaults=True):
    """``cordoned_at`` and ``drained_at``: when that was last decided, also where it was taken back; 0 for never."""

    cordoned: str | None = None
    """The reason that was given; None where the host isn't cordoned."""
    cordoned_at: float = 0.0
    drain: Drain | None = None
    drained_at: float = 0.0


def later(mine: Decided, theirs: Decided) -> Decided:
    """Of each decision the one that was made later; ``theirs`` where both were made at the same time."""
    found = mine
    if theirs.cordoned_at and theirs.cordoned_at >= mine.cordoned_at:
        found = msgspec.structs.replace(found, cordoned=theirs.cordoned, cordoned_at=theirs.cordoned_at)
    if theirs.drained_at and theirs.drained_at >= mine.drained_at:
        found = msgspec.structs.replace(found, drain=theirs.drain, drained_at=theirs.drained_at)
    return found
