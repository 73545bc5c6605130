"""``ironcd up``: the processes of one machine, from one configuration.

=========  ===========================================================  ==========================================
process    what it is                                                   what it is handed
=========  ===========================================================  ==========================================
redis      a Redis of our own, every write on disk before its answer    its arguments; no file
control    the control API: webhooks, hosts, admin                      ``control.json`` (`ControlSettings`)
worker     the control plane's hands: queue, GitHub, placement          ``control.json``
agent      the host's hands: libvirt, nftables                          ``host.json`` (`HostSettings`)
gateway    the egress wall                                              ``host.json``
=========  ===========================================================  ==========================================

Neither file holds a secret, only the paths of files that do.  The agent and the gateway are never told where Redis or
GitHub's credentials are.  `Stack` is the same for `ironcd up`, the demo and the tests.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import msgspec
import structlog

from orchestrator.core.errors import ConfigurationError
from orchestrator.core.link import GatewayReply, GatewayRequest
from orchestrator.surface.settings import Settings, read_secret
from orchestrator.surface.supervisor import Program, Supervisor
from orchestrator.system import log
from orchestrator.system.files import write_atomic

PROCESSES = ("redis", "control", "worker", "agent", "gateway")

_log = structlog.get_logger()


class Stack:
    """All processes of one machine, or those of them in ``only``.  A context manager: started on entry, stopped on exit."""

    def __init__(self, settings: Settings, *, only: Sequence[str] = (), log_dir: Path | None = None) -> None:
        unknown = [name for name in only if name not in PROCESSES]
        if unknown:
            raise ConfigurationError(
                f"no process is called {unknown[0]!r}", code="bad-option", remedy=f"Known: {', '.join(PROCESSES)}."
            )
        self.settings = settings
        self.host = settings.host_settings()
        self.run_dir = Path(self.host.run_dir)
        self._chosen = [name for name in PROCESSES if name in (only or PROCESSES)]
        if not settings.redis.start and "redis" in self._chosen:
            self._chosen.remove("redis")
        self._make_folders(log_dir)
        self.supervisor = Supervisor([self._program(name) for name in self._chosen], log_dir=log_dir)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pids(self) -> dict[str, int]:
        """Of the running processes, by name (`PROCESSES`)."""
        return self.supervisor.pids

    def start(self, *, on_ready: Callable[[str, float], None] | None = None) -> None:
        """Write the handed-over settings and start all, each once the one before it serves.

        Raises ConfigurationError where a secret is missing, before anything is started.
        """
        self._require_secrets()
        write_atomic(self.run_dir / "host.json", msgspec.json.format(msgspec.json.encode(self.host), indent=2))
        control = msgspec.json.encode(self.settings.control_settings())
        write_atomic(self.run_dir / "control.json", msgspec.json.format(control, indent=2))
        self.supervisor.start(on_ready=on_ready)

    def stop(self) -> None:
        self.supervisor.stop()

    def kill(self, name: str, number: int = signal.SIGKILL) -> int | None:
        """Crash one process; the supervisor starts it again."""
        return self.supervisor.kill(name, number)

    def wait_ready(self, name: str, within_s: float = 30.0) -> None:
        self.supervisor.wait_ready(name, within_s)

    def _require_secrets(self) -> None:
        github, control = self.settings.github, self.settings.control
        wanted: dict[str, Path] = {}
        if "control" in self._chosen:
            wanted |= {"control.admin_token_file": control.admin_token_file}
            wanted |= {f"control.host_token_files.{name}": path for name, path in control.host_token_files.items()}
        if "worker" in self._chosen:
            wanted |= {"github.private_key_file": github.private_key_file}
        if "agent" in self._chosen or ("control" in self._chosen and not control.host_token_files):
            wanted |= {"host.token_file": Path(self.host.token_file)}
        for key, path in wanted.items():
            read_secret(path, key)

    def _make_folders(self, log_dir: Path | None) -> None:
        for folder in (self.run_dir, Path(self.host.state_dir), self.settings.control.state_dir):
            folder.mkdir(parents=True, exist_ok=True, mode=0o711)
        if "redis" in self._chosen:
            self.settings.redis.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if log_dir is not None:
            log_dir.mkdir(parents=True, exist_ok=True)

    def _program(self, name: str) -> Program:
        python = (sys.executable, "-m")
        control = ("--settings", str(self.run_dir / "control.json"))
        host = ("--settings", str(self.run_dir / "host.json"))
        match name:
            case "redis":
                return Program(name, redis_argv(self.settings), self._redis_ready)
            case "control":
                listen = ("--listen", self.settings.control.listen)
                return Program(name, (*python, "orchestrator.surface.app", *control, *listen), self._control_ready)
            case "worker":
                return Program(name, (*python, "orchestrator.surface.worker", *control), self._worker_ready)
            case "agent":
                return Program(name, (*python, "orchestrator.host", *host), self._agent_ready, ready_within_s=120)
            case _:
                return Program(name, (*python, "orchestrator.egress", *host), self._gateway_ready)

    def _redis_ready(self) -> bool:
        import redis

        client = redis.Redis.from_url(self.settings.redis.url, socket_timeout=2)
        try:
            return bool(client.ping())
        finally:
            client.close()

    def _control_ready(self) -> bool:
        url = f"http://{self.settings.control.listen}/healthz"
        return httpx.get(url, timeout=2, trust_env=False).status_code == 200

    def _worker_ready(self) -> bool:
        return True

    def _agent_ready(self) -> bool:
        """The agent has made the namespace and, where there is a control plane here, was seen by it."""
        if not Path("/run/netns", self.host.netns).exists():
            return False
        return "control" not in self._chosen or any(
            host["host"] == self.host.name and host["state"] != "unseen" for host in self.api("hosts")["hosts"]
        )

    def _gateway_ready(self) -> bool:
        return ask_gateway(self.run_dir, GatewayRequest(op="ping")).ok

    def api(self, path: str, **params: str | float) -> Any:
        """``GET /api/v1/PATH`` of the control plane here."""
        token = read_secret(self.settings.control.admin_token_file, "control.admin_token_file")
        response = httpx.get(
            f"http://{self.settings.control.listen}/api/v1/{path}",
            params=params,
            headers={"Authorization": f"Bearer {token}"},
            timeout=30,
            trust_env=False,
        )
        response.raise_for_status()
        return response.json()


def redis_argv(settings: Settings) -> tuple[str, ...]:
    """How to start a Redis of our own at ``redis.url``: a Unix socket, or a port on loopback.

    Raises ConfigurationError for an address that isn't this machine's own: a Redis of ours asks for no password.
    """
    url = urlsplit(settings.redis.url)
    if url.scheme == "unix":
        place: tuple[str, ...] = ("--port", "0", "--unixsocket", url.path, "--unixsocketperm", "600")
    elif url.scheme == "redis" and url.hostname in ("127.0.0.1", "localhost", "::1") and url.password is None:
        place = ("--bind", "127.0.0.1", "-::1", "--port", str(url.port or 6379), "--protected-mode", "yes")
    else:
        raise ConfigurationError(
            "redis.url names a Redis that `ironcd up` can't start",
            code="redis-not-local",
            remedy="Set redis.start = false and start it yourself, or use a unix:// address.",
        )
    durable = ("--appendonly", "yes", "--appendfsync", "always", "--save", "", "--maxmemory-policy", "noeviction")
    return ("redis-server", *place, *durable, "--dir", str(settings.redis.folder), "--daemonize", "no")


def ask_gateway(run_dir: Path, request: GatewayRequest, *, timeout_s: float = 2.0) -> GatewayReply:
    """One question to the gateway over its socket.  Raises OSError where it doesn't run."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(timeout_s)
        client.connect(str(run_dir / "gateway.sock"))
        client.sendall(msgspec.json.encode(request) + b"\n")
        with client.makefile("rb") as answers:
            return msgspec.json.decode(answers.readline(), type=GatewayReply)


def run_up(settings: Settings, *, only: Sequence[str] = ()) -> None:
    """Run until SIGTERM or SIGINT.  Raises OperationalError where a process doesn't start."""
    log.configure("up", level=settings.log.level, console=sys.stderr.isatty())
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    stack = Stack(settings, only=only, log_dir=settings.log.folder)
    began = time.monotonic()
    stack.start(on_ready=lambda name, took: _log.info("process serves", name=name, took_s=round(took, 2)))
    try:
        _log.info("up", took_s=round(time.monotonic() - began, 2), pids=stack.pids, listen=settings.control.listen)
        _notify_systemd()
        stop.wait()
    finally:
        _log.info("stopping")
        stack.stop()


def _notify_systemd() -> None:
    """Tell a systemd unit of ``Type=notify`` that all serve (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.connect("\0" + address[1:] if address.startswith("@") else address)
        client.send(b"READY=1")
