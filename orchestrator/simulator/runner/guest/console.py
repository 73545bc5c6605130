"""What the runner says: the real one's lines on standard output, its troubles on standard error."""

from __future__ import annotations

import sys
import time


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def stamp(text: str) -> None:
    """Say ``text`` with the time in front of it, as the real runner does for what it does next."""
    say(f"{time.strftime('%Y-%m-%d %H:%M:%SZ', time.gmtime())}: {text}")


def complain(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
