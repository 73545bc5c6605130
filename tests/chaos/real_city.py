"""The real tier's system: the product's own processes under its own supervisor, a simulated GitHub beside them.

Kinds of processes: ``redis`` (append-only file), ``control`` (the API), ``worker``, and for each host ``agent`` and
``gateway``.  Time is the machine's, so everything that waits is set to wait less (`control_settings`), and GitHub's own
patience is shortened too (`RealCity.silent`, locks, offers).  The harness lives in the simulator's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import shutil
import signal
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import msgspec
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from orchestrator.control.settings import ControlSettings, Pace
from orchestrator.core.machine import MachineClass
from orchestrator.core.runner import Deadlines
from orchestrator.simulator.github import Simulator
from orchestrator.surface.supervisor import Program, Supervisor
from orchestrator.system import netns
from tests.chaos.city import LIFETIME_S, POLICY, REPOSITORIES, City
from tests.chaos.journal import Journal
from tests.chaos.mortal import Mortal
from tests.chaos.real_host import RealHost

PREFIX = "t:"
LOCK_S = 5.0
"""For which a runner that is silent keeps its job; GitHub's own is ten minutes."""
ACQUIRE_S = 3.0
SILENT_S = 2.0
"""After which a runner whose machine is gone shows as offline; GitHub's own is two minutes."""


def control_settings(folder: Path, simulator: Simulator, hosts: dict[str, str]) -> ControlSettings:
    return ControlSettings(
        app_id=simulator.app_id,
        redis_url=f"unix://{folder}/redis.sock",
        prefix=PREFIX,
        state_dir=str(folder / "control"),
        api_url=simulator.api_url,
        private_key_file=str(folder / "app.pem"),
        webhook_secret_files=(str(folder / "webhook"),),
        admin_token_file=str(folder / "admin"),
        hosts=hosts,
        classes={"ironcd": MachineClass("ironcd", 1, 64, 1, lifetime_s=LIFETIME_S, start="cold")},
        deadlines=Deadlines(booting_s=60.0, ready_s=30.0, destroying_s=20.0),
        pace=Pace(
            host_away_s=5.0, host_lost_s=90.0, job_check_s=3.0, claim_s=0.5, retry_s=(0.5, 1.0, 2.0),
            replace_s=(0.0, 0.5, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0), search_s=3.0, redelivery_s=3.0, sweep_s=2.0,
        ),
    )  # fmt: skip


class _Memory:
    away = False

    def __init__(self, url: str) -> None:
        self._url = url

    def client(self, _mortal: Mortal) -> AsyncRedis:
        return AsyncRedis.from_url(self._url)


class _Worker:
    """Whether it had the time to do its work: not for a while after something was killed."""

    def __init__(self, city: RealCity) -> None:
        self._city = city

    @property
    def running(self) -> bool:
        return time.monotonic() - self._city.killed_at > 10.0


class RealCity(City):
    """`City` of processes: what it says of jobs and their ends is the same, so one oracle judges both."""

    pace = 0.02

    def __init__(self, simulator: Simulator, folder: Path, seed: int, *, hosts: int) -> None:
        self.simulator = simulator
        self.folder = folder
        self.seed = seed
        self.rng = random.Random(seed)
        self.journal = Journal(self.now, [])
        self.used, self.kills, self.killed_at = Counter(), 0, 0.0
        self.taken, self.losses, self.lengths = {}, {}, {}
        self.out_of_reach, self.cancelled, self.strangers = set(), set(), []
        self.github = simulator.github
        self.github.engine.lock_s, self.github.engine.acquire_s = LOCK_S, ACQUIRE_S
        self.github.faults.by(self.now, random.Random(self.rng.random()))
        for name in REPOSITORIES:
            simulator.put_file(name, ".ironcd/policy.yml", POLICY)
        simulator.call(lambda: self._plant_strangers(self.github))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.address = f"127.0.0.1:{listener.getsockname()[1]}"
        simulator.webhook_url = f"http://{self.address}/webhook"
        mark = secrets.token_hex(3)
        self.hosts: list[RealHost] = [  # type: ignore[assignment]
            RealHost(self, f"h{number}", folder, f"icdt-{mark}-{number}", f"http://{self.address}")
            for number in range(1, hosts + 1)
        ]
        self._hand_over()
        self.memory = _Memory(f"unix://{folder}/redis.sock")  # type: ignore[assignment]
        self.worker = _Worker(self)  # type: ignore[assignment]
        self.supervisor = Supervisor(self._programs(), log_dir=folder)
        self._tasks: list[asyncio.Task[None]] = []

    def _hand_over(self) -> None:
        sim = self.simulator
        for name, text in (
            ("app.pem", sim.app_private_key_pem),
            ("webhook", sim.webhook_secret),
            ("admin", "admin-token"),
        ):
            (self.folder / name).write_text(text)
        settings = control_settings(self.folder, sim, {host.name: str(host.token_file) for host in self.hosts})
        (self.folder / "control.json").write_bytes(msgspec.json.encode(settings))

    def _programs(self) -> list[Program]:
        python, control = (sys.executable, "-m"), ("--settings", str(self.folder / "control.json"))
        redis = (
            "redis-server", "--port", "0", "--unixsocket", str(self.folder / "redis.sock"), "--dir", str(self.folder),
            "--appendonly", "yes", "--appendfsync", "always", "--save", "", "--loglevel", "warning",
        )  # fmt: skip
        api = (*python, "orchestrator.surface.app", *control, "--listen", self.address)
        made = [
            Program("redis", redis, self._redis_answers),
            Program("control", api, self._api_answers),
            Program("worker", (*python, "orchestrator.surface.worker", *control), lambda: True),
        ]
        env = {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        for host in self.hosts:
            settings = ("--settings", str(host.settings_file))
            ready = Path("/run/netns", host.settings.netns).exists
            made.append(Program(f"agent-{host.name}", (*python, "tests.chaos.real_agent", *settings), ready, env))
            listens = host.paths.gateway_socket.exists
            made.append(Program(f"gateway-{host.name}", (*python, "orchestrator.egress", *settings), listens))
        return made

    def _redis_answers(self) -> bool:
        with Redis.from_url(f"unix://{self.folder}/redis.sock") as client:
            return bool(client.ping())

    def _api_answers(self) -> bool:
        return httpx.get(f"http://{self.address}/healthz", timeout=2, trust_env=False).status_code == 200

    def now(self) -> float:
        return time.time()

    def begin(self) -> None:
        """In the simulator's loop, once all processes run."""
        self.loop = asyncio.get_running_loop()  # type: ignore[assignment]
        for host in self.hosts:
            host.plant()
            self._tasks.append(asyncio.ensure_future(host.watch()))

    async def kill(self, name: str) -> None:
        """``kill -9``; the supervisor starts it again."""
        bereft = [host for host in self.hosts if name == f"agent-{host.name}"]
        for host in bereft:
            host.dying = True
        pid = self.supervisor.kill(name, signal.SIGKILL)
        if pid is None:
            return
        self.kills += 1
        self.killed_at = time.monotonic()
        self.used[f"killed-{name.partition('-')[0]}"] += 1
        self.journal.note(f"killed {name}")
        while self.supervisor.pids.get(name) == pid:  # noqa: ASYNC110 - the supervisor has no event of it
            await asyncio.sleep(0.01)
        for host in bereft:
            host.agent_died()

    def silent(self, runner: str) -> None:
        """GitHub notices, sooner than the real one, that nobody polls for ``runner`` any more."""
        found = next((it for it in self.github.state.runners.values() if it.name == runner), None)
        if found is not None and found.session is not None:
            self.loop.call_later(SILENT_S, self._noticed, found)

    def _noticed(self, runner: Any) -> None:
        if not runner.gone and (runner.job is None or runner.job.status == "queued"):
            self.github.engine.close_session(runner)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for host in self.hosts:
            for ulid in list(host.guests):
                host.stops(ulid, "over")

    def stop(self) -> None:
        """Every process, and the namespaces.  Not in the loop, which the API may be talking to."""
        self.supervisor.stop()
        for host in self.hosts:
            with contextlib.suppress(Exception):
                netns.delete(host.settings.netns)

    def broken(self) -> list[str]:
        """What the processes themselves say they didn't foresee: tracebacks of theirs that aren't a neighbour's death."""
        return [
            f"{path.name}: {line[-1500:]}"
            for path in sorted(self.folder.glob("*.log"))
            for line in path.read_text(errors="replace").splitlines()
            if "loop_broke" in line or "AssertionError" in line
        ]


def may_run() -> str:
    """Why the real tier can't run here; empty where it can."""
    if os.geteuid() != 0:
        return "real processes need root (network namespaces)"
    missing = [name for name in ("redis-server", "qemu-img", "nft", "ip") if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)} (`make setup` installs them)" if missing else ""
