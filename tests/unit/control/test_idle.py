"""How long a host lets a runner listen without a job, when nobody is there who could ask GitHub; and what is told of its end."""

from __future__ import annotations

import msgspec
import pytest

from orchestrator.control.desired import IDLE_GRACE_S
from orchestrator.control.github import Unavailable
from orchestrator.control.records import RunnerRecord
from orchestrator.core.runner import Deadlines
from orchestrator.core.wire import Desired, Failure, ObservedRunner

from .stage import Stage, runner_name

READY_S = Deadlines().ready_s
FIRST = READY_S + IDLE_GRACE_S


async def limit(stage: Stage, runner: str) -> float:
    _, raw = await stage.store.desired("h1")
    assert raw is not None
    return next(one.idle_s for one in msgspec.json.decode(raw, type=Desired).runners if one.id == runner)


async def turn(stage: Stage, times: int = 1, seconds: float = 1.0) -> None:
    for _ in range(times):
        await stage.hosts_move()
        await stage.look()
        stage.now += seconds


async def only(stage: Stage) -> RunnerRecord:
    (record,) = await stage.runners()
    return record


@pytest.fixture
async def ready(stage: Stage) -> Stage:
    """The runner of job 1 listens, and GitHub gives it nothing."""
    await stage.deliver(stage.job(1))
    await turn(stage, times=3)
    assert (await only(stage)).life.phase == "READY"
    return stage


async def test_a_host_knows_the_limit_before_its_runner_listens(stage: Stage) -> None:
    stage.hosts["h1"].steps_per_move = 0
    await stage.deliver(stage.job(1))
    await turn(stage, times=2)
    assert (await only(stage)).life.phase == "BOOTING"
    assert await limit(stage, (await only(stage)).id) == FIRST


async def test_that_it_listens_changes_nothing_that_its_host_is_told(ready: Stage) -> None:
    assert await limit(ready, (await only(ready)).id) == FIRST


async def test_where_we_are_there_the_fence_comes_first(ready: Stage) -> None:
    """GitHub can't be asked just then: the host waits as long as we do."""
    runner = (await only(ready)).id

    def trouble(call: str, _when: str) -> None:
        if call == "delete_runner":
            raise Unavailable("slow")

    ready.github.trouble = trouble
    listened = ready.now
    while ready.now < listened + 3 * READY_S:
        assert await limit(ready, runner) > ready.now - listened
        await turn(ready, seconds=60)
    assert (await only(ready)).life.fencing == "idle"
    ready.github.trouble = lambda _call, _when: None
    await turn(ready, times=10, seconds=40)
    (gone,) = (await ready.store.gone_runners([runner])).values()
    assert gone.life.reason == "idle"


async def test_with_a_job_there_is_no_limit(ready: Stage) -> None:
    runner = (await only(ready)).id
    await ready.deliver(ready.github.give(1, runner_name(runner)))
    await turn(ready)
    assert (await only(ready)).life.phase == "RUNNING"
    assert await limit(ready, runner) == 0


async def test_in_an_outage_of_github_there_is_none_and_then_it_is_later(ready: Stage) -> None:
    runner = (await only(ready)).id

    def away(_call: str, _when: str) -> None:
        raise Unavailable("502")

    ready.github.trouble = away
    await ready.deliver(ready.job(2))
    await turn(ready, times=9, seconds=10)
    assert await ready.store.outage_since() > 0
    await turn(ready, times=12, seconds=300)
    assert await limit(ready, runner) == 0
    ready.github.trouble = lambda _call, _when: None
    await turn(ready, times=8, seconds=5)
    assert await ready.store.outage_since() == 0
    assert await limit(ready, runner) > 3600


async def test_a_machine_that_was_taken_back_counts_from_when_it_listened(ready: Stage) -> None:
    """The host counts from there too, and must not be earlier than we are."""
    runner = (await only(ready)).id
    listened = ready.now
    ready.now += 200
    await ready.redis.flushall()
    ready.reconciler = ready.fresh()
    await turn(ready, times=3)
    record = await only(ready)
    assert (record.id, record.life.phase) == (runner, "READY")
    assert listened + await limit(ready, runner) > record.life.deadline + IDLE_GRACE_S / 2


@pytest.mark.parametrize("code", [0, 1, None])
async def test_what_the_host_ended_alone_is_told_as_that(code: int | None, ready: Stage) -> None:
    """The control plane was away meanwhile; the job is served by another runner, and the host isn't blamed."""
    runner = (await only(ready)).id
    ready.now += FIRST
    seen: ObservedRunner = ready.hosts["h1"].seen[runner]
    marks = seen.marks if code is None else {**seen.marks, "runner_exited": ready.now}
    ended = msgspec.structs.replace(
        seen, vm="stopped", exit_code=code, marks=marks, failure=Failure("idle-too-long", "it listened for 420 s")
    )
    ready.hosts["h1"].seen[runner] = ended
    await ready.put_reports()
    await ready.look()
    record = await ready.store.runner(runner)
    assert record is not None
    assert (record.life.phase, record.life.reason) == ("DESTROYING", "idle-too-long")
    assert (await ready.store.ward()).faults == ()
    counters = await ready.store.counters()
    assert counters["deadlines_missed{phase=READY}"] == 1
    await ready.run(rounds=10, seconds=5)
    assert (await ready.job_record(1)).job.conclusion == "success"
    assert await ready.leftovers() == {}
