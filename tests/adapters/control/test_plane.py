"""The control plane in its own processes, end to end but for the VM: webhook in, JIT, host's long poll, binding, proof.

GitHub is the simulator on loopback, Redis is real, the receiver and the worker are the programs that are shipped.  Only
the host is played, over HTTP with its token, as an agent would.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from orchestrator.control.settings import ControlSettings
from orchestrator.core.machine import Capacity
from orchestrator.core.wire import Desired, DesiredRunner, Image, Observed, ObservedRunner, Proof
from orchestrator.simulator.github import Simulator

pytestmark = pytest.mark.real

POLICY = b"mode: enforce\nallow:\n  - host: allowed.example\n"
WORKFLOW = {"jobs": {"build": {"runs-on": ["ironcd"], "steps": [{"run": "true"}]}}}
BOOTED = (
    "accepted", "chain_installed", "disk_made", "seed_made", "domain_started", "guest_hello", "jit_taken", "seed_gone",
    "runner_started", "runner_listening",
)  # fmt: skip


class Plane:
    def __init__(self, folder: Path, redis_url: str, simulator: Simulator) -> None:
        self.folder = folder
        self.simulator = simulator
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        simulator.webhook_url = self.url + "/webhook"
        secrets = {
            "app.pem": simulator.app_private_key_pem,
            "webhook": simulator.webhook_secret,
            "admin": "admin-token",
        }
        secrets["h1"] = "token-of-h1"
        for name, text in secrets.items():
            (folder / name).write_text(text)
        settings = ControlSettings(
            app_id=simulator.app_id,
            redis_url=redis_url,
            state_dir=str(folder / "state"),
            api_url=simulator.api_url,
            private_key_file=str(folder / "app.pem"),
            webhook_secret_files=(str(folder / "webhook"),),
            admin_token_file=str(folder / "admin"),
            hosts={"h1": str(folder / "h1")},
        )
        (folder / "control.json").write_bytes(msgspec.json.encode(settings))
        self.host = httpx.Client(base_url=self.url, headers={"Authorization": "Bearer token-of-h1"}, timeout=120)
        self.admin = httpx.Client(base_url=self.url, headers={"Authorization": "Bearer admin-token"}, timeout=120)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.generation = 0
        self.seen: dict[str, ObservedRunner] = {}
        self.jits: list[str] = []

    def start(self, name: str) -> None:
        settings = ["--settings", str(self.folder / "control.json")]
        argv = {
            "control": ["orchestrator.surface.app", *settings, "--listen", f"127.0.0.1:{self.port}"],
            "worker": ["orchestrator.surface.worker", *settings],
        }[name]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen([sys.executable, "-m", *argv], stdout=log, stderr=log)
        if name == "control":
            self.wait_for(self._answers, "the API")

    def _answers(self) -> bool:
        try:
            return self.host.get("/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.host.close()
        self.admin.close()

    def kill(self, name: str) -> None:
        os.kill(self.processes[name].pid, signal.SIGKILL)
        self.processes[name].wait()
        self.start(name)

    def wait_for(self, what: Callable[[], Any], name: str, *, seconds: float = 120.0) -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = what()
            if found:
                return found
            time.sleep(0.05)
        logs = "\n".join(f"{path.name}: {path.read_text()[-3000:]}" for path in self.folder.glob("*.log"))
        raise AssertionError(f"{name} didn't come within {seconds} s\n{logs}")

    # The host

    def poll(self, wait: float = 1.0) -> Desired | None:
        answer = self.host.get("/host/v1/desired", params={"generation": self.generation, "wait": wait})
        if answer.status_code == 204:
            return None
        assert answer.status_code == 200, answer.text
        desired = msgspec.json.decode(answer.content, type=Desired)
        self.generation = desired.generation
        self.jits += [runner.jit for runner in desired.runners if runner.jit]
        return desired

    def report(self) -> None:
        observed = Observed(
            host="h1", boot="b", at=time.time(), capacity=Capacity(8, 32768, 200), accelerator="tcg",
            generation=self.generation, runners=tuple(self.seen.values()), images=(Image("default", "sha256:0", "2.336.0"),),
        )  # fmt: skip
        assert self.host.post("/host/v1/observed", content=msgspec.json.encode(observed)).status_code == 204

    def obey(self, seconds: float = 0.2) -> None:
        """One turn of an agent that does at once what it is told."""
        desired = self.poll(seconds)
        if desired is not None:
            now = time.time()
            known = self.seen
            self.seen = {runner.id: _done(runner, known.get(runner.id), now) for runner in desired.runners}
        self.report()

    def job(self, job_id: int) -> dict[str, Any]:
        answer = self.admin.get(f"/api/v1/jobs/{job_id}")
        return answer.json() if answer.status_code == 200 else {}


def _done(wish: DesiredRunner, seen: ObservedRunner | None, now: float) -> ObservedRunner:
    marks = dict(seen.marks) if seen is not None else {}
    if wish.wish == "gone":
        return ObservedRunner(
            wish.id, "absent", marks={**marks, "all_gone": now}, proof=Proof(*[True] * 9, looked_at=now)
        )
    marks |= {mark: now for mark in BOOTED if mark not in marks}
    return ObservedRunner(wish.id, "running", marks=marks, policy=wish.policy.digest, generation=wish.generation)


@pytest.fixture
def plane(tmp_path: Path, redis_server: Any) -> Iterator[Plane]:
    with Simulator(org="acme", repositories=("app",), shared_keys=1) as simulator:
        simulator.put_file("app", ".ironcd/policy.yml", POLICY)
        made = Plane(tmp_path, redis_server.url, simulator)
        try:
            made.start("control")
            made.start("worker")
            made.report()
            yield made
        finally:
            made.stop()


def listen(plane: Plane) -> None:
    """The registered runners sign in, take their job and do it, as far as GitHub can tell."""

    def inside() -> None:
        github = plane.simulator.github
        for runner in list(github.state.runners.values()):
            if runner.session is None:
                github.engine.open_session(runner, runner.name)
            if runner.session is not None:
                runner.session.polled_at = github.state.now()
        github.engine.assign()
        for runner in list(github.state.runners.values()):
            if runner.job is not None and runner.job.status == "queued":
                github.engine.acquire(runner.job)

    plane.simulator.call(inside)


def complete(plane: Plane, job_id: int, conclusion: str = "success") -> None:
    github = plane.simulator.github
    plane.simulator.call(lambda: github.engine.complete(github.state.jobs[job_id], conclusion))


def in_force(plane: Plane, job_id: int) -> bool:
    plane.obey()
    return any(moment["what"] == "PolicyBound" for moment in plane.job(job_id).get("story", []))


def over(plane: Plane, job_id: int) -> dict[str, Any] | None:
    plane.obey()
    seen = plane.job(job_id)
    proofs = [runner["proof"] for runner in seen.get("made_for_it", [])]
    done = seen.get("state") == "completed" and proofs and all(proof and proof["whole"] for proof in proofs)
    return seen if done else None


def test_a_job_from_webhook_to_proof(plane: Plane) -> None:
    run = plane.simulator.create_run("app", WORKFLOW)
    job_id = run["jobs"][0]["id"]
    plane.wait_for(lambda: plane.obey() or plane.seen, "a wish")
    assert len(plane.jits) >= 1
    listen(plane)
    plane.wait_for(lambda: in_force(plane, job_id), "the policy")
    plane.simulator.put_file("app", ".ironcd/policy.yml", b"mode: enforce\nallow: []\n")
    then, now = (plane.admin.get(f"/api/v1/policy?{asked}").json() for asked in (f"job={job_id}", "repo=acme/app"))
    assert [told["policy"]["rules"][-1].get("host") == "allowed.example" for told in (then, now)] == [True, False]
    assert (now["branch"], len(now["blob"])) == ("main", 40)
    complete(plane, job_id)
    seen = plane.wait_for(lambda: over(plane, job_id), "the proof")
    assert (seen["conclusion"], seen["served"]) == ("success", "yes")
    (runner,) = seen["made_for_it"]
    assert (runner["phase"], runner["reason"], runner["repo"]) == ("GONE", "job_completed", "acme/app")
    whats = [moment["what"] for moment in seen["story"]]
    order = [
        "queued",
        "WANTED",
        "Placed",
        "Registered",
        "RunnerListened",
        "JobStarted",
        "PolicyBound",
        "JobCompleted",
        "GONE",
    ]
    assert [what for what in whats if what in order] == order
    assert plane.simulator.runners() == []
    archive = (plane.folder / "state" / "archive").glob("*.jsonl")
    assert str(job_id) in "".join(path.read_text() for path in archive)
    secrets = [*plane.jits, plane.simulator.webhook_secret, "PRIVATE KEY", "ghs_", "token-of-h1", "admin-token"]
    logs = "".join(path.read_text() for path in plane.folder.glob("*.log"))
    assert [secret for secret in secrets if secret in logs] == []
    metrics = httpx.get(plane.url + "/metrics").text
    assert 'ironcd_deliveries_total{result="accepted"}' in metrics
    assert (
        'ironcd_github_calls_total{method="POST",route="/orgs/{org}/actions/runners/generate-jitconfig",status="201"}'
        in metrics
    )
    hosts = plane.admin.get("/api/v1/hosts").json()["hosts"]
    assert [(host["host"], host["state"], host["runners"]) for host in hosts] == [("h1", "up", [])]


def test_kills_at_random_moments(plane: Plane) -> None:
    jobs = [plane.simulator.create_run("app", WORKFLOW)["jobs"][0]["id"] for _ in range(4)]
    left = set(jobs)
    deadline = time.monotonic() + 400
    killed = 0  # the last job is under way until all four processes have died
    while left and time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            plane.obey()
            listen(plane)
            left -= {job_id for job_id in left if over(plane, job_id)}
            for job_id in left:
                may_end = killed == 4 or job_id != jobs[-1]
                if may_end and in_force(plane, job_id) and plane.simulator.job(job_id)["status"] == "in_progress":
                    complete(plane, job_id)
        if killed < 4:
            plane.kill("worker" if killed % 2 else "control")
            killed += 1
    assert not left, [plane.job(job_id) for job_id in left]
    assert killed == 4
    assert plane.simulator.runners() == []
    for job_id in jobs:
        had = [r for r in plane.job(job_id)["made_for_it"] if r["job_id"] == job_id]
        assert len(had) == 1
