"""Who can do what with a sealed memory: tried by real processes of the users that QEMUs run as."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.host.parts import VM_USERS
from orchestrator.host.template_files import RAM, Template, digest_of
from orchestrator.host.template_memory import SealedMemory

PYTHON = shutil.which("python3", path="/usr/bin:/bin") or ""
"""The system's: a virtual environment may lie where other users can't go."""
pytestmark = [pytest.mark.real, pytest.mark.skipif(not PYTHON, reason="there is no python3 that every user may run")]

GROUP = 65534
OWN, OTHER = VM_USERS + 1, VM_USERS + 2
_TRY = """
import ctypes, json, mmap, os, sys
def tried(what):
    try: return what() or "done"
    except (OSError, ValueError) as error: return type(error).__name__
found = {}
try: fd = os.open(sys.argv[1], os.O_RDWR)
except OSError as error: found["open"] = type(error).__name__
else:
    private = mmap.mmap(fd, 4096, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    def punch_hole():  # what QEMU does with pages that a guest reports as free
        if ctypes.CDLL(None, use_errno=True).fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(4096)):
            raise OSError(ctypes.get_errno(), "fallocate")
    def write_private(): private[:5] = b"clone"; return private[:5].decode()
    found = {"open": "done", "private": tried(write_private), "write": tried(lambda: os.pwrite(fd, b"x", 0) and None),
        "shared": tried(lambda: mmap.mmap(fd, 4096, flags=mmap.MAP_SHARED, prot=mmap.PROT_WRITE) and None),
        "hole": tried(punch_hole), "truncate": tried(lambda: os.ftruncate(fd, 0)), "read": os.pread(fd, 5, 0).decode()}
print(json.dumps(found))
"""


@pytest.fixture
def memory(tmp_path: Path):
    (tmp_path / RAM).write_bytes(b"ofall" + bytes(1 << 20))
    manifest = SimpleNamespace(key="a" * 64, files={RAM: digest_of(tmp_path / RAM)})
    made = SealedMemory(Template(tmp_path, manifest))
    yield made
    made.close()


def attempt(path: str, user: int) -> dict[str, str]:
    argv = [PYTHON, "-IS", "-c", _TRY, path]
    done = subprocess.run(
        argv, user=user, group=GROUP, extra_groups=[], cwd="/", capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_a_clones_qemu_may_map_it_and_write_to_its_own_copy_only(memory):
    with memory.opened(OWN, GROUP) as given:
        found = attempt(given.path, OWN)
    assert found == {
        "open": "done",
        "private": "clone",
        "read": "ofall",
        **dict.fromkeys(("write", "shared", "hole", "truncate"), "PermissionError"),
    }


def test_another_machines_qemu_may_not_even_open_it(memory):
    with memory.opened(OWN, GROUP) as given:
        assert attempt(given.path, OTHER) == {"open": "PermissionError"}


def test_once_the_machine_is_started_nobody_holds_it_open_for_others(memory):
    with memory.opened(OWN, GROUP) as given:
        pass
    assert attempt(given.path, OWN)["open"] in ("FileNotFoundError", "PermissionError")
    assert not Path(given.path).exists()
