"""How long GitHub will still take the runner in an image: decided from its version and the releases that came after it.

GitHub wants each new release within thirty days; a runner that is further behind registers and gets no job, or isn't
registered at all.  What counts is when the *first* newer one was published, whatever came after it.  So:

==============  ==========================================================================
from day 0      nothing: a new image is due in its own time
from day 7      a warning, with the days that are left
from day 25     an image that isn't in use yet isn't rolled out: it would soon be useless
from day 30     GitHub refuses it; where it says so itself, see `orchestrator.core.quarantine`
==============  ==========================================================================

Pure; times are seconds since the epoch.
"""

from __future__ import annotations

from typing import Literal

import msgspec

DAY_S = 86_400.0
WARN_S = 7 * DAY_S
BLOCK_S = 25 * DAY_S
LIMIT_S = 30 * DAY_S
KEPT = 40
"""Releases that are remembered; GitHub makes about two a month."""
IN_USE_KEPT = 500

Standing = Literal["unknown", "current", "behind", "warn", "blocked", "refused"]


class Releases(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is remembered of GitHub's releases of its runner, and which images were rolled out."""

    published: dict[str, float] = {}
    """Version to when it was published."""
    asked_at: float = 0.0
    in_use: dict[str, float] = {}
    """Digest of an image to when it was first seen on a host, fit to be used."""


class Age(msgspec.Struct, frozen=True):
    """Where a version stands; ``days_left`` until GitHub refuses it, None where nothing newer is known."""

    standing: Standing
    newer: str = ""
    days_behind: float = 0.0
    days_left: float | None = None

    @property
    def text(self) -> str:
        """For a person; empty where there is nothing to say."""
        if self.standing in ("unknown", "current", "behind"):
            return ""
        if self.standing == "refused":
            return f"its runner is {self.days_behind:.0f} days behind {self.newer}, and GitHub takes 30: build it anew"
        return f"its runner is {self.days_behind:.0f} days behind {self.newer}; GitHub refuses it in {self.days_left:.0f} days"


def age_of(version: str, releases: Releases, now: float) -> Age:
    mine = _parts(version)
    if not mine or not releases.published:
        return Age("unknown")
    newer = {other: at for other, at in releases.published.items() if _parts(other) > mine}
    if not newer:
        return Age("current")
    first = min(newer, key=lambda other: (newer[other], other))
    behind_s = max(0.0, now - newer[first])
    latest = max(newer, key=_parts)
    return Age(_standing(behind_s), latest, behind_s / DAY_S, (LIMIT_S - behind_s) / DAY_S)


def learn(releases: Releases, version: str, published: float, now: float) -> Releases:
    """With GitHub's latest release; where it has none, ``version`` is empty."""
    known = {**releases.published, version: published} if _parts(version) else releases.published
    kept = dict(sorted(known.items(), key=lambda item: item[1])[-KEPT:])
    return msgspec.structs.replace(releases, published=kept, asked_at=now)


def admit(releases: Releases, images: dict[str, str], now: float, *, all_of_them: bool = False) -> Releases:
    """Note which of ``images`` (digest to version) are in use from now on; not those that come too late to be rolled out.

    ``all_of_them``: what was in use before isn't known, so whatever is there counts as in use.
    """
    fresh = {
        digest: now
        for digest, version in images.items()
        if digest not in releases.in_use and (all_of_them or age_of(version, releases, now).standing not in _TOO_LATE)
    }
    if not fresh:
        return releases
    in_use = dict(sorted({**releases.in_use, **fresh}.items(), key=lambda item: item[1])[-IN_USE_KEPT:])
    return msgspec.structs.replace(releases, in_use=in_use)


def why_not(releases: Releases, digest: str, version: str, now: float) -> str:
    """Why an image gets no runner; empty where it may."""
    if digest in releases.in_use:
        return ""
    age = age_of(version, releases, now)
    return f"isn't rolled out any more: {age.text}" if age.standing in _TOO_LATE else ""


_TOO_LATE = ("blocked", "refused")


def _standing(behind_s: float) -> Standing:
    for standing, limit in (("refused", LIMIT_S), ("blocked", BLOCK_S), ("warn", WARN_S)):
        if behind_s >= limit:
            return standing  # type: ignore[return-value]  # the literals above are Standings
    return "behind"


def _parts(version: str) -> tuple[int, ...]:
    """``2.336.0`` as numbers; empty for what is no version."""
    pieces = version.removeprefix("v").split(".")
    return tuple(int(piece) for piece in pieces) if all(p.isascii() and p.isdigit() for p in pieces) else ()
