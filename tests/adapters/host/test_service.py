"""The agent as a process: real HTTP, namespace, links and rules; libvirt's in-memory driver; guest and gateway stand in."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from ulid import ULID

from orchestrator.core.flow import Identity
from orchestrator.core.link import GatewayReply, GatewayRequest, Link
from orchestrator.core.machine import MachineClass
from orchestrator.core.names import names_of
from orchestrator.core.policy import Policy, Rule
from orchestrator.core.settings import HostSettings
from orchestrator.core.wire import DesiredRunner
from orchestrator.host.paths import host_paths
from orchestrator.system import netns
from orchestrator.system.process import run
from tests.adapters.host.conftest import new_name
from tests.adapters.host.control_plane import TOKEN, ControlPlane

pytestmark = pytest.mark.real

JIT = "eyJ" + "c2VjcmV0" * 40
POLICY = Policy(
    "enforce", (Rule("builtin#1", host="api.github.com"), Rule("org#1", cidr="203.0.113.0/24", ports=(22,)))
)


class GatewayStandIn(threading.Thread):
    """Answers on the gateway's socket from what is in the links' folder."""

    def __init__(self, folder: Path, path: Path) -> None:
        super().__init__(daemon=True)
        self.folder = folder
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(8)
        self._listener.settimeout(0.1)
        self.ended = False
        self.start()

    def run(self) -> None:
        while not self.ended:
            try:
                link, _ = self._listener.accept()
            except TimeoutError:
                continue
            with link, link.makefile("rwb") as file:
                request = msgspec.json.decode(file.readline(), type=GatewayRequest)
                reply = GatewayReply(ok=True)
                if request.op == "apply":
                    wanted = msgspec.json.decode((self.folder / f"{request.tap}.json").read_bytes(), type=Link)
                    reply = GatewayReply(ok=True, policy=wanted.policy.digest, generation=wanted.generation)
                file.write(msgspec.json.encode(reply) + b"\n")

    def close(self) -> None:
        self.ended = True
        self.join()
        self._listener.close()


class Machine:
    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="icdt-"))
        self.plane = ControlPlane()
        (self.folder / "token").write_text(TOKEN + "\n")
        self.settings = HostSettings(
            name="h1",
            control_url=self.plane.url,
            token_file=str(self.folder / "token"),
            state_dir=str(self.folder / "s"),
            cache_dir=str(self.folder / "c"),
            run_dir=str(self.folder / "r"),
            libvirt_uri="test:///default",
            netns=new_name(),
            reserve_memory_mib=0,
            reserve_disk_gib=0,
        )
        self.paths = host_paths(self.settings)
        (self.folder / "settings.json").write_bytes(msgspec.json.encode(self.settings))
        self._image()
        self.log = self.folder / "log"
        self.guests: list[socket.socket] = []
        self.process: subprocess.Popen[bytes]
        self.gateway: GatewayStandIn | None = None
        self.begin()

    def _image(self) -> None:
        place = self.paths.images / "d1"
        place.mkdir(parents=True)
        run(["qemu-img", "create", "-q", "-f", "qcow2", str(place / "disk.qcow2"), "16M"])
        for part in ("vmlinuz", "initrd"):
            (place / part).write_bytes(b"x")
        facts = {"name": "default", "digest": "sha256:d1", "runner_version": "2.336.0"}
        (place / "manifest.json").write_text(json.dumps(facts))
        (self.paths.images / "default").symlink_to("d1")

    def begin(self) -> None:
        before = len(self.plane.observed)
        with self.log.open("ab") as log:
            argv = [sys.executable, "-m", "orchestrator.host", "--settings", str(self.folder / "settings.json")]
            self.process = subprocess.Popen(argv, stderr=log)
        self.plane.until(lambda: len(self.plane.observed) > before)
        if self.gateway is None:
            self.gateway = GatewayStandIn(self.paths.links, self.paths.gateway_socket)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(60)

    def runner(self) -> DesiredRunner:
        ulid = str(ULID())
        guest = socket.socket(socket.AF_UNIX)  # QEMU's end of the channel, which the in-memory driver doesn't make
        guest.bind(str(self.paths.channels / names_of(ulid).channel))
        guest.listen(1)
        guest.settimeout(60)
        self.guests.append(guest)
        machine = MachineClass("ironcd", vcpus=1, memory_mib=64, disk_gib=1)
        now = time.time()
        return DesiredRunner(
            ulid, "run", machine, Identity(ulid), POLICY, 1, jit=JIT, boot_by=now + 60, end_by=now + 600
        )

    def running(self, wanted: DesiredRunner) -> None:
        self.plane.wish(wanted)
        self.plane.until(lambda: f'"runner": "{wanted.id}", "took"' in self.log.read_text())
        self.plane.until(lambda: self.plane.seen(wanted.id) and self.plane.seen(wanted.id).vm == "running")

    def proved(self, ulid: str) -> bool:
        seen = self.plane.seen(ulid)
        return bool(seen and seen.proof and seen.proof.whole)

    def rules(self) -> str:
        return run(["ip", "netns", "exec", self.settings.netns, "nft", "list", "ruleset"])

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(60)
        finally:
            self.process.kill()
        if self.gateway is not None:
            self.gateway.close()
        for guest in self.guests:
            guest.close()
        self.plane.close()
        netns.delete(self.settings.netns)
        shutil.rmtree(self.folder)


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = Machine()
    try:
        yield made
    finally:
        made.close()


def test_from_wish_to_proof(machine):
    wanted = machine.runner()
    machine.running(wanted)
    names = names_of(wanted.id)
    assert names.chain in machine.rules()
    assert names.tap in run(["ip", "-n", machine.settings.netns, "link", "show", "up"])
    machine.plane.change(wanted.id, wish="gone", reason="job_completed")
    machine.plane.until(lambda: machine.proved(wanted.id))
    assert names.chain not in machine.rules()
    assert names.tap not in run(["ip", "-n", machine.settings.netns, "link", "show"])
    machine.plane.wish(drop=wanted.id)
    machine.plane.until(lambda: machine.plane.seen(wanted.id) is None)
    text = machine.log.read_text()
    assert JIT not in text
    assert TOKEN not in text


def test_what_is_seen_is_told(machine):
    last = machine.plane.observed[-1]
    assert (last.host, last.accelerator in ("", "tcg")) == ("h1", True)
    assert last.capacity.vcpus in (0, os.cpu_count())
    assert last.images[0].digest == "sha256:d1"
    assert last.boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_a_kill_at_any_moment_leaves_a_vm_that_is_found_and_never_made_twice(machine):
    wanted = machine.runner()
    machine.running(wanted)
    machine.kill()  # and with it the in-memory driver's domain
    machine.begin()
    machine.plane.until(lambda: machine.proved(wanted.id))
    assert machine.plane.seen(wanted.id).vm == "crashed"


def test_the_wish_is_on_disk_without_its_secret(machine):
    wanted = machine.runner()
    machine.running(wanted)
    kept = machine.paths.desired.read_bytes()
    assert wanted.id.encode() in kept
    assert JIT.encode() not in kept


def test_another_programs_flush_cuts_the_links_and_is_undone_within_five_seconds(machine):
    wanted = machine.runner()
    machine.running(wanted)
    before = machine.rules()
    run(["ip", "netns", "exec", machine.settings.netns, "nft", "flush", "ruleset"])
    begun = time.monotonic()
    machine.plane.until(lambda: machine.rules().count("chain") == before.count("chain"))
    assert time.monotonic() - begun < 5, "a promise about safety, not about speed"
    machine.plane.until(lambda: any(p.code == "wall-drifted" for p in machine.plane.observed[-1].problems))
    assert names_of(wanted.id).tap in run(["ip", "-n", machine.settings.netns, "link", "show", "up"])
    following = machine.runner()
    run(["ip", "netns", "exec", machine.settings.netns, "nft", "flush", "ruleset"])
    machine.running(following)
    assert machine.plane.seen(following.id).failure is None, "a start that a flush falls into goes on"
    machine.plane.until(lambda: {names_of(one.id).chain for one in (wanted, following)} <= set(machine.rules().split()))


def test_with_the_control_plane_away_the_end_comes_all_the_same(machine):
    wanted = machine.runner()
    machine.running(wanted)
    end_by = time.time() + 2
    machine.plane.change(wanted.id, end_by=end_by)
    machine.plane.until(lambda: str(end_by).encode() in machine.paths.desired.read_bytes())
    machine.plane.away = True
    names = names_of(wanted.id)
    machine.plane.until(lambda: names.chain not in machine.rules() and not (machine.paths.disks / names.disk).exists())
    machine.plane.away = False
    machine.plane.until(lambda: machine.proved(wanted.id))


def test_a_wrong_token_is_said_in_the_log_and_shows_nothing(machine):
    machine.kill()
    (machine.folder / "token").write_text("wrong-token-of-a-host")
    with machine.log.open("ab") as log:
        argv = [sys.executable, "-m", "orchestrator.host", "--settings", str(machine.folder / "settings.json")]
        machine.process = subprocess.Popen(argv, stderr=log)
    machine.plane.until(lambda: "control-refused" in machine.log.read_text())
    assert "wrong-token-of-a-host" not in machine.log.read_text()
    (machine.folder / "token").write_text(TOKEN)
    before = len(machine.plane.observed)
    machine.plane.until(lambda: len(machine.plane.observed) > before)


def test_the_ledger_is_shipped(machine):
    lines = [json.dumps({"seq": seq, "event": "mark"}) for seq in range(1, 8)]
    (machine.paths.ledger / "2026-01-01.jsonl").write_text("".join(line + "\n" for line in lines))
    (machine.paths.ledger / "durable").write_bytes((7).to_bytes(8, "big"))
    machine.plane.until(lambda: len(machine.plane.lines) == 7)
    assert machine.plane.lines == lines


def test_an_idle_agent_loads_no_more_than_it_needs():
    """What a VM escape would find in the agent's process: no Redis client, no web framework, no GitHub client."""
    code = "import sys, orchestrator.host.service; print('\\n'.join(sys.modules))"
    loaded = set(run([sys.executable, "-c", code], env={"PYTHONPATH": os.pathsep.join(sys.path)}).split())
    assert not {"redis", "rq", "fastapi", "githubkit", "uvicorn", "pydantic"} & loaded


def test_settings_that_cant_be_read_are_an_error_with_a_remedy(tmp_path):
    (tmp_path / "settings.json").write_text("{")
    argv = [sys.executable, "-m", "orchestrator.host", "--settings", str(tmp_path / "settings.json")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert "can't read the host's settings" in done.stderr
    assert "Traceback" not in done.stderr
