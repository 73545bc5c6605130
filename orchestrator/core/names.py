"""Every name that belongs to one runner, derived from one ULID.

A sweeper that finds a domain, tap, chain, disk or seed can tell from its name alone whose it is, and nothing has to be
written down to find what a crash left behind.  Linux caps an interface name at 15 bytes: the tap takes the ULID's last
13 characters (65 of its 80 random bits).
"""

from __future__ import annotations

import re

import msgspec

PREFIX = "ironcd-"
TAP_PREFIX = "ic"

_ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")


class Names(msgspec.Struct, frozen=True):
    """What one runner's things are called, on GitHub and on its host."""

    ulid: str
    runner: str
    domain: str
    tap: str
    chain: str
    l2_chain: str
    disk: str
    seed: str
    channel: str


def names_of(ulid: str) -> Names:
    """The names that ``ulid`` (26 characters, Crockford base 32, upper case) stands for.

    Raises ValueError where it isn't a ULID: names end up in paths and rules.
    """
    if not _ULID.fullmatch(ulid):
        raise ValueError(f"not a ULID: {ulid!r}")
    tail = ulid[-13:].lower()
    lower = ulid.lower()
    return Names(
        ulid=ulid,
        runner=PREFIX + lower,
        domain=PREFIX + lower,
        tap=TAP_PREFIX + tail,
        chain=f"vm_{TAP_PREFIX}{tail}",
        l2_chain=f"l2_{TAP_PREFIX}{tail}",
        disk=f"{PREFIX}{lower}.qcow2",
        seed=f"{PREFIX}{lower}-seed.iso",
        channel=f"{PREFIX}{lower}.sock",
    )


def ulid_of(name: str) -> str | None:
    """The ULID in a runner's, domain's, disk's, seed's or channel's name; None where it isn't one of ours."""
    if not name.startswith(PREFIX):
        return None
    ulid = name[len(PREFIX) : len(PREFIX) + 26].upper()
    rest = name[len(PREFIX) + 26 :]
    if not _ULID.fullmatch(ulid) or rest not in ("", ".qcow2", "-seed.iso", ".sock"):
        return None
    return ulid


def is_tap(name: str) -> bool:
    """True for an interface name that `names_of` could have given."""
    return re.fullmatch(TAP_PREFIX + r"[0-9a-hjkmnp-tv-z]{13}", name) is not None


def same_repo(one: str, other: str) -> bool:
    """Whether both name the same repository (``owner/name``): GitHub takes upper and lower case for the same."""
    return one.lower() == other.lower()
