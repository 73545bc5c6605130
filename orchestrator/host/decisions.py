"""What people decided of this host, kept on its disk for a control plane that forgets (`orchestrator.core.decided`).

The host does nothing by it: whom it is given is the control plane's to decide.  A decision goes only by a later one, never
by a control plane that says none.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import structlog

from orchestrator.core.decided import Decided, later
from orchestrator.core.errors import HostError
from orchestrator.host.record import Records

log = structlog.get_logger()


class Decisions:
    def __init__(self, path: Path, records: Records) -> None:
        self._path = path
        self._records = records
        self._kept: Decided | None = None
        """What is on the disk; None where nothing is, or something else."""
        self.known = Decided()

    def load(self) -> None:
        try:
            self.known = self._kept = msgspec.json.decode(self._path.read_bytes(), type=Decided)
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("decisions_unreadable", error=str(error))

    def hear(self, said: Decided) -> bool:
        """Take in what the control plane says; True where that changes what is known.  What can't be kept is tried again."""
        before, self.known = self.known, later(self.known, said)
        if self.known != self._kept and self.known != Decided():
            try:
                self._records.write(self._path, msgspec.json.encode(self.known))
                self._kept = self.known
            except HostError as error:
                log.warning("decisions_unsaved", error=error.message)
        return self.known != before
