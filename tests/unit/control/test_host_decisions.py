"""Cordons and drains outlive Redis: the host that was told of them says them again, and no old report undoes a newer decision."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from orchestrator.control.drain_api import DrainApi
from orchestrator.core.decided import Decided, Drain
from orchestrator.core.wire import Desired

from .stage import Host, Stage

KERNEL = "new kernel"


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    made = Stage(tmp_path, hosts=[Host("h1")])
    await turn(made)
    yield made
    await made.close()


async def turn(stage: Stage, times: int = 2) -> None:
    for _ in range(times):
        await stage.hosts_move()
        await stage.look()
        stage.now += 1
    await stage.hosts_move()


async def forget(stage: Stage) -> None:
    await stage.redis.flushall()
    stage.reconciler = stage.fresh()


def api(stage: Stage) -> DrainApi:
    return DrainApi(stage.store, hosts=frozenset({"h1"}), clock=stage.clock)


def drain(stage: Stage, **changes: object) -> Drain:
    return msgspec.structs.replace(Drain(stage.now, stage.now + 600, KERNEL), **changes)


async def test_a_cordon_comes_back_with_its_reason_before_anything_is_placed(stage: Stage) -> None:
    await stage.store.cordon("h1", "broken fan")
    await turn(stage)
    await forget(stage)
    await stage.deliver(stage.job(1))
    await turn(stage, times=4)
    assert await stage.store.cordoned() == {"h1": "broken fan"}
    assert await stage.runners() == []
    assert "is cordoned" in (await stage.job_record(1)).job.reason
    await stage.store.uncordon("h1")
    await stage.run(rounds=8)
    assert (await stage.job_record(1)).job.conclusion == "success"
    assert await stage.leftovers() == {}


async def test_a_drain_comes_back_with_its_deadline(stage: Stage) -> None:
    wished = drain(stage)
    await stage.store.drain("h1", wished)
    await turn(stage)
    await forget(stage)
    await turn(stage)
    assert await stage.store.draining() == {"h1": wished}
    _, raw = await stage.store.desired("h1")
    assert msgspec.json.decode(raw or b"", type=Desired).decided.drain == wished


async def test_what_was_taken_back_doesnt_come_back(stage: Stage) -> None:
    await stage.store.cordon("h1", "broken fan")
    await stage.store.drain("h1", drain(stage))
    await turn(stage)
    await stage.store.uncordon("h1")
    await stage.store.undrain("h1")
    await turn(stage)
    await forget(stage)
    await turn(stage)
    assert (await stage.store.cordoned(), await stage.store.draining()) == ({}, {})


@pytest.mark.parametrize("emptied", [False, True])
async def test_an_old_report_undoes_no_newer_decision(emptied: bool, stage: Stage) -> None:
    """The host hasn't heard yet that it was taken back into use; or Redis was emptied just before."""
    await stage.store.cordon("h1", "broken fan")
    await stage.store.drain("h1", drain(stage))
    await turn(stage)
    if emptied:
        await forget(stage)
    await stage.store.uncordon("h1")
    await stage.store.undrain("h1")
    await stage.put_reports()
    assert stage.hosts["h1"].decided.cordoned == "broken fan"
    assert (await stage.store.cordoned(), await stage.store.draining()) == ({}, {})
    await turn(stage)
    assert stage.hosts["h1"].decided.cordoned is None
    assert stage.hosts["h1"].decided.drain is None
    await forget(stage)
    await turn(stage)
    assert (await stage.store.cordoned(), await stage.store.draining()) == ({}, {})


async def test_a_new_deadline_after_redis_was_emptied_stands(stage: Stage) -> None:
    await stage.store.drain("h1", drain(stage))
    await turn(stage)
    await forget(stage)
    longer = drain(stage, until=stage.now + 6000)
    await stage.store.drain("h1", longer)
    await turn(stage)
    assert await stage.store.draining() == {"h1": longer}
    assert stage.hosts["h1"].decided.drain == longer


async def test_a_host_that_went_down_by_itself_and_is_up_again_takes_that_back(stage: Stage) -> None:
    """It calls before its agent reports: Redis, emptied meanwhile, knows of no drain then."""
    await api(stage).drain_itself("h1", 600.0)
    await turn(stage)
    assert stage.hosts["h1"].decided.drain is not None
    await forget(stage)
    await api(stage).undrain_itself("h1")
    await turn(stage)
    assert await stage.store.draining() == {}
    assert stage.hosts["h1"].decided.drain is None, "it isn't said again the next time either"


async def test_it_doesnt_take_back_what_an_admin_wants(stage: Stage) -> None:
    wished = drain(stage)
    await stage.store.drain("h1", wished)
    await turn(stage)
    await forget(stage)
    await api(stage).undrain_itself("h1")
    await turn(stage)
    assert await stage.store.draining() == {"h1": wished}
    await api(stage).undrain_itself("h1")
    assert await stage.store.draining() == {"h1": wished}


async def test_a_drain_of_its_own_can_be_wished_again(stage: Stage) -> None:
    await api(stage).undrain_itself("h1")
    await api(stage).drain_itself("h1", 600.0)
    await turn(stage)
    assert (await stage.store.draining())["h1"].by == "host"
    await api(stage).undrain_itself("h1")
    await turn(stage)
    assert await stage.store.draining() == {}
    assert stage.hosts["h1"].decided.drain is None


async def test_agents_of_the_version_before_say_nothing_and_are_told_all_the_same(stage: Stage) -> None:
    stage.hosts["h1"].remembers = False
    await stage.store.cordon("h1", "broken fan")
    await turn(stage)
    assert await stage.store.cordoned() == {"h1": "broken fan"}
    await forget(stage)
    await turn(stage)
    assert await stage.store.cordoned() == {}


async def test_what_was_decided_before_times_were_kept_is_told_to_hosts_too(stage: Stage) -> None:
    await stage.redis.hset(stage.store.names.cordoned, "h1", "broken fan")
    await turn(stage)
    assert stage.hosts["h1"].decided == Decided("broken fan", 1.0)
    await forget(stage)
    await turn(stage)
    assert await stage.store.cordoned() == {"h1": "broken fan"}
    await stage.store.uncordon("h1")
    await turn(stage)
    assert stage.hosts["h1"].decided.cordoned is None
