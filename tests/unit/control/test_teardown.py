"""The end of a job holds up neither the next one's start nor what GitHub is told, however long a host tears down."""

from __future__ import annotations

import msgspec
import pytest

from orchestrator.core.wire import DesiredRunner, ObservedRunner

from .stage import Host, Stage


class SlowHost(Host):
    """Its VMs' processes die at once, where ``dies`` is set; libvirt and the proof take for ever."""

    dies = True

    def _step(self, wish: DesiredRunner, seen: ObservedRunner | None, now: float) -> ObservedRunner:
        if wish.wish == "run" or seen is None:
            return super()._step(wish, seen, now)
        marks = {"end_begun": now} | ({"vm_dead": now} if self.dies else {})
        return msgspec.structs.replace(seen, vm="stopped", marks={**seen.marks, **marks})


@pytest.fixture
def slow(stage: Stage) -> SlowHost:
    made = SlowHost(vcpus=2)
    stage.hosts = {"h1": made}
    return made


async def test_the_next_job_gets_the_room_of_a_dead_vm(stage: Stage, slow: SlowHost) -> None:
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    await stage.run(rounds=6)
    (first,) = await stage.runners()
    assert first.life.phase == "DESTROYING"
    await stage.deliver(stage.job(2))
    await stage.run(rounds=6)
    assert stage.github.jobs[2].conclusion == "success"
    assert {record.life.phase for record in await stage.runners()} == {"DESTROYING"}


async def test_registrations_go_without_waiting_for_the_host(stage: Stage, slow: SlowHost) -> None:
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    await stage.run(rounds=6)
    (record,) = await stage.runners()
    assert (record.life.vm, record.life.registration) == ("asked", "gone")
    assert not stage.github.runners


async def test_a_vm_that_nobody_saw_die_keeps_its_room(stage: Stage, slow: SlowHost) -> None:
    slow.dies = False
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    await stage.run(rounds=6)
    await stage.deliver(stage.job(2))
    await stage.run(rounds=3)
    assert "is full" in (await stage.job_record(2)).job.reason


async def test_its_disk_is_counted_until_it_is_proved_gone(stage: Stage, slow: SlowHost) -> None:
    slow.capacity = msgspec.structs.replace(slow.capacity, disk_gib=30)
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    await stage.run(rounds=6)
    await stage.deliver(stage.job(2))
    await stage.run(rounds=3)
    assert "GiB of disk" in (await stage.job_record(2)).job.reason


async def test_a_mark_from_before_a_second_start_frees_nothing(stage: Stage, slow: SlowHost) -> None:
    """An agent that starts again clears away what wasn't finished, and makes it anew: that VM lives."""
    await stage.hosts_move()
    slow.steps_per_move = 2
    await stage.deliver(stage.job(1))
    await stage.look()
    await stage.hosts_move()
    (record,) = await stage.runners()
    seen = slow.seen[record.id]
    slow.seen[record.id] = msgspec.structs.replace(seen, marks={**seen.marks, "vm_dead": stage.now})
    await stage.hosts_move()
    await stage.deliver(stage.job(2))
    await stage.look()
    assert "is full" in (await stage.job_record(2)).job.reason
