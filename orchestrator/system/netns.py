"""Network namespaces: make one, and open sockets in one while the process lives in another.

A socket belongs for life to the namespace of the thread that created it.  `inside` moves the calling thread for the
length of a ``with`` block; nothing may be awaited in it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.core.errors import HostError
from orchestrator.system.process import run

_CLONE_NEWNET = 0x40000000
_FOLDER = Path("/run/netns")
_libc = ctypes.CDLL(None, use_errno=True)


def exists(name: str) -> bool:
    return (_FOLDER / name).exists()


def create(name: str) -> None:
    """Make the namespace ``name`` with its loopback up; nothing happens where it exists."""
    if not exists(name):
        run(["ip", "netns", "add", name])
    run(["ip", "-n", name, "link", "set", "lo", "up"])


def delete(name: str) -> None:
    """Delete the namespace ``name``; nothing happens where there is none."""
    if exists(name):
        run(["ip", "netns", "del", name])


def enter(name: str) -> None:
    """Move the calling thread into ``name`` for good; an empty name is the present one.

    Raises HostError (code ``netns-missing``) where it doesn't exist.
    """
    if not name:
        return
    try:
        descriptor = os.open(_FOLDER / name, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise HostError(
            f"network namespace {name!r} doesn't exist",
            code="netns-missing",
            remedy="Start the host agent, which makes it.",
        ) from error
    try:
        _setns(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Run the block with the calling thread in namespace ``name``; an empty name changes nothing."""
    if not name:
        yield
        return
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(name)
        try:
            yield
        finally:
            _setns(home)
    finally:
        os.close(home)


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
