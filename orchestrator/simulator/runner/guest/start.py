"""Starts the listener in the folder that the runner was unpacked into."""

from __future__ import annotations

import sys
from pathlib import Path

from .listener import main


def start(root: str) -> None:
    """Run the command line and end the process with its status."""
    sys.exit(main(sys.argv[1:], Path(root)))
