"""The worker's process: ``python -m orchestrator.surface.worker --settings FILE``.

`orchestrator.control.worker` does the work; this hands it the presets, which are data of their own, and the record of
egress, which another plane keeps.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import structlog

from orchestrator.control.worker import run
from orchestrator.core.errors import IronCDError
from orchestrator.surface.app import read_settings
from orchestrator.surface.blocked import BlockedInRecord
from orchestrator.system import log
from policies import load_presets

_log = structlog.get_logger()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.surface.worker")
    parser.add_argument("--settings", type=Path, required=True, help="ControlSettings as JSON")
    arguments = parser.parse_args()
    log.configure("worker")
    try:
        settings, presets = read_settings(arguments.settings), load_presets()
        run(settings, presets, BlockedInRecord(Path(settings.state_dir) / "audit", presets))
    except IronCDError as error:
        _log.error("worker_ended", **error.as_dict())
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
