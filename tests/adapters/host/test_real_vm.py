"""A real VM behind a real wall and a real gateway: booted, its agent killed and started again, its seed taken, its QEMU killed.

One boot shows it all, since a boot under emulation is what takes the time.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from ulid import ULID

from orchestrator.core.flow import Identity
from orchestrator.core.machine import MachineClass
from orchestrator.core.names import names_of
from orchestrator.core.policy import Policy, Rule
from orchestrator.core.settings import HostSettings
from orchestrator.core.wire import DesiredRunner
from orchestrator.host.images import list_images
from orchestrator.host.paths import host_paths
from orchestrator.system import netns
from tests.adapters.host.conftest import new_name
from tests.adapters.host.control_plane import TOKEN, ControlPlane
from tests.adapters.host.test_hypervisor import pid_of

pytestmark = [pytest.mark.real, pytest.mark.e2e]

CACHE = Path(os.environ.get("IRONCD_TEST_CACHE", "/var/cache/ironcd"))
JIT = base64.b64encode(json.dumps({".runner": base64.b64encode(b'{"agentName": "x"}').decode() * 8}).encode()).decode()
POLICY = Policy("enforce", (Rule("builtin#1", host="api.github.com"),))
BOOT_S = 240.0


class Machine:
    """Agent and gateway as processes, with the image that this machine has."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="icdt-"))
        self.folder.chmod(0o711)
        self.plane = ControlPlane()
        (self.folder / "token").write_text(TOKEN)
        self.settings = HostSettings(
            name="h1",
            control_url=self.plane.url,
            token_file=str(self.folder / "token"),
            state_dir=str(self.folder / "s"),
            cache_dir=str(CACHE),
            run_dir=str(self.folder / "r"),
            allow_emulation=True,
            netns=new_name(),
            upstream_dns=("127.0.0.1",),
            reserve_memory_mib=0,
            reserve_disk_gib=0,
        )
        self.paths = host_paths(self.settings)
        (self.folder / "settings.json").write_bytes(msgspec.json.encode(self.settings))
        self.log = self.folder / "log"
        self.processes: list[subprocess.Popen[bytes]] = []
        netns.create(self.settings.netns)
        self.agent = self.begin("orchestrator.host")
        self.plane.until(lambda: self.plane.observed)
        self.begin("orchestrator.egress")

    def begin(self, module: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            argv = [sys.executable, "-m", module, "--settings", str(self.folder / "settings.json")]
            process = subprocess.Popen(argv, stderr=log)
        self.processes.append(process)
        return process

    def seen(self, ulid: str):
        return self.plane.seen(ulid)

    def marked(self, ulid: str, mark: str, seconds: float) -> None:
        def reached() -> bool:
            seen = self.seen(ulid)
            assert seen is None or seen.failure is None, seen.failure
            return seen is not None and mark in seen.marks

        self.plane.until(reached, seconds)

    def proved(self, ulid: str) -> bool:
        seen = self.seen(ulid)
        return bool(seen and seen.proof and seen.proof.whole)

    def files(self) -> Iterator[Path]:
        for folder in (self.folder / "s", self.folder / "r"):
            yield from (path for path in folder.rglob("*") if path.is_file())

    def close(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
        self.plane.close()
        netns.delete(self.settings.netns)
        shutil.rmtree(self.folder)


@pytest.fixture
def machine() -> Iterator[Machine]:
    if not list_images(CACHE / "images"):
        pytest.skip(f"no image in {CACHE}: build one with `ironcd image build`")
    made = Machine()
    try:
        yield made
    finally:
        for ulid in list(made.plane.runners):  # nothing stays, whatever went wrong
            made.plane.change(ulid, wish="gone")
            deadline = time.monotonic() + 60
            while not made.proved(ulid) and time.monotonic() < deadline:
                time.sleep(0.1)
        made.close()


def test_one_vm_from_its_start_to_its_proof(machine):
    image = list_images(CACHE / "images")[0].name
    ulid, now = str(ULID()), time.time()
    names = names_of(ulid)
    size = MachineClass("ironcd", vcpus=1, memory_mib=1024, disk_gib=8, image=image, start="cold")
    wanted = DesiredRunner(
        ulid, "run", size, Identity(ulid, org="acme"), POLICY, 1, jit=JIT, boot_by=now + 300, end_by=now + 900
    )
    machine.plane.wish(wanted)
    machine.plane.until(lambda: machine.seen(ulid) and machine.seen(ulid).vm == "running")
    seed = machine.paths.seeds / names.seed
    assert seed.stat().st_mode & 0o077 == 0
    machine.plane.until(lambda: not (machine.paths.disks / names.disk).exists())  # its name goes once QEMU has it open
    assert JIT not in Path(f"/proc/{pid_of(names.domain)}/cmdline").read_text()

    machine.agent.send_signal(signal.SIGKILL)
    machine.agent.wait(60)
    machine.agent = machine.begin("orchestrator.host")
    machine.marked(ulid, "guest_hello", BOOT_S)
    machine.marked(ulid, "jit_taken", BOOT_S)
    machine.marked(ulid, "seed_gone", 90)
    assert not seed.exists()
    machine.marked(ulid, "runner_started", 90)
    assert [path for path in machine.files() if JIT.encode() in path.read_bytes()] == []

    os.kill(pid_of(names.domain), signal.SIGKILL)
    machine.plane.until(lambda: machine.seen(ulid).vm == "crashed")
    machine.plane.until(lambda: machine.proved(ulid))
    assert machine.seen(ulid).failure.code == "vm-crashed"
    assert JIT not in machine.seen(ulid).failure.console
    machine.plane.wish(drop=ulid)
    machine.plane.until(lambda: machine.seen(ulid) is None)
    assert not [path for path in machine.files() if names.domain in path.name]
