"""Opening a device node to QEMU's group, on a real file system and as the real user."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from orchestrator.host.accelerator import open_to_group

PYTHON = shutil.which("python3", path="/usr/bin:/bin") or ""
"""The system's: a virtual environment may lie where other users can't go."""
pytestmark = [pytest.mark.real, pytest.mark.skipif(not PYTHON, reason="there is no python3 that every user may run")]


@pytest.fixture
def device():
    folder = Path(tempfile.mkdtemp(prefix="icdt-"))
    folder.chmod(0o711)
    made = folder / "kvm"
    made.touch()
    made.chmod(0o660)
    yield made
    shutil.rmtree(folder)


def _opens(path: Path, uid: int, gid: int) -> bool:
    code = f"import os\ntry: os.open({str(path)!r}, os.O_RDWR)\nexcept PermissionError: print('refused')"
    argv = [PYTHON, "-IS", "-c", code]
    done = subprocess.run(argv, user=uid, group=gid, extra_groups=[], cwd="/", capture_output=True, check=True)
    return not done.stdout


def test_a_user_of_the_group_can_open_it_and_another_cant(device):
    assert not _opens(device, 1_990_000_001, 64055)
    if not open_to_group(64055, device):
        pytest.skip("this file system takes no access lists")
    assert _opens(device, 1_990_000_001, 64055)
    assert not _opens(device, 1_990_000_001, 64056)
    assert open_to_group(64055, device)


def test_a_device_that_is_open_to_all_is_left_as_it_is(device):
    device.chmod(0o666)
    assert open_to_group(64055, device)
    with pytest.raises(OSError):
        os.getxattr(device, "system.posix_acl_access")
