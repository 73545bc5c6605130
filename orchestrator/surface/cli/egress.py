"""``ironcd egress``: what the gateway would make of something, without a machine to run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="The egress wall: policies, presets, and what the gateway makes of a hello.", no_args_is_help=True
)

_HELLO_LIMIT = 1 << 20


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="Raw bytes as a client sent them (TLS records); - for standard input.")],
) -> None:
    """Print what the gateway makes of a captured ClientHello: the name that it asks for, or the reason to refuse it.

    Ends with status 0 where there is a name, 1 where there is a reason, 2 where FILE can't be read.

    Example: [bold]ironcd egress inspect hello.bin[/bold]
    """
    from orchestrator.egress.inspect import inspect_bytes
    from orchestrator.surface.cli.terminal import print_json_line

    name, reason = inspect_bytes(_read(file))
    print_json_line({"name": name, "reason": reason})
    raise typer.Exit(0 if name is not None else 1)


def _read(file: Path) -> bytes:
    from orchestrator.core.errors import UserError

    try:
        if str(file) == "-":
            return sys.stdin.buffer.read(_HELLO_LIMIT)
        with file.open("rb") as stream:
            return stream.read(_HELLO_LIMIT)
    except OSError as error:
        raise UserError(
            f"cannot read {file}: {error.strerror}", code="file-unreadable", remedy="Name a file that can be read."
        ) from error
