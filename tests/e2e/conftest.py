"""One job, run once on a real virtual machine for all tests here, with what was seen while it ran."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx
import pytest

from orchestrator.surface.demo import scenario
from orchestrator.surface.demo.image import ensure_image
from orchestrator.surface.demo.lab import CACHE, Lab
from orchestrator.surface.demo.report import Report
from orchestrator.surface.demo.traps import Traps


@dataclass
class Seen:
    """What was watched while the job ran."""

    jits: set[str] = field(default_factory=set)
    arguments: dict[int, str] = field(default_factory=dict)
    """Process id and start time hashed together, to its arguments: every process that lived long enough to be seen."""
    files: dict[str, bytes] = field(default_factory=dict)
    """What lay in the lab's folders at the end, but for the secrets' own files."""
    logs: dict[str, str] = field(default_factory=dict)


@dataclass
class Finished:
    lab: Lab
    report: Report
    seen: Seen
    secrets: dict[str, str]


class Watcher:
    """Looks at all processes' arguments, and asks as the host does for the JIT configuration, until it is stopped."""

    def __init__(self, lab: Lab, seen: Seen) -> None:
        self._lab = lab
        self._seen = seen
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def _watch(self) -> None:
        token = (self._lab.folder / "secrets" / "host-token").read_text()
        url = f"{self._lab.settings.host_settings().control_url}/host/v1/desired?generation=-1&wait=0"
        with httpx.Client(headers={"Authorization": f"Bearer {token}"}, trust_env=False) as client:
            while not self._stop.wait(0.1):
                self._seen.arguments |= _arguments()
                try:
                    answer = client.get(url)
                    desired = answer.json() if answer.status_code == 200 else {"runners": []}
                except (httpx.HTTPError, ValueError):
                    continue
                self._seen.jits |= {runner["jit"] for runner in desired["runners"] if runner.get("jit")}


def _arguments() -> dict[int, str]:
    found = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                text = Path(entry.path, "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:
                continue
            found[hash((entry.name, text))] = text
    return found


def _texts(folder: Path, *, without: set[str]) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not without & set(path.relative_to(folder).parts)
    }


@pytest.fixture(scope="session")
def image() -> None:
    """The machines' image, built where it isn't there."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes network namespaces and virtual machines")
    missing = [name for name in ("qemu-system-x86_64", "virsh", "mmdebstrap", "redis-server") if not shutil.which(name)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (`make setup` installs them)")
    ensure_image(CACHE, lambda _step: None)


def new_lab(config: pytest.Config, name: str, *, start: str = "clone") -> Lab:
    """A lab of a test's own; its logs are kept in ``build/e2e-logs/NAME``."""
    logs = Path(config.rootpath) / "build" / "e2e-logs" / name
    shutil.rmtree(logs, ignore_errors=True)
    return Lab(f"icdt-{secrets.token_hex(3)}", logs=logs, classes={"default": scenario.CLASS | {"start": start}})


@pytest.fixture(scope="session")
def finished(image: None, request: pytest.FixtureRequest) -> Iterator[Finished]:
    """The job, run to its proof; the lab still stands, its processes still run."""
    began = time.monotonic()
    seen = Seen()
    with new_lab(request.config, "main-job") as lab:
        lab.start_stack()
        accelerator = scenario.accelerator_of(lab)
        assert scenario.await_template(lab) == ""
        with Traps(lab.vm_netns, scenario.TRAPPED) as traps, Watcher(lab, seen):
            jobs = scenario.start_run(lab, jobs=1)
            scenario.follow(lab, jobs)
            took_s = time.monotonic() - began
            report = scenario.report_of(lab, jobs, caught=traps.caught, accelerator=accelerator, took_s=took_s)
        seen.files = _texts(lab.folder, without={"secrets", "world", "seal.key"})
        seen.logs = {path.name: path.read_text(errors="replace") for path in lab.logs.iterdir()}
        yield Finished(lab, report, seen, _secrets_of(lab, seen))


def _secrets_of(lab: Lab, seen: Seen) -> dict[str, str]:
    folder = lab.folder / "secrets"
    found = {name: (folder / name).read_text().strip() for name in ("webhook-secret", "admin-token", "host-token")}
    key = (folder / "app.pem").read_text()
    found["App's private key"] = re.sub(r"-----[A-Z ]+-----|\s", "", key)[40:104]
    found["App's private key, a line of it"] = key.splitlines()[3]
    found |= {f"JIT configuration {number}": jit for number, jit in enumerate(sorted(seen.jits))}
    return found
