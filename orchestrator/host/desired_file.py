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
