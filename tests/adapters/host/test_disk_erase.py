"""What is left of a disk's contents on the device: a small file system of the test's own, read back raw after the end.

`unlink` promises nothing about the device, and the test shows it; `discard` and `zero` do, and nothing is found.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.host import erase
from orchestrator.host.qemu_process import unlinked_bytes
from orchestrator.system.process import CommandFailed, run

pytestmark = pytest.mark.real

MARKER = secrets.token_bytes(32)
DISK = 24 << 20


class Small:
    """An ext4 of 64 MiB on a loop device; ``place`` is where it is mounted."""

    def __init__(self, folder: Path) -> None:
        self.device, self.place = folder / "device", folder / "mounted"
        self.place.mkdir()
        with self.device.open("wb") as file:
            file.truncate(64 << 20)
        run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0", str(self.device)])
        run(["mount", "-o", "loop", str(self.device), str(self.place)])

    def disk(self) -> Path:
        """A disk with the marker on every page, flushed to the device."""
        path = self.place / "ironcd-disk.qcow2"
        page = MARKER * (4096 // len(MARKER))
        with path.open("wb") as file:
            file.write(page * (DISK // 4096))
            file.flush()
            os.fsync(file.fileno())
        return path

    def markers(self) -> int:
        """How many there are on the device itself."""
        run(["sync", "-f", str(self.place)])
        descriptor = os.open(self.device, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            return os.pread(descriptor, 64 << 20, 0).count(MARKER)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        run(["umount", str(self.place)])


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Small]:
    try:
        made = Small(tmp_path)
    except CommandFailed as error:
        pytest.skip(f"no loop device can be mounted here: {error.message}")
    yield made
    made.close()


@pytest.mark.parametrize("how", ["discard", "zero"])
def test_nothing_survives_where_it_is_promised(small, how):
    path = small.disk()
    assert small.markers() == DISK // len(MARKER)
    assert erase.problem(small.place, how) is None
    erase.erase(path, how)
    assert not path.exists()
    assert small.markers() == 0


def test_unlink_frees_the_blocks_and_promises_no_more(small):
    path = small.disk()
    free = os.statvfs(small.place).f_bfree
    with path.open("rb"):
        erase.erase(path, "unlink")
        assert not path.exists()
        assert os.statvfs(small.place).f_bfree == free, "whoever has it open, has it"
    run(["sync", "-f", str(small.place)])
    assert os.statvfs(small.place).f_bfree > free
    assert small.markers() > 0, "if nothing were left, unlink would promise as much as zero"


def test_an_end_that_was_cut_short_is_done_again(small, monkeypatch):
    path = small.disk()

    def refuse(*_args: object) -> None:
        raise OSError(5, "the device doesn't answer")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", refuse)
        with pytest.raises(OSError, match="doesn't answer"):
            erase.erase(path, "zero")
    assert path.exists(), "the name is the debt"
    erase.erase(path, "zero")
    assert small.markers() == 0


def test_holes_are_not_filled(small):
    path = small.place / "ironcd-sparse.qcow2"
    with path.open("wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 30)
        file.write(MARKER * 128)
    erase.erase(path, "zero")
    assert small.markers() == 0


def test_what_isnt_there_is_erased(small):
    erase.erase(small.place / "none", "zero")


def test_disks_without_a_name_are_counted_as_long_as_they_are_open(small, tmp_path):
    path = small.disk()
    pids = tmp_path / "pids"
    pids.mkdir()
    (pids / "ironcd-x.pid").write_text(str(os.getpid()))
    with path.open("rb"):
        assert unlinked_bytes(small.place, pids=pids) == 0
        path.unlink()
        assert unlinked_bytes(small.place, pids=pids) >= DISK
    assert unlinked_bytes(small.place, pids=pids) == 0
