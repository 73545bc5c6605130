"""The serial console's last lines, for the record of a failure."""

from __future__ import annotations

import re
from pathlib import Path

from orchestrator.system.log import redact

TAIL_BYTES = 4096
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[^\n\t\x20-\x7e\u00a0-\U0010ffff]")


def tail(path: Path, secrets: tuple[str, ...] = ()) -> str:
    """The last lines of the console at ``path``, at most 4 KiB; every secret and control character taken out."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 4 * TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return clean(text, secrets)


def clean(text: str, secrets: tuple[str, ...] = ()) -> str:
    """``text`` of a guest made fit for a record: what looks like a secret, ``secrets`` and control characters are gone."""
    text = _CONTROL.sub("", text.replace("\r", ""))
    for secret in secrets:
        if len(secret) >= 8:
            text = text.replace(secret, "[secret]")
    return redact(text)[-TAIL_BYTES:]


def parts(path: Path) -> list[Path]:
    """The console's file and those that virtlogd set aside when it grew."""
    return [path, *sorted(path.parent.glob(path.name + ".*"))]
