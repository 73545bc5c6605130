"""Following the record for the ``ironcd`` command: goes on where it was when the control plane comes back, and from run to run.

SIGTERM and SIGINT end it between two messages, so that the place file says what was printed and nothing comes twice.  Only
a kill can come between the printing of a message and its place: then that message's events come once more.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from orchestrator.core.errors import OperationalError, UserError
from orchestrator.surface.api_client import ApiClient
from orchestrator.system.files import write_atomic

_WAITS_S = (0.5, 1.0, 2.0, 5.0)
"""Between attempts to reach a control plane that is away; the last one again and again."""

Asked = dict[str, str | int | float | None]


class Stop:
    """Ends the command when a signal asks for it: at once where it waits, else when a message is done."""

    def __init__(self) -> None:
        self._busy = False
        self._asked: BaseException | None = None

    def listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self)

    def __call__(self, number: int, _frame: object = None) -> None:
        self._asked = KeyboardInterrupt() if number == signal.SIGINT else SystemExit(0)
        if not self._busy:
            raise self._asked

    @contextlib.contextmanager
    def later(self) -> Iterator[None]:
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
        if self._asked is not None:
            raise self._asked


def follow_events(
    client: ApiClient,
    asked: Asked,
    take: Callable[[dict[str, Any]], None],
    place_file: Path | None = None,
    *,
    stop: Stop | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> NoReturn:
    """Have ``take`` take each event that matches ``asked``, those that there are and then each new one.

    Raises OperationalError where the control plane can't be reached at first, and UserError for a place that isn't one.
    """
    stop = stop or Stop()
    place = _remembered(place_file)
    failures = 0
    reached = False
    while True:
        try:
            for new_place, data in client.stream("egress", {**asked, "follow": "true", "after": place or None}):
                reached, failures = True, _back(failures)
                with stop.later():
                    for event in msgspec.json.decode(data) if data else ():
                        take(event)
                    if new_place != place:
                        place = new_place
                        _remember(place_file, place)
        except OperationalError as error:
            if not reached:
                raise
            if not failures:
                sys.stderr.write(f"warning: {error.message}; trying again\n")
        sleep(_WAITS_S[min(failures, len(_WAITS_S) - 1)])
        failures += 1


def _back(failures: int) -> int:
    if failures:
        sys.stderr.write("the control plane is back\n")
    return 0


def _remembered(file: Path | None) -> str:
    try:
        return file.read_text(encoding="ascii").strip() if file is not None else ""
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--place-file {file} can't be read: {error}", code="file-unreadable", remedy="Name a file of its own."
        ) from error


def _remember(file: Path | None, place: str) -> None:
    if file is None:
        return
    try:
        write_atomic(file, place.encode("ascii") + b"\n")
    except OSError as error:
        raise UserError(
            f"--place-file {file} can't be written: {error.strerror}",
            code="file-unreadable",
            remedy="Name a file in a folder that you may write to.",
        ) from error
