"""Machines on hosts that nobody has a record of: they take room until they are proved gone."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from .stage import Host, Stage


async def stray_on_h1(tmp_path: Path, vm: str = "running") -> Stage:
    """A machine on a host with room for one; Redis and GitHub know nothing of its runner."""
    stage = Stage(tmp_path, hosts=[Host("h1", 2)])
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    await stage.look()
    await stage.hosts_move()
    await stage.look()
    stage.github.end(1, "cancelled")
    stage.github.runners.clear()
    (runner,) = stage.hosts["h1"].seen
    stage.hosts["h1"].seen[runner] = msgspec.structs.replace(stage.hosts["h1"].seen[runner], vm=vm)
    await stage.redis.flushall()
    stage.reconciler = stage.fresh()
    await stage.put_reports()
    return stage


async def test_a_host_gets_nothing_new_while_a_stray_fills_it(tmp_path: Path) -> None:
    stage = await stray_on_h1(tmp_path)
    await stage.deliver(stage.job(2))
    await stage.look()
    assert await stage.runners() == []
    assert "no host has room" in (await stage.job_record(2)).job.reason
    await stage.run()
    assert stage.started.keys() == {2}
    assert await stage.leftovers() == {}
    await stage.close()


@pytest.mark.parametrize("vm", ["stopped", "failed", "crashed", "absent"])
async def test_a_dead_stray_takes_only_its_disk(vm: str, tmp_path: Path) -> None:
    stage = await stray_on_h1(tmp_path, vm)
    await stage.deliver(stage.job(2))
    await stage.look()
    assert [record.life.host for record in await stage.runners()] == ["h1"]
    await stage.close()
