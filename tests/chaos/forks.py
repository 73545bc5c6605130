"""A process that is a copy of this one, for what must not be seen here: another time, a sabotage."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path


def forked(work: Callable[[], bytes], into: Path) -> int:
    """Start a copy of this process that writes what ``work`` gives to ``into``; its number.  It ends with 1 where that fails."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        into.write_bytes(work())
        status = 0
    except BaseException:  # noqa: BLE001 - whatever it is, it goes to the parent and ends here
        into.write_text(traceback.format_exc())
    finally:
        os._exit(status)


def in_a_fork(work: Callable[[], bytes]) -> bytes:
    """What ``work`` gives in a copy of this process.  Raises RuntimeError where it raises."""
    with tempfile.NamedTemporaryFile(prefix="ironcd-fork-") as file:
        _, status = os.waitpid(forked(work, Path(file.name)), 0)
        answer = Path(file.name).read_bytes()
    if status:
        raise RuntimeError(answer.decode())
    return answer
