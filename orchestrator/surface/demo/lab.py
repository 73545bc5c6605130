"""A whole installation for a few minutes: a simulated GitHub and outside, and IronCD's own processes, on this machine.

The simulator is a process of its own and the stack is `orchestrator.surface.up.Stack`, configured by a file as any
installation is.  Everything made here has the lab's name in it and is gone when the lab is left, however it is left.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import httpx
import msgspec

from orchestrator.core.errors import OperationalError
from orchestrator.core.names import names_of, ulid_of
from orchestrator.host.domain_xml import owner_in
from orchestrator.surface.settings import Settings, load
from orchestrator.surface.supervisor import Program, Supervisor
from orchestrator.surface.up import Stack
from orchestrator.system import netns
from orchestrator.system.files import write_atomic
from orchestrator.system.process import CommandFailed, run

ROOT = Path("/var/lib/ironcd")
CACHE = Path("/var/cache/ironcd")
RESOLVER = "203.0.113.53"
LIBVIRT = "qemu:///system"


class Lab:
    """``with Lab(...) as lab:`` starts all of it.  ``prefix`` names the namespaces: ``icd-demo-`` or ``icdt-`` and random."""

    def __init__(
        self,
        prefix: str,
        *,
        logs: Path,
        cache: Path = CACHE,
        classes: Mapping[str, Mapping[str, object]] | None = None,
        host: Mapping[str, object] | None = None,
        control: Mapping[str, object] | None = None,
        pace: Mapping[str, object] | None = None,
    ) -> None:
        self.prefix = prefix
        self.folder = ROOT / prefix.replace("icd-", "", 1)
        self.logs = logs
        self.cache = cache
        self._classes = {name: dict(keys) for name, keys in (classes or {}).items()}
        self._host = dict(host or {})
        self._control = dict(control or {})
        self._pace = dict(pace or {})
        self._undo = ExitStack()
        self.facts: dict[str, Any] = {}
        self._settings: Settings | None = None
        self._stack: Stack | None = None
        self._simulator: Supervisor | None = None

    @property
    def vm_netns(self) -> str:
        return f"{self.prefix}-vm"

    @property
    def config_file(self) -> Path:
        return self.folder / "ironcd.toml"

    @property
    def stack(self) -> Stack:
        assert self._stack is not None, "the lab isn't open"
        return self._stack

    @property
    def settings(self) -> Settings:
        assert self._settings is not None, "the lab isn't open"
        return self._settings

    def __enter__(self) -> Self:
        return self.open()

    def open(self) -> Self:
        """Make the folders, the configuration, and the simulated outside; nothing is left where that fails."""
        try:
            self._make_folders()
            self._start_simulator()
            self._configure()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take everything away, in the opposite order; a second time does nothing."""
        self._undo.close()

    def start_stack(self) -> None:
        """Start IronCD itself; what it makes on the machine is taken away with the lab."""
        self._stack = Stack(self.settings, log_dir=self.logs)
        self._undo.callback(self._clear_machine)
        self._undo.callback(self._stack.stop)
        self._stack.start()

    @property
    def pids(self) -> dict[str, int]:
        """Of all processes: the stack's and the simulator's."""
        simulator = self._simulator.pids if self._simulator is not None else {}
        return simulator | (self._stack.pids if self._stack is not None else {})

    # The simulated GitHub and outside

    def simulated(self, method: str, path: str, **more: Any) -> Any:
        """A request to the simulator's own API, ``/_sim/PATH``; JSON where the answer is JSON, else text."""
        response = httpx.request(method, f"{self.facts['api_url']}/_sim/{path}", timeout=30, trust_env=False, **more)
        response.raise_for_status()
        is_json = response.headers.get("content-type", "").startswith("application/json")
        return response.json() if is_json else response.text

    def received(self) -> list[dict[str, Any]]:
        """All that arrived outside; see `orchestrator.simulator.outside.records.Received`."""
        items: list[dict[str, Any]] = self.simulated("GET", "world/received")
        return items

    def keep_consoles(self) -> None:
        """Copy the machines' consoles to the logs: the agent deletes them with the machines."""
        folder = Path(self.stack.host.run_dir) / "consoles"
        for console in folder.glob("*.log") if folder.is_dir() else ():
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(console, self.logs / f"console-{console.name}")

    # How it is made

    def _make_folders(self) -> None:
        self.folder.mkdir(parents=True, mode=0o711)
        self._undo.callback(shutil.rmtree, self.folder, ignore_errors=True)
        # Held for as long as this process lives: `clear_dead` knows by it which labs have nobody left.
        self._undo.enter_context(_locked(self.folder / "lock"))
        self.folder.chmod(0o711)
        for name in ("secrets", "world"):
            (self.folder / name).mkdir(mode=0o700)
        self.logs.mkdir(parents=True, exist_ok=True)
        for name in ("webhook-secret", "admin-token", "host-token"):
            write_atomic(self.folder / "secrets" / name, secrets.token_hex(24).encode())

    def _start_simulator(self) -> None:
        listen = f"127.0.0.1:{free_port()}"
        config = {
            "ready_file": str(self.folder / "simulator-ready.json"),
            "private_key_file": str(self.folder / "secrets" / "app.pem"),
            "webhook_secret_file": str(self.folder / "secrets" / "webhook-secret"),
            "webhook_url": f"http://{listen}/webhook",
            "folder": str(self.folder / "world"),
            "world": {"prefix": self.prefix},
        }
        self._listen = listen
        write_atomic(self.folder / "simulator.json", json.dumps(config, indent=2).encode())
        ready_file = self.folder / "simulator-ready.json"
        argv = (sys.executable, "-m", "orchestrator.simulator", "--config", str(self.folder / "simulator.json"))
        program = Program("simulator", argv, ready_file.exists, ready_within_s=60)
        self._simulator = Supervisor([program], log_dir=self.logs)
        self._undo.callback(self._remove_namespaces)
        self._undo.callback(self._simulator.stop)
        self._simulator.start()
        self.facts = json.loads(ready_file.read_bytes())

    def _configure(self) -> None:
        secret = {name: str(self.folder / "secrets" / name) for name in ("webhook-secret", "admin-token", "host-token")}
        host = {
            "name": self.prefix,
            "control_url": f"http://{self._listen}",
            "token_file": secret["host-token"],
            "state_dir": str(self.folder / "state"),
            "cache_dir": str(self.cache),
            "run_dir": str(self.folder / "run"),
            "templates_dir": str(self.cache / "templates"),  # they outlive the lab, as the image does
            "netns": self.vm_netns,
            "uplink_netns": self.facts["uplink_netns"],
            "libvirt_uri": LIBVIRT,
            "upstream_dns": [RESOLVER],
            "guest_ca_files": [self.facts["ca_file"]],
            "allow_emulation": True,
        }
        sections: dict[str, dict[str, object]] = {
            "github": {
                "app_id": self.facts["app_id"],
                "private_key_file": str(self.folder / "secrets" / "app.pem"),
                "webhook_secret_files": [secret["webhook-secret"]],
                "api_url": self.facts["api_url"],
            },
            "control": {
                "listen": self._listen,
                "admin_token_file": secret["admin-token"],
                "state_dir": str(self.folder / "control"),
            }
            | self._control,
            "control.pace": self._pace,
            "redis": {"url": f"unix://{self.folder}/redis.sock", "folder": str(self.folder / "redis")},
            "host": host | self._host,
        }
        sections |= {f"classes.{name}": keys for name, keys in self._classes.items()}
        self.config_file.write_text(toml_of(sections), encoding="utf-8")
        self._settings = load(self.config_file)

    # How it is taken away

    def _clear_machine(self) -> None:
        """Domains and links that a stack stopped in the middle of a job leaves: its agent would take them up again."""
        _clear_machines(self.folder, self.vm_netns)
        netns.delete(self.vm_netns)

    def _remove_namespaces(self) -> None:
        """What a simulator that was killed leaves."""
        for end in ("-up", "-out"):
            netns.delete(self.prefix + end)


def clear_dead() -> list[str]:
    """Take away what labs left whose process was killed outright; the names of their folders."""
    cleared = []
    for folder in (lock.parent for pattern in ("demo-*", "icdt-*") for lock in sorted(ROOT.glob(f"{pattern}/lock"))):
        with contextlib.suppress(BlockingIOError), _locked(folder / "lock"):
            prefix = f"icd-{folder.name}" if folder.name.startswith("demo-") else folder.name
            _clear_machines(folder, f"{prefix}-vm")
            for end in ("-vm", "-up", "-out"):
                netns.delete(prefix + end)
            shutil.rmtree(folder, ignore_errors=True)
            cleared.append(folder.name)
    return cleared


def _clear_machines(folder: Path, site: str) -> None:
    """End the domains and delete the links of all runners that a lab's agent has a record of, and of all VMs with its name."""
    runners = folder / "state" / "runners"
    ulids = {ulid_of(path.stem) for path in runners.glob("*.json")} if runners.is_dir() else set()
    ulids |= _running(site)
    for ulid in sorted(ulid for ulid in ulids if ulid is not None):
        names = names_of(ulid)
        for argv in (
            ["virsh", "--connect", LIBVIRT, "destroy", names.domain],
            ["ip", "link", "del", names.tap],
        ):
            with contextlib.suppress(CommandFailed):
                run(argv, timeout_s=30)


def _running(site: str) -> set[str]:
    """The VMs that the agent called ``site`` has; a machine that is to become a template is in no record of runners."""
    found = set()
    with contextlib.suppress(CommandFailed):
        for name in run(["virsh", "--connect", LIBVIRT, "list", "--name"], timeout_s=30).split():
            ulid = ulid_of(name)
            with contextlib.suppress(CommandFailed):
                if ulid and owner_in(run(["virsh", "--connect", LIBVIRT, "dumpxml", name], timeout_s=30)) == (
                    ulid,
                    site,
                ):
                    found.add(ulid)
    return found


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock ``path`` for the block.  Raises BlockingIOError where another process has it."""
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def toml_of(sections: Mapping[str, Mapping[str, object]]) -> str:
    """Tables of strings, numbers, booleans and lists of these as TOML; JSON's form of each is TOML's too."""
    lines = []
    for name, keys in sections.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
        lines.append("")
    return "\n".join(lines)


def free_port() -> int:
    """A TCP port of loopback that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Deadline(msgspec.Struct, frozen=True):
    """A moment (monotonic) after which waiting for ``what`` is given up."""

    at: float
    what: str

    def pause(self, seconds: float = 0.2) -> None:
        """Wait a little.  Raises OperationalError (code ``timed-out``) where the time is over."""
        if time.monotonic() > self.at:
            raise OperationalError(
                f"timed out: {self.what}", code="timed-out", remedy="Read the logs, the agent's and the console first."
            )
        time.sleep(seconds)
