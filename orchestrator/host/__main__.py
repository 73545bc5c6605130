"""``python -m orchestrator.host --settings FILE``: the host agent's process."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType

import msgspec

from orchestrator.core.errors import ConfigurationError, IronCDError
from orchestrator.core.settings import HostSettings
from orchestrator.host.service import Service
from orchestrator.system import log


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.host", description=__doc__)
    parser.add_argument("--settings", type=Path, required=True, help="HostSettings as JSON")
    arguments = parser.parse_args()
    log.configure("agent")
    try:
        service = Service(_settings(arguments.settings))
    except IronCDError as error:
        print(f"{error.message}\n  {error.remedy}", file=sys.stderr)  # noqa: T201 - for the person who started it
        return error.exit_status

    def stop(_signal: int, _frame: FrameType | None) -> None:
        service.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    service.run()
    return 0


def _settings(path: Path) -> HostSettings:
    try:
        return msgspec.json.decode(path.read_bytes(), type=HostSettings)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigurationError(
            f"can't read the host's settings from {path}: {error}",
            code="settings-invalid",
            remedy="`ironcd up` writes this file; see docs/operations for its keys.",
        ) from error


if __name__ == "__main__":
    sys.exit(main())
