"""Templates that admins removed, as the store keeps them: a hash of ``KEY HOST`` to when."""

from __future__ import annotations

from collections.abc import Mapping

KEPT_S = 30 * 86400.0
"""A host that was away for longer doesn't hear of a removal any more."""


def field_of(host: str, key: str) -> str:
    return f"{key} {host}"


def by_host(fields: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Hosts to the keys of their removed templates, and when each was removed, in seconds since the epoch."""
    found: dict[str, dict[str, float]] = {}
    for field, at in fields.items():
        key, _, host = field.partition(" ")
        found.setdefault(host, {})[key] = float(at)
    return found


def old(fields: Mapping[str, str], now: float) -> list[str]:
    """The fields that may be forgotten."""
    return [field for field, at in fields.items() if float(at) < now - KEPT_S]
