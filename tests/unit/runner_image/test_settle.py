"""What a machine does before a template is taken of it: it waits until nothing is on its way, and reads ahead."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from runner_image.guest import settle

JOBS = """  1 ironcd-guest.service start running
 12 systemd-udevd.service start running
 13 multi-user.target start waiting
"""


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runner of two files with 3 MiB, as all that is read ahead."""
    folder = tmp_path / "runner"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "a").write_bytes(b"a" * (2 << 20))
    (folder / "bin" / "b").write_bytes(b"b" * (1 << 20))
    (folder / "bin" / "gone").symlink_to("nowhere")
    monkeypatch.setattr(settle, "_READ_AHEAD", (str(folder), str(tmp_path / "missing")))
    monkeypatch.setattr(settle, "_PROGRAMS", ())
    return folder


def test_every_file_of_the_runner_is_read_ahead(runner: Path) -> None:
    assert settle.files() == [str(runner / "bin" / "a"), str(runner / "bin" / "b")]
    assert settle.read_ahead(1 << 40) == 3 << 20


def test_no_more_is_read_than_there_is_room_for(runner: Path) -> None:
    assert settle.read_ahead(1 << 20) == 1 << 20
    assert settle.read_ahead(0) == 0


def test_what_is_read_ahead_is_the_runner_cloud_init_and_ours() -> None:
    assert set(settle._READ_AHEAD) >= {
        "/opt/actions-runner/bin",
        "/usr/lib/python3/dist-packages/cloudinit",
        "/usr/lib/ironcd",
    }
    assert set(settle._PROGRAMS) >= {"bash", "git", "node"}


def test_what_waits_for_our_own_unit_doesnt_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=JOBS.encode()))
    assert settle.running_jobs() == ["systemd-udevd.service"]


def test_it_waits_until_nothing_is_on_its_way_and_then_reads(runner: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = [["a.service", "b.service"], ["b.service"], []]
    read: list[int] = []
    monkeypatch.setattr(settle, "running_jobs", lambda: left.pop(0))
    monkeypatch.setattr(settle, "available_bytes", lambda: 100 << 20)
    monkeypatch.setattr(settle, "read_ahead", read.append)
    monkeypatch.setattr(settle.time, "sleep", lambda _seconds: None)
    settle.settle()
    assert left == []
    assert read == [25 << 20], "a quarter of the memory that is free"


def test_a_boot_that_comes_to_no_end_makes_no_template(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(settle, "running_jobs", lambda: ["loop.service"])
    monkeypatch.setattr(settle.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(settle.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    with pytest.raises(TimeoutError):
        settle.settle()
    assert now[0] >= settle.PATIENCE_S


def test_memory_that_is_free_is_read_off_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    2048 kB\n")
    assert settle.available_bytes(str(tmp_path / "meminfo")) == 2 << 20
