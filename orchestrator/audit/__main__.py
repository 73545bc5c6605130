"""``python -m orchestrator.audit --folder FOLDER [--retention JSON]``: seal what is over, then delete what needn't be kept."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import msgspec
import structlog

from orchestrator.audit.engine import Engine
from orchestrator.audit.retain import retain
from orchestrator.audit.seal import seal_all
from orchestrator.core.errors import IronCDError
from orchestrator.core.retention import Retention
from orchestrator.system import log as logging

NICE = 10
log = structlog.get_logger()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.audit")
    parser.add_argument("--folder", type=Path, required=True, help="of the control plane's record")
    parser.add_argument("--retention", default="", help="Retention as JSON; without it nothing is deleted")
    arguments = parser.parse_args()
    logging.configure("record")
    os.nice(NICE)
    engine = Engine(arguments.folder, threads=1)
    try:
        sealed = seal_all(arguments.folder, engine, time.time())
        if sealed:
            log.info("days_sealed", days=sealed)
        if arguments.retention:
            retention = msgspec.json.decode(arguments.retention, type=Retention)
            for done in retain(arguments.folder, engine, retention, time.time()):
                log.info("records_deleted", **msgspec.to_builtins(done))
    except IronCDError as error:
        log.error("record_not_tended", **error.as_dict())  # noqa: TRY400 - the error says it all
        return error.exit_status
    finally:
        engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
