"""Peers: installed once into a cache outside the checkout, started with an argument list, ended by their own pid."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from bench.machine import CACHE, on_core
from orchestrator.system.process import environment, run

PROBOT = Path(__file__).resolve().parent / "probot"


@contextlib.contextmanager
def running(
    argv: list[str],
    log: Path,
    *,
    ready: Callable[[], bool],
    env: Mapping[str, str] | None = None,
    within_s: float = 30.0,
) -> Iterator[subprocess.Popen[bytes]]:
    """``argv`` from when it is ready until the block is left.  Raises RuntimeError with the end of its log where it isn't."""
    with log.open("ab") as output:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment(env))
    try:
        until = time.monotonic() + within_s
        while not ready():
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{argv[:4]} isn't ready (status {process.returncode}): {_tail(log)}")
            time.sleep(0.05)
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes], *, patience_s: float = 10) -> None:
    """SIGTERM, and SIGKILL to what is still there after ``patience_s``."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
    if process.poll() is None:
        process.kill()
    process.wait()


@contextlib.contextmanager
def probot(folder: Path, secret: str, core: int) -> Iterator[tuple[str, int]]:
    """A Probot receiver on one core; its address."""
    log = folder / "probot.log"
    argv = on_core(core, ["node", str(probot_home() / "server.mjs")])
    env = {"WEBHOOK_SECRET": secret, "NODE_ENV": "production"}
    with running(argv, log, env=env, ready=lambda: log.exists() and log.read_text().strip().isdigit()):
        yield "127.0.0.1", int(log.read_text())


def probot_home() -> Path:
    """Where the pinned Probot is installed, installed now where it isn't."""
    recipe = (PROBOT / "package.json").read_bytes() + (PROBOT / "server.mjs").read_bytes()
    home = CACHE / f"probot-{hashlib.sha256(recipe).hexdigest()[:12]}"
    if not (home / "installed").exists():
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        shutil.copy(PROBOT / "package.json", home)
        shutil.copy(PROBOT / "server.mjs", home)
        run(
            ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock"],
            cwd=str(home),
            env={name: value for name, value in os.environ.items() if name.lower().startswith("npm_config_")},
            timeout_s=300,
        )
        (home / "installed").touch()
    return home


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-12:]) if log.exists() else "no output"
