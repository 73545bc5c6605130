"""Options that many commands share, and the configuration that the command was started with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from orchestrator.surface.settings import Settings

AsJson = Annotated[bool, typer.Option("--json", help="For programs: JSON in place of a table.")]


@dataclass
class Global:
    """What stands before the subcommand on the command line."""

    config: Path | None = None

    def settings(self) -> Settings:
        from orchestrator.surface.settings import load

        return load(self.config)


GLOBAL = Global()

_LENGTH = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def length(text: str, option: str) -> float:
    """Seconds of ``90s``, ``30m``, ``1h30m``.  Raises UserError (``bad-option``) for anything else."""
    match = _LENGTH.fullmatch(text.strip())
    if not text.strip() or match is None:
        from orchestrator.core.errors import UserError

        raise UserError(f"{option} {text!r} isn't a time", code="bad-option", remedy="Write 90s, 30m or 1h30m.")
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return hours * 3600.0 + minutes * 60.0 + seconds
