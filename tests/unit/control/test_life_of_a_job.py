"""A job from its delivery to the proof that nothing is left."""

from __future__ import annotations

from .stage import REPO, Stage


async def test_one_job(stage: Stage) -> None:
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    await stage.look()
    (runner,) = await stage.runners()
    assert (runner.life.phase, runner.life.host) == ("BOOTING", "h1")
    await stage.run()
    record = await stage.job_record(1)
    assert (record.job.state, record.job.conclusion, record.job.runner) == ("completed", "success", runner.id)
    assert stage.started == {1: [runner.id]}
    gone = await stage.store.runner(runner.id)
    assert gone is not None
    assert (gone.life.phase, gone.life.reason) == ("GONE", "job_completed")
    assert gone.proof is not None
    assert gone.proof.whole
    assert gone.identity.repo == REPO
    assert gone.policy == gone.life.bound
    assert await stage.leftovers() == {}
