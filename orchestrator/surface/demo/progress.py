"""Progress for people: a spinner on a terminal, plain lines elsewhere, and how long each step took."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status

from orchestrator.surface.cli.terminal import clean, seconds


class Progress:
    """Prints to standard error, so that what a command prints to standard output stays its own."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, markup=False, soft_wrap=not sys.stderr.isatty())
        self._status: Status | None = None

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """One step: announced, and confirmed with its duration, or marked as failed where the block raises."""
        began = time.monotonic()
        if self.console.is_terminal:
            self._status = self.console.status(clean(text))
            self._status.start()
        else:
            self.console.print(f"... {clean(text)}")
        try:
            yield
        except BaseException:
            self._end(f"FAILED {clean(text)}  {seconds(time.monotonic() - began)}", "red")
            raise
        self._end(f"ok  {clean(text)}  {seconds(time.monotonic() - began)}", "")

    def say(self, text: str, *, style: str = "") -> None:
        self.console.print(f"    {clean(text)}", style=style or None)

    def update(self, text: str) -> None:
        """What the present step is at; on a terminal only."""
        if self._status is not None:
            self._status.update(clean(text))

    def _end(self, line: str, style: str) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None
        self.console.print(line, style=style or None)
