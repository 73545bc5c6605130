"""An agent in this process with real libvirt, QEMU, namespace and packet filter, whose machines start from templates.

The seed of each machine has a command more than the agent's: it prints what the machine is, for the tests to compare.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from ulid import ULID

from orchestrator.core.flow import Identity
from orchestrator.core.machine import MachineClass
from orchestrator.core.names import names_of
from orchestrator.core.policy import Policy, Rule
from orchestrator.core.settings import HostSettings
from orchestrator.core.wire import Desired, DesiredRunner, ObservedRunner
from orchestrator.host.accelerator import Choice
from orchestrator.host.agent import Agent
from orchestrator.host.channels import Channels
from orchestrator.host.fakes import FakeGateway
from orchestrator.host.hypervisor import Libvirt
from orchestrator.host.links import Links, make_namespace
from orchestrator.host.nft import LibNft
from orchestrator.host.parts import Parts
from orchestrator.host.paths import host_paths, make_folders
from orchestrator.host.record import Records
from orchestrator.host.slots import Slots
from orchestrator.host.wall import Wall
from orchestrator.system import netns
from tests.adapters.host.conftest import PORTS, new_name

POLICY = Policy("enforce", (Rule("builtin#1", host="api.github.com"),))
TEMPLATE_S = 600.0
CLONE_S = 300.0

_FACTS = """
import glob, json, os, subprocess, time
def read(path):
    try: return open(path).read().strip()
    except OSError as error: return repr(error)
def say(text):
    with open("/dev/ttyS0", "w") as console: console.write(text + "\\r\\n")
def ask(*argv): return subprocess.run(argv, capture_output=True, text=True).stdout.strip()
mark = "WRITTEN-" + "BY-" + read("/etc/hostname")
for path in ("/dev/shm/mark", "/var/tmp/mark", "/usr/lib/ironcd/image.json"):
    with open(path, "a") as file: file.write(mark)
made_up = "rehear" + "sal"
places = ("/etc", "/run", "/tmp", "/var/tmp", "/var/log", "/var/lib/cloud", "/home", "/opt", "/root")
say("FACTS " + json.dumps({
    "machine_id": read("/etc/machine-id"), "boot_id": read("/proc/sys/kernel/random/boot_id"), "hostname": os.uname()[1],
    "random": os.getrandom(16).hex(), "uuid": read("/proc/sys/kernel/random/uuid"),
    "ssh": sorted(glob.glob("/etc/ssh/ssh_host_*")), "instance": read("/run/cloud-init/.instance-id"),
    "link": json.loads(ask("ip", "-j", "addr", "show", "eth0"))[0], "route": ask("ip", "route"),
    "resolv": read("/etc/resolv.conf"), "image": read("/usr/lib/ironcd/image.json"),
    "rehearsed": [made_up in read("/proc/mounts"), ask("grep", "-rlsF", "-D", "skip", made_up, *places)]}))
for _ in range(20):
    say("CLOCK %d %d" % (time.time_ns(), time.monotonic_ns()))
    time.sleep(0.05)
for other in ("/dev/shm/mark", "/var/tmp/mark"):
    assert read(other) == mark, read(other)
with open("/run/systemd/system/pid1.service", "w") as unit:
    unit.write("[Service]\\nType=oneshot\\nExecStart=/bin/sh -c 'echo %m >/run/pid1'\\n")
ask("systemctl", "start", "pid1.service")
deadline = time.time() + 120
while not glob.glob("/run/log/journal/*") and time.time() < deadline: time.sleep(0.2)
say("LATER " + json.dumps({"journal": os.listdir("/run/log/journal"),
    "pid1": read("/run/pid1")}))
"""


class CloneLab:
    def __init__(self, cache: Path, machine: MachineClass, templates: Path | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="icdt-"))
        self.folder.chmod(0o711)
        self.machine = machine
        self.settings = HostSettings(
            name="h1",
            state_dir=str(self.folder / "s"),
            cache_dir=str(cache),
            run_dir=str(self.folder / "r"),
            templates_dir=str(templates or ""),
            netns=new_name(),
            reserve_memory_mib=0,
            reserve_disk_gib=0,
        )
        self.paths = host_paths(self.settings)
        make_folders(self.paths)
        self._thread = make_namespace(self.settings.netns)
        self.parts = Parts(
            settings=self.settings,
            paths=self.paths,
            hypervisor=Libvirt("qemu:///system", self.settings.netns),
            wall=Wall(self._thread, self._thread.call(LibNft), PORTS),
            wires=Links(self._thread),
            gateway=FakeGateway(self.paths.links),
            slots=Slots(self.settings.links_range),
            records=Records(self.paths.records),
        )
        self.parts.qemu_group = self.parts.hypervisor.group()
        self.agent = Agent(self.parts, Choice("tcg", "a test"))
        self.channels = Channels(self.agent.heard, self.agent.channel_lost)
        self.parts.talk = self.channels
        self.agent.begin()
        self.wishes: dict[str, DesiredRunner] = {}
        self.jits: list[str] = []
        self._generation = 0
        self._ended = threading.Event()
        self._turns = threading.Thread(target=self._turn, daemon=True)
        self._turns.start()
        self.tell()

    def _turn(self) -> None:
        while not self._ended.is_set():
            self.agent.wake.wait(0.2)
            self.agent.wake.clear()
            self.agent.turn()

    def tell(self) -> None:
        self._generation += 1
        self.agent.wished(Desired("h1", self._generation, tuple(self.wishes.values()), (self.machine,)))

    def wish(self, ulid: str = "") -> str:
        ulid, now = ulid or str(ULID()), time.time()
        jit = base64.b64encode(json.dumps({".runner": base64.b64encode(os.urandom(900)).decode()}).encode()).decode()
        self.wishes[ulid] = DesiredRunner(
            ulid,
            "run",
            self.machine,
            Identity(ulid, org="acme"),
            POLICY,
            1,
            jit=jit,
            boot_by=now + 300,
            end_by=now + 900,
        )
        self.jits.append(jit)
        self.tell()
        return ulid

    def end(self, ulid: str) -> None:
        self.wishes[ulid] = msgspec.structs.replace(self.wishes[ulid], wish="gone", jit="")
        self.tell()
        self.until(lambda: (proof := self.seen(ulid).proof) is not None and proof.whole, 120)

    def keep_waiting(self, warm: int) -> None:
        """Have so many machines wait."""
        self.machine = msgspec.structs.replace(self.machine, warm=warm)
        self.tell()

    def seen(self, ulid: str) -> ObservedRunner:
        found = [runner for runner in self.agent.observe().runners if runner.id == ulid]
        return found[0] if found else ObservedRunner(ulid, "absent")

    def until(self, what: Callable[[], object], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, self.agent.observe()
            time.sleep(0.02)

    def ready(self) -> None:
        self.until(lambda: any(seen.state == "ready" for seen in self.agent.observe().templates), TEMPLATE_S)

    def console(self, ulid: str) -> str:
        try:
            return (self.paths.consoles / f"{names_of(ulid).domain}.log").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def said(self, ulid: str, word: str) -> list[str]:
        """What the machine printed behind ``word``, without a last line that isn't whole."""
        lines = self.console(ulid).split("\n")[:-1]
        return [line.partition(word + " ")[2].strip() for line in lines if line.startswith(word + " ")]

    def close(self) -> None:
        self.machine = msgspec.structs.replace(self.machine, warm=0)
        for ulid in list(self.wishes):
            self.wishes[ulid] = DesiredRunner(ulid, "gone", self.machine, Identity(ulid), POLICY, 1)
        self.tell()
        deadline = time.monotonic() + 120
        while self.agent.pool.ids() and time.monotonic() < deadline:
            time.sleep(0.05)
        while (
            any(not (s.proof and s.proof.whole) for s in self.agent.observe().runners) and time.monotonic() < deadline
        ):
            time.sleep(0.05)
        self._ended.set()
        self._turns.join()
        self.agent.close()
        self.channels.stop()
        self._thread.close()
        netns.delete(self.settings.netns)
        shutil.rmtree(self.folder)


def with_facts(make_user_data: Callable[..., str]) -> Callable[..., str]:
    """`seed.user_data` with the command that prints the facts."""

    def user_data(*arguments: object) -> str:
        config = json.loads(make_user_data(*arguments).partition("\n")[2])
        config["write_files"].append({"path": "/run/facts.py", "content": _FACTS})
        config["runcmd"] = [
            "systemd-run --quiet --no-block python3 /run/facts.py"
        ]  # not in the cgroup that is waited for
        return "#cloud-config\n" + json.dumps(config) + "\n"

    return user_data
