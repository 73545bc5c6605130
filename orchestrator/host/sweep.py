"""Finding what belongs to no runner: what a crash left behind is known by its name alone.

Nothing without a name of ours is ever looked at twice.  A thing is left alone for a minute after it was first seen: it
may belong to a runner that the control plane is just about to speak of.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec
import structlog

from orchestrator.core.errors import IronCDError
from orchestrator.core.link import GatewayRequest
from orchestrator.core.names import is_tap, names_of, ulid_of
from orchestrator.host.disk import delete
from orchestrator.host.gateway import GatewayAway
from orchestrator.host.parts import Parts

log = structlog.get_logger()

_SUFFIXES = (".json", ".log")


class Leftovers(msgspec.Struct, frozen=True):
    """``ulids`` have something by their whole name; ``taps`` are known by an interface's name only."""

    ulids: frozenset[str]
    taps: frozenset[str]


def find(parts: Parts, known: Iterable[str]) -> Leftovers:
    """What there is with a name of ours and belongs to none of the runners ``known``.  Raises HostError."""
    known = set(known) | parts.reserved.keys()
    ulids = {domain.ulid for domain in parts.hypervisor.ours()}
    paths = parts.paths
    for folder in (paths.disks, paths.boot, paths.seeds, paths.channels, paths.consoles, paths.records, paths.waiting):
        ulids |= set(_ulids_in(folder))
    ulids -= known
    taps = parts.wires.present() | parts.wall.present().taps | _link_files(paths.links)
    taps -= {names_of(ulid).tap for ulid in known | ulids}
    return Leftovers(frozenset(ulids), frozenset(taps))


def clear_tap(parts: Parts, tap: str) -> None:
    """Remove what there is of a link that no runner and no file names."""
    log.warning("orphan_link", tap=tap)
    delete(parts.paths.links / f"{tap}.json")
    try:
        parts.gateway.ask(GatewayRequest("drop", tap))
    except GatewayAway:
        pass
    except IronCDError as error:
        log.warning("clear_failed", tap=tap, error=str(error))
    parts.wall.remove(tap)
    parts.wires.delete(tap)


def _ulids_in(folder: Path) -> Iterable[str]:
    for name in os.listdir(folder):
        stem = name
        for suffix in _SUFFIXES:  # virtlogd adds .0, .1 to a console's name
            stem = stem.split(suffix)[0] if suffix in stem else stem
        ulid = ulid_of(stem)
        if ulid is not None:
            yield ulid


def _link_files(folder: Path) -> frozenset[str]:
    names = (name.removesuffix(".json") for name in os.listdir(folder) if name.endswith(".json"))
    return frozenset(name for name in names if is_tap(name))
