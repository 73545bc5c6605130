"""Children are started in order, started again when they end, and gone when they should be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.core.errors import OperationalError
from orchestrator.surface.supervisor import Program, Supervisor

pytestmark = pytest.mark.real


def sleeper(name: str, **more: object) -> Program:
    return Program(name, ("sleep", "600"), lambda: True, **more)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def has_ended(pid: int) -> bool:
    """True for a zombie too, which waits for whoever adopted it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_for(condition, within_s: float = 60.0) -> bool:
    limit = time.monotonic() + within_s
    while time.monotonic() < limit:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_children_run_and_are_gone_after_stop():
    with Supervisor([sleeper("a"), sleeper("b")]) as supervisor:
        pids = supervisor.pids
        assert set(pids) == {"a", "b"}
        assert all(map(alive, pids.values()))
    assert not any(map(alive, pids.values()))


def test_each_starts_once_the_one_before_it_serves(tmp_path: Path):
    flag = tmp_path / "flag"
    first = Program("first", ("sh", "-c", f"sleep 0.3; touch {flag}; exec sleep 600"), flag.exists)
    second = Program("second", ("sh", "-c", f"test -e {flag} && exec sleep 600; exit 9"), lambda: True)
    with Supervisor([first, second]) as supervisor:
        time.sleep(0.1)
        assert supervisor.children["second"].starts == 1
        assert supervisor.pids.keys() == {"first", "second"}


def test_a_killed_child_is_started_again():
    with Supervisor([sleeper("a")]) as supervisor:
        old = supervisor.kill("a")
        assert wait_for(lambda: supervisor.pids.get("a") not in (None, old))


def test_a_child_that_never_serves_is_told_with_its_log_and_nothing_is_left(tmp_path: Path):
    broken = Program("broken", ("sh", "-c", "echo it broke; exec sleep 600"), lambda: False, ready_within_s=1.5)
    supervisor = Supervisor([sleeper("a"), broken], log_dir=tmp_path)
    with pytest.raises(OperationalError, match="it broke") as caught:
        supervisor.start()
    assert caught.value.code == "start-failed"
    assert supervisor.pids == {}


def test_a_program_that_is_not_there_is_no_crash_of_ours(tmp_path: Path):
    served = tmp_path / "served"
    absent = Program("absent", (str(tmp_path / "nothing"),), served.exists, ready_within_s=0.5)
    with pytest.raises(OperationalError, match="absent did not become ready"):
        Supervisor([absent], log_dir=tmp_path).start()


def test_one_that_ignores_sigterm_is_killed():
    stubborn = Program(
        "stubborn", ("sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"), lambda: True, stop_within_s=0.5
    )
    with Supervisor([stubborn]) as supervisor:
        time.sleep(0.2)
        pid = supervisor.pids["stubborn"]
    assert not alive(pid)


def test_children_die_with_a_supervisor_that_is_killed():
    code = (
        "import time\n"
        "from orchestrator.surface.supervisor import Program, Supervisor\n"
        "s = Supervisor([Program('a', ('sleep', '600'), lambda: True)])\n"
        "s.start(); print(s.pids['a'], flush=True); time.sleep(600)\n"
    )
    root = Path(__file__).resolve().parents[3]
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert wait_for(lambda: has_ended(child))


def test_children_inherit_no_variable_of_ours(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("IRONCD_SOMETHING", "secret")
    out = tmp_path / "env"
    program = Program("env", ("sh", "-c", f"env >{out}.new; mv {out}.new {out}; exec sleep 600"), out.exists)
    with Supervisor([program]):
        assert "IRONCD_SOMETHING" not in out.read_text()
