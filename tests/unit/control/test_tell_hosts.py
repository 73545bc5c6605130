"""A desired state is made when something of it may have changed, and not at every look."""

from __future__ import annotations

import pytest

from orchestrator.control import one_pass

from .stage import Stage


async def counted(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A job runs on h1 and all is settled; hosts of which the state is made from now on."""
    made: list[str] = []
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    await stage.run(rounds=2, deliver=False)
    original = one_pass.desired_of

    async def counting(world, host, *rest):
        made.append(host)
        return await original(world, host, *rest)

    monkeypatch.setattr(one_pass, "desired_of", counting)
    for _ in range(3):
        await stage.hosts_move()
        await stage.look()
    made.clear()
    return made


async def test_nothing_is_made_where_nothing_changed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await counted(stage, monkeypatch)
    await stage.hosts_move()
    await stage.look()
    assert made == []


async def test_a_change_of_a_runner_is_told(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await counted(stage, monkeypatch)
    before = await stage.store.generation("h1")
    await stage.deliver(stage.github.give(1, next(iter(stage.github.runners.values())).name))
    await stage.look()
    assert made
    assert await stage.store.generation("h1") > before


async def test_what_somebody_else_wrote_or_lost_is_told_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await counted(stage, monkeypatch)
    await stage.redis.delete(stage.store.names.sums, stage.store.names.desired)
    await stage.look()
    assert made == ["h1"]
    _, raw = await stage.store.desired("h1")
    assert raw is not None


async def test_a_worker_that_starts_makes_all_once(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await counted(stage, monkeypatch)
    await stage.deliver(stage.github.jobs[1])
    for _ in range(4):
        await stage.hosts_move()
        await stage.look()
    made.clear()
    stage.reconciler = stage.fresh()
    before = await stage.store.generation("h1")
    await stage.look()
    assert made == ["h1"]
    assert await stage.store.generation("h1") == before, "the same is no news"
