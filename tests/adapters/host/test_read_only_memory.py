"""Who can do what with a template's memory that QEMU opens read-only: tried by real processes of the users that QEMUs run as.

Which QEMU is installed doesn't matter here: a QEMU that a guest has taken over asks the kernel by itself, as these do.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.host.parts import VM_USERS
from orchestrator.host.template_files import BASE, HASHED, RAM, Template, digest_of
from orchestrator.host.template_memory import ReadOnlyMemory

PYTHON = shutil.which("python3", path="/usr/bin:/bin") or ""
"""The system's: a virtual environment may lie where other users can't go."""
pytestmark = [pytest.mark.real, pytest.mark.skipif(not PYTHON, reason="there is no python3 that every user may run")]

USER, GROUP, OTHER_GROUP = VM_USERS + 1, 65534, 65533
_TRY = """
import ctypes, json, mmap, os, sys
def tried(what):
    try: return what() or "done"
    except OSError as error: return error.strerror
ram, write = sys.argv[1], mmap.PROT_READ | mmap.PROT_WRITE
found = {"open to write": tried(lambda: os.open(ram, os.O_RDWR) and None), "delete": tried(lambda: os.unlink(ram)),
    "own": tried(lambda: os.chmod(ram, 0o666))}
try: fd = os.open(ram, os.O_RDONLY)
except OSError as error: found["open"] = error.strerror
else:
    def write_private():
        with mmap.mmap(fd, 4096, flags=mmap.MAP_PRIVATE, prot=write) as own: own[:5] = b"clone"; return own[:5].decode()
    def punch_hole():  # what QEMU does with pages that a guest reports as free
        if ctypes.CDLL(None, use_errno=True).fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(4096)):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    found |= {"private": tried(write_private), "write": tried(lambda: os.pwrite(fd, b"x", 0) and None),
        "shared": tried(lambda: mmap.mmap(fd, 4096, flags=mmap.MAP_SHARED, prot=write) and None),
        "hole": tried(punch_hole), "truncate": tried(lambda: os.ftruncate(fd, 0)), "read": os.pread(fd, 5, 0).decode(),
        "open again": tried(lambda: os.open(f"/proc/self/fd/{fd}", os.O_RDWR) and None)}
print(json.dumps(found))
"""


@pytest.fixture
def ram():
    with tempfile.TemporaryDirectory(prefix="icdt-") as folder:
        Path(folder).chmod(0o711)  # as the templates' own folder
        path = Path(folder) / RAM
        path.write_bytes(b"ofall" + bytes(1 << 20))
        path.chmod(0o666)  # however it was made
        yield path


@pytest.fixture
def given(ram):
    manifest = SimpleNamespace(key="a" * 64, files=dict.fromkeys(HASHED, digest_of(ram)))
    (ram.parent / BASE).touch()
    memory = ReadOnlyMemory(Template(ram.parent, manifest), GROUP)
    with memory.opened(USER, GROUP) as found:
        yield found


def attempt(path: str, group: int) -> dict[str, str]:
    argv = [PYTHON, "-IS", "-c", _TRY, path]
    done = subprocess.run(
        argv, user=USER, group=group, extra_groups=[], cwd="/", capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_a_clones_qemu_may_map_it_and_write_to_its_own_copy_only(given, ram):
    assert (given.path, given.read_only) == (str(ram), True)
    assert attempt(given.path, GROUP) == {
        "private": "clone",
        "read": "ofall",
        "own": "Operation not permitted",
        **dict.fromkeys(("open to write", "open again", "delete", "shared"), "Permission denied"),
        **dict.fromkeys(("write", "hole"), "Bad file descriptor"),
        "truncate": "Invalid argument",
    }
    assert ram.read_bytes()[:5] == b"ofall"


def test_who_is_no_qemu_may_not_even_read_it(given):
    found = attempt(given.path, OTHER_GROUP)
    assert (found["open"], found["open to write"]) == ("Permission denied", "Permission denied")
