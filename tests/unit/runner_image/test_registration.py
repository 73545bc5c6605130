from __future__ import annotations

import os
import random
from base64 import b64encode
from pathlib import Path

import pytest

from runner_image.guest import registration

BLOB = b64encode(random.Random(1).randbytes(3300))


@pytest.fixture
def cloud(tmp_path: Path) -> Path:
    """What cloud-init leaves behind after a seed with a registration."""
    instance = tmp_path / "lib/instances/i-1"
    (instance / "scripts").mkdir(parents=True)
    for name in ("user-data.txt", "user-data.txt.i", "cloud-config.txt", "obj.pkl"):
        (instance / name).write_bytes(b"x" + BLOB)
    (tmp_path / "lib/instance").symlink_to("instances/i-1")
    (tmp_path / "lib/data").mkdir()
    (tmp_path / "lib/data/status.json").write_text("{}")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/instance-data-sensitive.json").write_bytes(BLOB)
    (tmp_path / "run/combined-cloud-config.json").write_bytes(BLOB)
    (tmp_path / "run/result.json").write_text("{}")
    (tmp_path / "jit").write_bytes(BLOB + b"\n")
    return tmp_path


def take(place: Path) -> str:
    log = str(place / "cloud-init.log")
    return registration.take(str(place / "jit"), cloud=str(place / "lib"), run=str(place / "run"), logs=(log,))


def held(place: Path) -> list[str]:
    return registration.holders(BLOB, (str(place),))


def test_it_is_taken_and_every_copy_is_gone(cloud: Path) -> None:
    assert take(cloud) == BLOB.decode()
    assert held(cloud) == []
    assert not (cloud / "jit").exists()
    assert not (cloud / "lib/instance").is_symlink()


def test_what_cloud_init_needs_later_stays(cloud: Path) -> None:
    take(cloud)
    assert (cloud / "lib/data/status.json").exists()
    assert (cloud / "run/result.json").exists()


@pytest.mark.parametrize(
    "copy", [BLOB, *(b'{"a":"' + b64encode(b"#cloud-config"[:length] + BLOB) + b'"}' for length in (11, 12, 13))]
)
@pytest.mark.parametrize("name", ["lib/data/unheard-of", "run/unheard-of", "cloud-init.log"])
def test_a_copy_in_a_place_nobody_thought_of_goes_too(cloud: Path, name: str, copy: bytes) -> None:
    (cloud / name).write_bytes(copy)
    take(cloud)
    assert not (cloud / name).exists()


def test_a_log_without_it_stays(cloud: Path) -> None:
    (cloud / "cloud-init.log").write_text("Writing to /run/ironcd/jit - wb: [600] 4096 bytes")
    take(cloud)
    assert (cloud / "cloud-init.log").exists()


def test_with_no_registration_the_user_data_goes_all_the_same(cloud: Path) -> None:
    (cloud / "jit").unlink()
    assert take(cloud) == ""
    assert not (cloud / "lib/instances").exists()


def test_cloud_init_is_done_when_its_process_is(tmp_path: Path) -> None:
    group = tmp_path / "cgroup.procs"
    assert not registration.cloud_init_done(str(tmp_path), str(group))
    (tmp_path / "result.json").write_text("{}")
    group.write_text("123\n")
    assert not registration.cloud_init_done(str(tmp_path), str(group))
    group.write_text("")
    assert registration.cloud_init_done(str(tmp_path), str(group))
    group.unlink()
    assert registration.cloud_init_done(str(tmp_path), str(group))


def test_the_runner_gets_its_registration_in_its_environment_alone(tmp_path: Path) -> None:
    from runner_image.guest.runner import _ARGUMENTS, REGISTRATION, environment, read_env

    (tmp_path / ".env").write_text("LANG=C.UTF-8\nODD=a=b\n\n")
    env = environment("/home/runner", read_env(str(tmp_path / ".env")), "secret")
    assert env["ODD"] == "a=b"
    assert env[REGISTRATION] == "secret"
    assert REGISTRATION not in environment("/home/runner", {}, "")
    assert _ARGUMENTS == ["bin/Runner.Listener", "run"]


def test_only_cloud_inits_own_process_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a seed's commands left running in its group is waited for, as it always was."""
    killed: list[int] = []
    monkeypatch.setattr(registration.os, "kill", lambda pid, _signal: killed.append(pid))
    group = tmp_path / "cgroup.procs"
    registration.end_cloud_init(str(group))  # the group is gone with its last process
    group.write_text(f"{os.getpid()}\n")
    registration.end_cloud_init(str(group))
    assert killed == []
    comm = Path("/proc/self/comm")
    before = comm.read_text()
    try:
        comm.write_text("cloud-init")
        registration.end_cloud_init(str(group))
    finally:
        comm.write_text(before)
    assert killed == [os.getpid()]
