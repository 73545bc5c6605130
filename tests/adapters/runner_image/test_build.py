"""A real build: what it leaves, what it finds again, and what is left of one that was killed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.core.errors import HostError
from runner_image import store
from runner_image.build import build_image
from runner_image.store import Image
from runner_image.tarball import RunnerSource
from tests.adapters.runner_image.conftest import CACHE

pytestmark = pytest.mark.real

BUILD = """
import sys
from pathlib import Path
from runner_image.build import build_image
from runner_image.tarball import RunnerSource
build_image(Path(sys.argv[1]), RunnerSource(*sys.argv[2:]), progress=lambda step: print(step, flush=True))
"""


def test_the_same_recipe_is_found_again_and_not_built(image: Image, runner_source: RunnerSource) -> None:
    steps: list[str] = []
    again = build_image(CACHE, runner_source, name="boot-test", progress=steps.append)
    assert again == image
    assert steps[-1] == f"Using image {image.manifest.digest[:12]}, which is there already"


def test_another_user_can_read_what_qemu_needs(image: Image) -> None:
    for part in ("disk.qcow2", "vmlinuz", "initrd"):
        path = str(image.folder / part)
        done = subprocess.run(
            ["setpriv", "--reuid=65534", "--clear-groups", "head", "-c1", path], capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_presets_are_what_the_package_managers_in_the_image_use(image: Image) -> None:
    presets = image.manifest.presets
    assert set(presets) == {"apt", "node", "pypi"}
    assert presets["apt"]
    assert presets["pypi"]
    assert all("." in host and host == host.lower() for hosts in presets.values() for host in hosts)


def test_the_bill_of_materials_has_every_package(image: Image) -> None:
    packages = {entry["name"]: entry for entry in json.loads((image.folder / "packages.json").read_bytes())}
    assert len(packages) == image.manifest.packages > 150
    assert packages["cloud-init"]["version"] == image.manifest.cloud_init
    assert packages["curl"]["licences"]


def test_cloud_init_in_the_image_is_debians_to_the_byte(image: Image, tmp_path: Path) -> None:
    """Read out of the disk itself, not of what the build says of it."""
    raw = tmp_path / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(image.folder / "disk.qcow2"), str(raw)], check=True)
    listed = read_file(raw, "/var/lib/dpkg/info/cloud-init.md5sums").decode().splitlines()
    kinds = ("cmd/main.py", "cc_write_files.py", "DataSourceNoCloud.py", ".service", "ds-identify")
    files = [line.split("  ", 1) for line in listed if line.endswith(kinds)]
    assert len(files) > len(kinds)
    for digest, name in files:
        assert hashlib.md5(read_file(raw, f"/{name}")).hexdigest() == digest, name


def test_a_tarball_that_is_no_runner_leaves_nothing(tmp_path: Path) -> None:
    bad = tmp_path / "bad.tar.gz"
    bad.write_bytes(b"no tarball")
    source = RunnerSource(str(bad), "0" * 64, "1")
    with pytest.raises(HostError) as caught:
        build_image(tmp_path / "cache", source)
    assert caught.value.code == "runner-digest"
    assert store.list_images(tmp_path / "cache") == []


def test_a_build_that_is_killed_leaves_no_process_and_no_mount(tmp_path: Path, runner_source: RunnerSource) -> None:
    arguments = [runner_source.location, runner_source.sha256, runner_source.version]
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(tmp_path), *arguments], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert any(line.startswith("Installing Debian") for line in process.stdout)
        wait_until(lambda: any(tmp_path.glob("images/.build-*/root.work/*/usr")))
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    wait_until(lambda: not users_of(tmp_path))
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    with store.building(tmp_path):
        assert list(tmp_path.glob("images/.build-*")) == []


def users_of(folder: Path) -> list[str]:
    """The processes that have ``folder`` in their arguments."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if entry.name != str(os.getpid()) and os.fsencode(folder) in (entry / "cmdline").read_bytes():
                found.append(entry.name)
        except OSError:
            continue
    return found


def wait_until(true: object, within_s: float = 300.0) -> None:
    assert callable(true)
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


def read_file(disk: Path, path: str) -> bytes:
    return subprocess.run(["debugfs", "-R", f"cat {path}", str(disk)], check=True, capture_output=True).stdout
