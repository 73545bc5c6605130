"""Two clocks compared over a network: only what the way between them can't explain counts as skew.

A stamp that was on its way for an unknown time gives a range, not a number.  Where the range holds zero, the clocks may
well agree, and nothing is said against them.
"""

from __future__ import annotations

import msgspec

UNKNOWN_WAY_S = 10.0
"""A host that doesn't say how long its reports take may have waited so long for an answer: its own limit."""


def skew_of_sender(stamp: float, received: float, way_s: float) -> float:
    """By how many seconds the sender's clock is ahead of ours, at least; negative: behind, at least; 0: it may be right.

    ``stamp``: by its clock as it sent; ``received``: by ours as it came; ``way_s``: the longest that it can have taken.
    """
    return _nearest_to_zero(stamp - received, stamp - received + max(0.0, way_s))


def skew_of_answerer(stamp: float, asked: float, answered: float, *, resolution_s: float = 1.0) -> float:
    """The same for who answered us between ``asked`` and ``answered``, with a stamp cut to ``resolution_s``."""
    return _nearest_to_zero(stamp - answered, stamp + resolution_s - asked)


class Reckoned(msgspec.Struct, frozen=True):
    """A clock that can be set, held against the one since boot, which can't: ``booted`` is when that was zero, by the first."""

    boot: str
    booted: float


SET_S = 30.0
"""Less is a time service at its work, and shorter than any deadline."""
DRIFT_S = 1.0


def was_set(known: Reckoned | None, seen: Reckoned) -> float:
    """By how many seconds a clock was set ahead since ``known``; negative: back; 0 where it wasn't, or nobody can tell."""
    if known is None or known.boot != seen.boot or abs(seen.booted - known.booted) < SET_S:
        return 0.0
    return seen.booted - known.booted


def is_news(known: Reckoned | None, seen: Reckoned) -> bool:
    """Whether ``seen`` is worth writing down."""
    return known is None or known.boot != seen.boot or abs(seen.booted - known.booted) >= DRIFT_S


def _nearest_to_zero(low: float, high: float) -> float:
    if low <= 0.0 <= high:
        return 0.0
    return low if low > 0.0 else high
