"""Whether GitHub signed a body: HMAC-SHA256 over the raw bytes, compared in constant time, under any of our secrets."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

_PREFIX = b"sha256="


def is_signed(body: bytes | bytearray, header: bytes | None, secrets: Iterable[bytes]) -> bool:
    """True where ``header`` (``X-Hub-Signature-256``) is the signature of ``body`` under one of ``secrets``.

    Every secret is tried, whichever fits.  An empty secret never fits: whoever knows that none is set could sign.
    """
    if header is None or not header.startswith(_PREFIX):
        return False
    given = header[len(_PREFIX) :]
    found = False
    for secret in secrets:
        if secret:
            right = hmac.digest(secret, body, "sha256").hex().encode("ascii")
            found |= hmac.compare_digest(right, given)
    return found


def sign(body: bytes, secret: bytes) -> str:
    """The header that GitHub would send with ``body``."""
    return "sha256=" + hmac.digest(secret, body, "sha256").hex()
