"""The record's way from host to control plane in real processes that are killed: each record arrives once, and proves itself."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import httpx
import pytest

from orchestrator.audit import Ledger, days
from orchestrator.audit.verify import Ask, verify_all
from orchestrator.system.segments import LedgerReader

pytestmark = pytest.mark.real

SCRIPT = Path(__file__).with_name("record_process.py")


class Way:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, role: str) -> None:
        self._start(role, [sys.executable, str(SCRIPT), role, str(self.folder), str(self.port)])

    def follow(self) -> None:
        """The command itself, going on where it was; what it prints comes into ``followed``."""
        token, config, place = (self.folder / name for name in ("admin-token", "ironcd.toml", "place"))
        token.write_text("t")
        config.write_text(f'[control]\nurl = "http://127.0.0.1:{self.port}"\nadmin_token_file = "{token}"\n')
        ironcd = [sys.executable, "-m", "orchestrator.surface", "--config", str(config)]
        argv = [*ironcd, "audit", "egress", "--follow", "--json", "--since", "1h", "--place-file", str(place)]
        with (self.folder / "followed").open("ab") as out:
            self._start("follower", argv, out)

    def followed(self) -> list[int]:
        whole = (self.folder / "followed").read_bytes().rpartition(b"\n")[0]
        return [json.loads(line)["seq"] for line in whole.splitlines()]

    def _start(self, role: str, argv: list[str], out: IO[bytes] | None = None) -> None:
        with (self.folder / f"{role}.log").open("ab") as log:
            self.processes[role] = subprocess.Popen(argv, stdout=out or log, stderr=log)

    def kill(self, role: str) -> None:
        self.processes[role].kill()
        self.processes[role].wait()

    def end(self, role: str) -> None:
        self.processes[role].terminate()
        assert self.processes[role].wait(120) == 0, (self.folder / f"{role}.log").read_text()

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()

    def until(self, what: Callable[[], object], seconds: float = 180.0) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            logs = "\n".join(path.read_text()[-2000:] for path in self.folder.glob("*.log"))
            assert time.monotonic() < deadline, f"{self.written()} written, {self.arrived()} arrived\n{logs}"
            time.sleep(0.05)

    def ready(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/ready", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def written(self) -> int:
        return LedgerReader(self.folder / "host" / "ledger").last_seq()

    def arrived(self) -> int:
        return Ledger(self.folder / "control").next_seq("h1") - 1

    def finish(self) -> None:
        """No more records; everything arrives; what arrived is what was written, and proves itself."""
        self.end("gateway")
        last = self.written()
        assert last > 0
        self.until(lambda: self.arrived() == last and self.signed() == last)
        record, own = self.folder / "control" / "h1", self.folder / "host" / "ledger"
        assert lines(record) == lines(own)
        (report,) = verify_all(self.folder / "control", Ask())
        assert (report.findings, report.records, report.signed) == ([], last, last)
        assert Ledger(self.folder / "control").gaps("h1") == []

    def signed(self) -> int:
        (report,) = verify_all(self.folder / "control", Ask())
        return report.signed


def lines(folder: Path) -> list[bytes]:
    return [line for day in days.days(folder) for line in days.lines(folder, day)]


@pytest.fixture
def way(tmp_path: Path) -> Iterator[Way]:
    made = Way(tmp_path)
    yield made
    made.close()


def begin(way: Way) -> None:
    for role in ("control", "gateway", "agent"):
        way.start(role)
    way.until(lambda: way.ready() and way.arrived() > 0)


@pytest.mark.parametrize("moment", ["die-unfiled", "die-filed"])
def test_a_control_plane_that_dies_between_batch_and_ack(way: Way, moment: str) -> None:
    begin(way)
    (way.folder / moment).touch()
    way.until(lambda: way.processes["control"].poll() is not None)
    assert way.processes["control"].returncode == -signal.SIGKILL
    before = way.written()
    way.until(lambda: way.written() > before + 500)  # an absence, with the gateway going on
    way.start("control")
    way.finish()


def test_an_agent_that_dies_between_batch_and_ack(way: Way) -> None:
    begin(way)
    (way.folder / "stall-filed").touch()
    way.until((way.folder / "did-stall-filed").exists)
    way.kill("agent")
    way.start("agent")
    way.finish()


def test_who_follows_gets_each_once_over_restarts_of_both_sides(way: Way) -> None:
    begin(way)
    way.follow()
    way.until(lambda: (way.folder / "followed").exists() and way.followed())
    way.kill("control")
    before = way.written()
    way.until(lambda: way.written() > before + 200)
    way.start("control")
    way.until(lambda: way.followed()[-1] > before)
    way.end("follower")
    before = way.written()
    way.until(lambda: way.arrived() > before + 200)
    way.follow()
    way.finish()
    last = way.written()
    way.until(lambda: way.followed()[-1] == last)
    assert way.followed() == list(range(way.followed()[0], last + 1))


def test_kills_of_all_three_at_random_moments(way: Way) -> None:
    seed = int(os.environ.get("SHIPPING_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
    sys.stdout.write(f"again with SHIPPING_SEED={seed}\n")
    chance = random.Random(seed)
    begin(way)
    for role in chance.sample(["control", "agent", "gateway"] * 4, 12):
        time.sleep(chance.uniform(0.0, 0.4))
        way.kill(role)
        time.sleep(chance.uniform(0.0, 0.2))
        way.start(role)
    way.until(lambda: way.ready() and way.processes["gateway"].poll() is None)
    before = way.written()
    way.until(lambda: way.written() > before)
    way.finish()
