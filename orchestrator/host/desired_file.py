"""The last desired state that the control plane stated, without secrets, as it is kept on the host's disk."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec
import structlog

from orchestrator.core.names import names_of
from orchestrator.core.wire import Desired, DesiredRunner
from orchestrator.host.parts import without_secret

log = structlog.get_logger()

REMOVALS_S = 30 * 86400.0


def read(path: Path) -> Desired | None:
    """None where there is none that can be read: the control plane will say it again."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Desired)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("desired_unreadable", error=str(error))
        return None


def as_kept(desired: Desired) -> bytes:
    """What may lie on the disk of ``desired``."""
    clean = msgspec.structs.replace(desired, runners=tuple(map(without_secret, desired.runners)))
    return msgspec.json.encode(clean)


def with_known_orders(desired: Desired, known: Desired | None, now: float) -> Desired:
    """``desired`` with what was ever ordered of templates: a control plane that has forgotten it takes nothing back.

    No order is ever taken back; of two for the same template the later one counts.  A removal is remembered for as long as
    the control plane remembers it.
    """
    if known is None:
        return desired
    removed = {key: at for key, at in known.templates_removed.items() if at >= now - REMOVALS_S}
    for key, at in desired.templates_removed.items():
        removed[key] = max(at, removed.get(key, 0.0))
    since = max(desired.templates_since, known.templates_since)
    return msgspec.structs.replace(desired, templates_since=since, templates_removed=removed)


def usable(wishes: Iterable[DesiredRunner]) -> dict[str, DesiredRunner]:
    """Those of ``wishes`` that can be, by id."""
    return {wish.id: wish for wish in wishes if _is_usable(wish)}


def _is_usable(wish: DesiredRunner) -> bool:
    """An id that isn't a ULID can't name anything here."""
    try:
        names_of(wish.id)
    except ValueError:
        log.warning("wish_left_out", id=wish.id[:40])
        return False
    return True
