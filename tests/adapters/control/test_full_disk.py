"""The control plane's disk is full, for real: what has to be kept there waits, everything else goes on, and it is said."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from orchestrator.control.settings import ControlSettings
from orchestrator.system.process import CommandFailed, run
from tests.unit.control.stage import REPO, Stage

pytestmark = pytest.mark.real

NARROWER = b"mode: enforce\nallow:\n  - host: other.example\n"


class Disk:
    """A file system of 256 KiB; ``ballast`` is what fills it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        with self._ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                os.fsync(file.fileno())

    def make_room(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a file system")
    place = tmp_path / "disk"
    place.mkdir()
    try:
        run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)])
    except CommandFailed as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    try:
        yield Disk(place)
    finally:
        run(["umount", "--lazy", str(place)])


@pytest.fixture
async def stage(disk: Disk) -> AsyncIterator[Stage]:
    made = Stage(disk.folder, settings=ControlSettings(app_id=1, state_dir=str(disk.folder), prefix="t:"))
    yield made
    await made.close()


def archived(disk: Disk) -> list[int]:
    lines = [line for path in (disk.folder / "archive").glob("*.jsonl") for line in path.read_bytes().split(b"\n")]
    found = []
    for line in lines:
        try:
            found.append(json.loads(line)["job"]["job"]["id"])
        except json.JSONDecodeError:
            continue  # the torn end of what didn't fit
    return found


async def said(stage: Stage) -> float:
    return (await stage.store.counters()).get("incidents{kind=state_unwritable}", 0.0)


async def test_jobs_that_are_over_are_kept_until_the_disk_takes_them(stage: Stage, disk: Disk) -> None:
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    await stage.run()
    assert archived(disk) == [1]
    disk.fill()
    await stage.deliver(stage.job(2))
    await stage.run()
    known = await stage.store.job(2)
    assert known is not None
    assert (known.job.state, known.job.conclusion) == ("completed", "success")
    assert stage.github.runners == {}, "its runner went all the same"
    assert [key for host in stage.hosts.values() for key in host.seen] == []
    assert {record.job.id for record in await stage.store.live_jobs()} == {2}, "not let go of, since it isn't kept"
    assert await said(stage) > 0
    assert await stage.look(), "the lease is free for the next look"
    before = await said(stage)
    disk.make_room()
    await stage.look()
    assert set(archived(disk)) == {1, 2}
    assert await said(stage) == before
    assert await stage.leftovers() == {}


async def test_a_worker_that_is_killed_meanwhile_loses_none_of_them(stage: Stage, disk: Disk) -> None:
    (disk.folder / "archive").mkdir()
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    for _ in range(4):
        await stage.hosts_move()
        await stage.look()
    for job in stage.github_assigns():
        await stage.deliver(job)
    for _ in range(3):
        await stage.look()
        await stage.hosts_move()
    disk.fill()
    await stage.deliver(stage.github.end(1, "success"))
    await stage.run()
    stage.reconciler = stage.fresh()
    await stage.look()
    assert {record.job.id for record in await stage.store.live_jobs()} == {1}
    disk.make_room()
    await stage.look()
    assert set(archived(disk)) == {1}
    assert await stage.leftovers() == {}


async def test_a_job_whose_policy_cant_be_kept_waits_and_holds_up_no_other(stage: Stage, disk: Disk) -> None:
    """A policy is in the archive before any host is told of it."""
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    await stage.run()
    disk.fill()
    stage.github.files["acme/new", ".ironcd/policy.yml"] = NARROWER
    await stage.deliver(stage.job(2, repo="acme/new"))
    await stage.deliver(stage.job(3, repo=REPO))
    await stage.run()
    states = {number: stage.github.jobs[number].state for number in (2, 3)}
    assert states == {2: "in_progress", 3: "completed"}
    (waits,) = await stage.runners()
    assert waits.life.job_id == 2
    assert not waits.bound
    assert "can't keep its policy: No space left on device" in waits.waiting
    assert await said(stage) > 0
    disk.make_room()
    await stage.run(seconds=5.0)
    assert stage.github.jobs[2].conclusion == "success"
    assert set(archived(disk)) == {1, 2, 3}
    assert await stage.leftovers() == {}
