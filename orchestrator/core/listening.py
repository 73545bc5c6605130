"""Since when hosts can be heard at all: a control plane that was away must not take its own deafness for their silence.

Some API notes every few seconds that it listens.  Where that has a gap, hosts' silence counts from its end; and while nobody
listens, nothing is concluded from it.  Pure; times are seconds since the epoch.
"""

from __future__ import annotations

import msgspec

GAP_S = 20.0
"""An API that listens notes it four times as often."""


class Listening(msgspec.Struct, frozen=True):
    """Some API has listened without a gap from ``since`` to ``at``."""

    since: float
    at: float


def noted(known: Listening | None, now: float) -> Listening:
    """What is on record once an API has noted ``now``."""
    unbroken = known is not None and abs(now - known.at) <= GAP_S  # a clock that was set back is a gap as well
    return Listening(known.since if known is not None and unbroken else now, now)


def silence(heard_at: float, listening: Listening | None, now: float) -> float:
    """For how long a host that was heard at ``heard_at`` has been silent while somebody listened, in seconds."""
    if listening is None:
        return now - heard_at
    if abs(now - listening.at) > GAP_S:
        return 0.0
    if heard_at > now + GAP_S:  # the clock was set back after that
        heard_at = listening.since
    return now - max(heard_at, listening.since)
