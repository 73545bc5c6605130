"""Options that many commands share, and the configuration that the command was started with."""

from __future__ import annotations

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
