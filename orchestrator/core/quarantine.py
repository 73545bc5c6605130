"""Hosts and images that get no new runner for a while, because starts on them failed: decided from the faults alone.

- Three starts that failed within ten minutes put what they have in common in quarantine: the image where it failed on more
  than one host, else the host.  With one host and one image it can't be known which it is, and the host stands for both.
- It ends by itself after ten minutes; what failed before it counts no more.  If starts go on failing, so does the quarantine.
- An image whose runner GitHub no longer takes can't mend: it stays out until a person says otherwise, and an image that is
  built anew has another digest and so another name here.
- A person's word (`lift`) ends it at once.

Pure; times are seconds since the epoch.
"""

from __future__ import annotations

import msgspec

WINDOW_S = 600.0
FAULTS = 3
LASTS_S = 600.0


class Fault(msgspec.Struct, frozen=True):
    """A runner's start that failed, with what may be to blame."""

    runner: str
    """Its id: the same start told again counts once."""
    at: float
    host: str
    image: str
    """Digest; empty where it isn't known."""
    why: str


class Quarantine(msgspec.Struct, frozen=True, omit_defaults=True):
    since: float
    reason: str
    """For a person to read."""
    until: float = 0.0
    """0: until a person lifts it."""


class Ward(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is remembered: the faults of the last minutes, and who is in quarantine, by subject (`of_host`, `of_image`)."""

    faults: tuple[Fault, ...] = ()
    held: dict[str, Quarantine] = {}


def of_host(name: str) -> str:
    return f"host:{name}"


def of_image(digest: str) -> str:
    return f"image:{digest}"


def note(ward: Ward, fault: Fault) -> Ward:
    """``ward`` with one fault more."""
    known = {seen.runner for seen in ward.faults}
    return ward if fault.runner in known else msgspec.structs.replace(ward, faults=(*ward.faults, fault))


def condemn(ward: Ward, digest: str, reason: str, now: float) -> Ward:
    """Put an image out of use until a person lifts that."""
    known = ward.held.get(of_image(digest))
    if not digest or (known is not None and not known.until):
        return ward
    return msgspec.structs.replace(ward, held={**ward.held, of_image(digest): Quarantine(now, reason)})


def judged(ward: Ward, lifted: dict[str, float], now: float) -> Ward:
    """``ward`` as it is at ``now``: what is over is gone, and who has failed too often is held.

    ``lifted``: when a person ended the quarantine of a subject.
    """
    held = {
        subject: quarantine
        for subject, quarantine in ward.held.items()
        if (not quarantine.until or now < quarantine.until) and lifted.get(subject, 0.0) < quarantine.since
    }
    over = {subject: quarantine.until for subject, quarantine in ward.held.items() if subject not in held}
    kept = tuple(fault for fault in ward.faults if now - fault.at < WINDOW_S)
    kept = tuple(fault for fault in kept if not _is_forgiven(fault, over, lifted))
    for subject, reason in _guilty(kept):
        if subject not in held:
            held[subject] = Quarantine(now, reason, now + LASTS_S)
    return ward if (kept, held) == (ward.faults, ward.held) else Ward(kept, held)


def _is_forgiven(fault: Fault, over: dict[str, float], lifted: dict[str, float]) -> bool:
    """A quarantine that ended forgives what led to it."""
    subjects = (of_host(fault.host), of_image(fault.image))
    return any(subject in over or fault.at <= lifted.get(subject, -1.0) for subject in subjects)


def _guilty(faults: tuple[Fault, ...]) -> list[tuple[str, str]]:
    """Who has failed too often, images first: a host isn't blamed for an image that fails elsewhere too."""
    found: list[tuple[str, str]] = []
    for digest in sorted({fault.image for fault in faults if fault.image}):
        mine = [fault for fault in faults if fault.image == digest]
        if len(mine) >= FAULTS and len({fault.host for fault in mine}) > 1:
            found.append((of_image(digest), _reason(mine)))
    bad = {subject for subject, _ in found}
    for host in sorted({fault.host for fault in faults}):
        mine = [fault for fault in faults if fault.host == host and of_image(fault.image) not in bad]
        if len(mine) >= FAULTS:
            found.append((of_host(host), _reason(mine)))
    return found


def _reason(faults: list[Fault]) -> str:
    return f"{len(faults)} starts failed within {WINDOW_S / 60:.0f} minutes; the last one: {faults[-1].why}"[:500]
