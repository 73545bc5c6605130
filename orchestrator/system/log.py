"""The structured log: one JSON object a line on standard error, with the ids that tie lines together, and no secret.

`redact` takes out what looks like a secret (GitHub tokens, JWTs, private keys, long base64) and everything that was named
with `hide`, whatever the key it stands under.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

_SECRET = re.compile(
    r"gh[opsur]_[A-Za-z0-9_.\-]{16,}"
    r"|github_pat_[A-Za-z0-9_]{16,}"
    r"|eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]*"
    r"|eyJ[A-Za-z0-9+/=]{64,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|[A-Za-z0-9+/]{256,}={0,2}",
    re.DOTALL,
)
_hidden: set[str] = set()
_KEYS = frozenset({"token", "secret", "authorization", "jit", "encoded_jit_config", "password", "pem", "private_key"})


def hide(secret: str) -> None:
    """Take ``secret`` (8 characters or more) out of every later line of this process."""
    if len(secret) >= 8:
        _hidden.add(secret)


def redact(text: str) -> str:
    for secret in _hidden:
        text = text.replace(secret, "[secret]")
    return _SECRET.sub("[secret]", text)


def _scrub(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, bytes):
        return redact(value.decode("utf-8", "backslashreplace"))
    if isinstance(value, dict):
        return {key: "[secret]" if str(key).lower() in _KEYS and item else _scrub(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_scrub(item) for item in value]
    return value


def _scrub_event(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    scrubbed: MutableMapping[str, Any] = _scrub(dict(event))
    return scrubbed


def configure(process: str, *, level: str = "info", console: bool = False) -> None:
    """Set the log of this process up; ``process`` is put on each line.  ``console`` is for people, not for machines."""
    structlog.reset_defaults()
    renderer: Any = structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer(ensure_ascii=True)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.dict_tracebacks,
            _scrub_event,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)
