"""The ``ironcd`` command.  Exit status: 0 it worked, 1 the machine or a service stands in the way (or a check failed), 2
what was asked for can't be done as asked.

Modules here import the rest of IronCD when a command runs and not before, so that ``ironcd --help`` is quick and a host's
command loads no control plane.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.core.errors import IronCDError


def main() -> None:
    """Run the command, and turn every error into a message, a remedy and a link; a traceback only with IRONCD_DEBUG=1."""
    from orchestrator.core.errors import IronCDError
    from orchestrator.surface.cli.app import app

    try:
        app()
    except IronCDError as error:
        show(error)
        _debug_raise()
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of a pipe has gone (`ironcd jobs list | head`): nothing to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - the last stop before the terminal
        _debug_raise()
        from orchestrator.system.log import redact

        sys.stderr.write(f"error: {type(error).__name__}: {redact(str(error))}\n")
        sys.stderr.write("  remedy: this is a fault in IronCD; set IRONCD_DEBUG=1 to see where, and report it.\n")
        sys.exit(1)


def show(error: IronCDError) -> None:
    from orchestrator.surface.cli.terminal import clean
    from orchestrator.system.log import redact

    first, *rest = redact(error.message).splitlines() or [""]
    lines = [f"error: {clean(first)}", *(f"    {clean(line)}" for line in rest)]
    remedy, *more = redact(error.remedy).splitlines() or [""]
    lines += [f"  remedy: {clean(remedy)}", *(f"    {clean(line)}" for line in more), f"  more: {error.link}"]
    sys.stderr.write("\n".join(lines) + "\n")


def _debug_raise() -> None:
    if os.environ.get("IRONCD_DEBUG"):
        raise  # noqa: PLE0704 - called from the handlers above
