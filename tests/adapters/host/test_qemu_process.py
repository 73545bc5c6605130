"""A QEMU that is dead and not reaped: it is seen as that, and libvirt isn't asked about its domain until it is reaped."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.host import qemu_process
from orchestrator.host.hypervisor import Libvirt

NAME = "ironcd-01arz3ndektsv4rrffq69g5fav"


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """Stands for a QEMU: its parent, who hasn't reaped it yet, is this test in place of PID 1."""
    process = subprocess.Popen(["sleep", "600"])
    (tmp_path / f"{NAME}.pid").write_text(f"{process.pid}\n")
    monkeypatch.setattr(qemu_process, "PIDS", tmp_path)
    yield process
    process.kill()
    process.wait()


def die(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert qemu_process.is_unreaped(NAME)


def test_who_lives_is_not_dead(process: subprocess.Popen[bytes]) -> None:
    assert not qemu_process.is_unreaped(NAME)
    assert qemu_process.wait_reaped(NAME, within_s=0)


def test_who_is_dead_is_unreaped_until_his_parent_has_looked(process: subprocess.Popen[bytes]) -> None:
    die(process)
    assert not qemu_process.wait_reaped(NAME, within_s=0)
    process.wait()
    assert qemu_process.wait_reaped(NAME, within_s=0)


def test_of_whom_nothing_is_known_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu_process, "PIDS", tmp_path)
    assert qemu_process.wait_reaped(NAME, within_s=0)
    (tmp_path / f"{NAME}.pid").write_text("no number")
    assert qemu_process.wait_reaped(NAME, within_s=0)


def test_libvirt_is_not_asked_about_a_domain_whose_qemu_is_unreaped(
    process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks holds libvirt's list of domains until the process is reaped, and no other VM can be made."""
    hypervisor = Libvirt("test:///default", "test")
    asked: list[bool] = []
    really = hypervisor._open

    def opened() -> object:
        asked.append(qemu_process.is_unreaped(NAME))
        return really()

    monkeypatch.setattr(hypervisor, "_open", opened)
    try:
        die(process)
        assert hypervisor.state(NAME) == "stopped"
        assert asked == []
        monkeypatch.setattr("time.sleep", lambda _seconds: process.wait())
        hypervisor.destroy(NAME)
        assert asked == [False]
        assert hypervisor.state(NAME) is None
    finally:
        hypervisor.close()
