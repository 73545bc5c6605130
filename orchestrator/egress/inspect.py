"""What the gateway makes of a client's first bytes, for ``ironcd egress inspect``."""

from __future__ import annotations

from orchestrator.egress.hello import HelloReader, Invalid


def inspect_bytes(data: bytes) -> tuple[str | None, str | None]:
    """Judge ``data``, raw bytes as a client sent them: (name, None), or (None, reason).

    A hello that isn't whole has the reason ``truncated``, one that names no host ``missing_sni``.
    """
    result = HelloReader().feed(data)
    if result is None:
        return None, "truncated"
    if isinstance(result, Invalid):
        return None, result.reason
    return (result.name, None) if result.name is not None else (None, "missing_sni")
