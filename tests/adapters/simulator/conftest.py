"""A simulated GitHub behind real sockets on loopback, its runner as a process, and programs written by others."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from orchestrator.simulator.certificates import Authority
from orchestrator.simulator.github import Simulator
from orchestrator.simulator.github.jit import new_key
from orchestrator.simulator.runner import write_runner
from orchestrator.system.process import run

CACHE = Path(os.environ.get("IRONCD_TEST_CACHE", "/var/cache/ironcd-test"))
NPM = Path(__file__).parent / "npm"
LABELS = ["self-hosted", "ironcd"]


@pytest.fixture(scope="session")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="session")
def certificate(authority):
    return authority.issue(["127.0.0.1", "localhost"])


@pytest.fixture(scope="session")
def private_key():
    return new_key()


@pytest.fixture
def simulator(certificate, private_key) -> Iterator[Simulator]:
    """Runners reach it at ``https://127.0.0.1:PORT/_host/NAME``: loopback has no GitHub's names."""
    with Simulator(private_key=private_key) as made:
        made.github.rest.spare_keys = [private_key]
        listener = socket.create_server(("127.0.0.1", 0))
        made.listen(listener, certificate=certificate.chain, key=certificate.key)
        made.github.runner_base = f"https://127.0.0.1:{listener.getsockname()[1]}"
        yield made


@dataclass
class Rest:
    """The REST API as an installation sees it."""

    simulator: Simulator
    token: str
    http: httpx.Client

    def ask(self, method: str, path: str, content: Any = None) -> httpx.Response:
        return self.http.request(method, path, json=content, headers={"Authorization": f"Bearer {self.token}"})

    def register(self, name: str = "runner-1", labels: list[str] | None = None) -> dict[str, Any]:
        body = {"name": name, "runner_group_id": 1, "labels": labels or LABELS}
        reply = self.ask("POST", "/orgs/acme/actions/runners/generate-jitconfig", body)
        assert reply.status_code == 201, reply.text
        content: dict[str, Any] = reply.json()
        return content


@pytest.fixture
def rest(simulator: Simulator) -> Iterator[Rest]:
    now = int(time.time())
    claims = {"iss": str(simulator.app_id), "iat": now - 60, "exp": now + 500}
    app = {"Authorization": f"Bearer {jwt.encode(claims, simulator.app_private_key_pem, 'RS256')}"}
    with httpx.Client(base_url=simulator.api_url, trust_env=False) as http:
        path = f"/app/installations/{simulator.installation_id}/access_tokens"
        token = http.post(path, headers=app).json()["token"]
        yield Rest(simulator, token, http)


class RunnerProcess:
    """The runner as the guest starts it.  ``patch`` is Python that changes `listener` before it starts."""

    def __init__(self, root: Path, env: dict[str, str], patch: str = "") -> None:
        argv = [str(root / "bin/Runner.Listener"), "run"]
        if patch:
            program = (
                f"import sys; sys.path.insert(0, {str(root / 'bin')!r})\n"
                f"import simrunner.listener as listener, simrunner.worker as worker\n{patch}\n"
                f"from pathlib import Path; sys.exit(listener.main(['run'], Path({str(root)!r})))"
            )
            argv = [sys.executable, "-c", program]
        self.root = root
        self.process = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.output = ""

    def ends(self, timeout_s: float = 120) -> int:
        self.output += self.process.communicate(timeout=timeout_s)[0]
        return self.process.returncode

    def says(self, words: str) -> None:
        """Wait until it has printed ``words``."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if words in line:
                return
        raise AssertionError(f"it ended without saying {words!r}: {self.output}")

    def stop(self) -> None:
        if self.process.poll() is None:
            # Its worker, and the worker's steps, are processes of their own: the listener has to end them.
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.communicate(timeout=15)
            self.process.kill()
        if self.process.stdout is not None and not self.process.stdout.closed:
            self.process.communicate()


StartRunner = Callable[..., RunnerProcess]


@pytest.fixture
def start_runner(authority, tmp_path) -> Iterator[StartRunner]:
    started: list[RunnerProcess] = []

    def start(encoded: str, *, env: dict[str, str] | None = None, patch: str = "") -> RunnerProcess:
        root = tmp_path / f"runner-{len(started)}"
        if not root.exists():
            write_runner(root)
        given = {
            "PATH": os.environ["PATH"],
            "SSL_CERT_FILE": str(authority.ca_file),
            "ACTIONS_RUNNER_INPUT_JITCONFIG": encoded,
        }
        started.append(RunnerProcess(root, given | (env or {}), patch))
        return started[-1]

    yield start
    for item in started:
        item.stop()


@pytest.fixture(scope="session")
def strangers() -> Iterator[Path]:
    """A folder in which the scripts of ``npm/`` find octokit and probot; installed once, outside of the checkout."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm aren't installed")
    manifest = (NPM / "package.json").read_bytes()
    folder = CACHE / "npm" / hashlib.sha256(manifest).hexdigest()[:16]
    if not (folder / "node_modules").is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            (Path(made) / "package.json").write_bytes(manifest)
            options = ["--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
            run(["npm", "install", *options], cwd=made, timeout_s=300)
            os.rename(made, folder)
            # What is left under the temporary name is an empty folder for the context manager to remove.
            os.mkdir(made)
    scripts = Path(tempfile.mkdtemp(dir=folder, prefix="run-"))
    try:
        for path in NPM.glob("*.mjs"):
            shutil.copy(path, scripts)
        yield scripts
    finally:
        shutil.rmtree(scripts)
