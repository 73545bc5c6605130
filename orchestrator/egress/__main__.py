"""``python -m orchestrator.egress --settings FILE``: the gateway's process."""

from __future__ import annotations

import argparse
import gc
import resource
import sys
from pathlib import Path

import msgspec
import structlog
import uvloop

from orchestrator.core.errors import IronCDError
from orchestrator.core.settings import HostSettings
from orchestrator.egress.service import run
from orchestrator.system import log

MAX_FILES = 1 << 20


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.egress", description=__doc__)
    parser.add_argument("--settings", type=Path, required=True, help="JSON file of HostSettings")
    arguments = parser.parse_args()
    log.configure("gateway")
    logger = structlog.get_logger()
    try:
        settings = msgspec.json.decode(arguments.settings.read_bytes(), type=HostSettings)
        _raise_file_limit()
        # What was made up to here stays, and a session leaves nothing for the collector: it need not look often.
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        uvloop.run(run(settings))
    except IronCDError as error:
        logger.error("gateway_ended", **error.as_dict())  # noqa: TRY400 - the message says it
        return error.exit_status
    except (OSError, msgspec.MsgspecError):
        logger.exception("gateway_ended", code="gateway-failed")
        return 1
    return 0


def _raise_file_limit() -> None:
    """A flow takes two descriptors, and two more while bytes are in a pipe."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (MAX_FILES, hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, hard)))
        except (ValueError, OSError):  # not root: what is allowed must do
            continue
        return


if __name__ == "__main__":
    sys.exit(main())
