"""Step states and logs, sent behind the job's back in the order they came: as with the real runner, no step waits for them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from .client import HttpError

Action = Callable[[], object]


class Later:
    """``complain`` is told of what failed.  Not to be used any more after `finish`."""

    def __init__(self, complain: Callable[[str], None]) -> None:
        self._complain = complain
        self._waiting: queue.SimpleQueue[tuple[str, Action] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def do(self, what: str, action: Action) -> None:
        self._waiting.put((what, action))

    def finish(self) -> None:
        """Returns when all is done."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (task := self._waiting.get()) is not None:
            attempt(*task, self._complain)


def attempt(what: str, action: Action, complain: Callable[[str], None]) -> None:
    """Logs and states are a service to the reader: where they can't be sent the job goes on."""
    try:
        action()
    except (OSError, HttpError) as error:
        complain(f"Sending the {what} failed: {error}")
