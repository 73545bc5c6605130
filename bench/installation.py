"""IronCD's own processes for a bench: `orchestrator.surface.up.Stack`, as `ironcd up` runs it, in folders of its own.

Where the worker runs, GitHub is the simulator, in a process of its own.  A receiver alone never asks GitHub.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import redis
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from bench.machine import free_port
from orchestrator.surface.settings import Settings
from orchestrator.surface.supervisor import Program, Supervisor
from orchestrator.surface.up import Stack
from orchestrator.system import netns
from orchestrator.system.files import write_atomic


class Installation:
    """Running processes, the address of the receiver, the webhook's secret, and what the simulator says of itself."""

    def __init__(self, stack: Stack, settings: Settings, secret: str, github: dict[str, Any]) -> None:
        self.stack = stack
        self.settings = settings
        self.secret = secret
        self.github = github
        host, _, port = settings.control.listen.rpartition(":")
        self.receiver = (host, int(port))

    def redis(self) -> redis.Redis:
        return redis.Redis.from_url(self.settings.redis.url, socket_timeout=10)


@contextlib.contextmanager
def installation(folder: Path, *, only: Sequence[str]) -> Iterator[Installation]:
    """Processes ``only`` of IronCD, their data in ``folder``; everything is stopped and removed afterwards.

    Sockets get a folder with a short name: the kernel takes no more than 107 bytes.
    """
    run_dir = Path(tempfile.mkdtemp(prefix="icdb-"))
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, run_dir, ignore_errors=True)
        _make_secrets(folder)
        github = undo.enter_context(_simulator(folder)) if "worker" in only else NO_GITHUB
        settings = _settings(folder, run_dir, github)
        if "agent" in only:
            undo.callback(netns.delete, settings.host_settings().netns)
        stack = Stack(settings, only=only, log_dir=folder / "logs")
        undo.callback(stack.stop)
        stack.start()
        yield Installation(stack, settings, (folder / "webhook-secret").read_text(), github)


NO_GITHUB: dict[str, Any] = {"app_id": 1, "api_url": "http://127.0.0.1:9"}
"""Nobody listens there."""


@contextlib.contextmanager
def _simulator(folder: Path) -> Iterator[dict[str, Any]]:
    ready = folder / "ready.json"
    config = {
        "ready_file": str(ready),
        "private_key_file": str(folder / "app.pem"),
        "webhook_secret_file": str(folder / "webhook-secret"),
        "webhook_url": "http://127.0.0.1:9/webhook",
    }
    (folder / "simulator.json").write_text(json.dumps(config))
    argv = (sys.executable, "-m", "orchestrator.simulator", "--config", str(folder / "simulator.json"))
    with Supervisor([Program("simulator", argv, ready.exists, ready_within_s=60)], log_dir=folder / "logs"):
        yield json.loads(ready.read_bytes())


def _make_secrets(folder: Path) -> None:
    (folder / "logs").mkdir()
    for name in ("webhook-secret", "admin-token", "host-token"):
        write_atomic(folder / name, secrets.token_hex(32).encode())
    write_atomic(folder / "app.pem", _key())


def _settings(folder: Path, run_dir: Path, github: dict[str, Any]) -> Settings:
    name = f"icdt-{secrets.token_hex(3)}"
    listen = f"127.0.0.1:{free_port()}"
    return Settings.model_validate(
        {
            "github": {
                "app_id": github["app_id"],
                "private_key_file": folder / "app.pem",
                "webhook_secret_files": [folder / "webhook-secret"],
                "api_url": github["api_url"],
            },
            "control": {
                "listen": listen,
                "admin_token_file": folder / "admin-token",
                "state_dir": folder / "control",
            },
            "redis": {"url": f"unix://{run_dir}/redis.sock", "folder": folder / "redis"},
            "host": {
                "name": name,
                "control_url": f"http://{listen}",
                "token_file": str(folder / "host-token"),
                "state_dir": str(folder / "state"),
                "cache_dir": str(folder / "cache"),
                "run_dir": str(run_dir),
                "netns": name,
                "allow_emulation": True,
            },
            "log": {"level": "warning"},
        }
    )


def _key() -> bytes:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form, none = serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, none)
