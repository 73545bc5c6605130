"""Files that are whole or not there: written beside their place, flushed, and moved into it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_TAIL = 1 << 16


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600, owner: tuple[int, int] | None = None) -> None:
    """Replace ``path`` with ``data``; a reader, or a crash, sees the old content or the new, and never a part.

    ``owner``: user and group id that it is given, where they aren't this process's own.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if owner is not None and owner != (os.geteuid(), os.getegid()):
                os.fchown(file.fileno(), *owner)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    sync_folder(path.parent)


def append_line(path: Path, line: bytes) -> None:
    """Append ``line``, which ends in a newline, and bring it to the disk: whole, or not at all.  For one writer.

    What a process that died left of its last line is cut off first: it would spoil this one.  Raises OSError.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        end = _whole_length(descriptor)
        try:
            os.ftruncate(descriptor, end)
            view, at = memoryview(line), end
            while view:
                written = os.pwrite(descriptor, view, at)
                view, at = view[written:], at + written
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, end)
            raise
    finally:
        os.close(descriptor)


def _whole_length(descriptor: int) -> int:
    """Where the last whole line ends."""
    end = os.fstat(descriptor).st_size
    while end:
        begin = max(0, end - _TAIL)
        newline = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        end = begin
    return 0


@contextlib.contextmanager
def folder_locked(path: Path, *, wait_s: float = 10.0) -> Iterator[None]:
    """Nobody else who asks for the lock of the folder ``path`` has it in this block; it leaves no file behind.

    Raises TimeoutError where somebody keeps it for longer than ``wait_s``.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        ends = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= ends:
                    raise TimeoutError(f"{path} is locked by another process") from None
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Make renames and removals in ``path`` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
