"""The App suspended, or removed and installed anew as another installation: nothing is ended for it, and all goes on."""

from __future__ import annotations

import msgspec

from orchestrator.control.github import Installation, Missing, Refused
from orchestrator.core.inbox import InstallationNews

from .stage import INSTALLATION, ORG, Stage

ANOTHER = 8


async def ready(stage: Stage) -> None:
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    for _ in range(4):
        await stage.hosts_move()
        await stage.look()
    assert [record.life.phase for record in await stage.runners()] == ["READY"]


def uninstall(stage: Stage) -> None:
    """From now on GitHub gives the former installation's tokens to nobody."""
    stage.github.apps.clear()

    def refuse(call: str, when: str) -> None:
        if when == "before" and ANOTHER not in stage.github.apps and call not in ("installations", "installation_of"):
            raise Missing("installation 7")

    stage.github.trouble = refuse


async def forget_all(stage: Stage) -> None:
    """Redis is emptied, and the control plane looks at what hosts say for a while."""
    await stage.redis.flushall()
    stage.reconciler = stage.fresh()
    for _ in range(5):
        await stage.hosts_move()
        stage.now += 20
        await stage.look()


async def test_what_was_begun_goes_on_under_the_accounts_new_installation(stage: Stage) -> None:
    await ready(stage)
    uninstall(stage)
    stage.now += 60
    await stage.deliver_installation(InstallationNews(INSTALLATION, "deleted", ORG))
    await stage.look()
    assert [record.life.phase for record in await stage.runners()] == ["READY"]
    stage.github.apps[ANOTHER] = Installation(ANOTHER, ORG, organization=True)
    stage.github.jobs[1] = msgspec.structs.replace(stage.github.jobs[1], installation=ANOTHER)
    stage.now += 60
    await stage.deliver_installation(InstallationNews(ANOTHER, "created", ORG))
    await stage.run(seconds=2.0)
    assert (await stage.job_record(1)).job.conclusion == "success"
    assert (await stage.job_record(1)).job.installation == ANOTHER
    assert len(stage.started[1]) == 1
    assert await stage.leftovers() == {}


async def test_a_job_that_a_runner_of_ours_has_is_ours_though_its_news_comes_once_the_app_was_removed(
    stage: Stage,
) -> None:
    await ready(stage)
    (runner,) = await stage.runners()
    stage.job(2)
    begun = stage.github.give(2, runner.name)
    uninstall(stage)
    stage.now += 60
    await stage.deliver_installation(InstallationNews(INSTALLATION, "deleted", ORG))
    await stage.look()
    await stage.deliver(begun)
    await stage.look()
    record = await stage.job_record(2)
    assert (record.job.served, record.job.runner) == ("yes", runner.id)
    await stage.deliver(msgspec.structs.replace(begun, id=3, runner_name="somebody-elses"))
    await stage.look()
    assert (await stage.job_record(3)).job.served == "ignored"


async def test_jobs_of_the_time_without_the_app_are_found_when_it_is_back(stage: Stage) -> None:
    await ready(stage)
    await stage.run(seconds=2.0)
    uninstall(stage)
    await stage.deliver_installation(InstallationNews(INSTALLATION, "deleted", ORG))
    await stage.look()
    job = stage.job(2)
    stage.github.jobs[2] = msgspec.structs.replace(job, installation=ANOTHER)
    stage.github.apps[ANOTHER] = Installation(ANOTHER, ORG, organization=True)
    stage.now += 60
    await stage.deliver_installation(InstallationNews(ANOTHER, "created", ORG))
    await stage.run(seconds=2.0)
    assert (await stage.job_record(2)).job.conclusion == "success"


async def test_no_machine_ends_because_the_app_is_suspended_while_redis_is_emptied(stage: Stage) -> None:
    await ready(stage)
    (job,) = stage.github_assigns()
    await stage.deliver(job)
    await stage.look()
    stage.github.apps[INSTALLATION] = Installation(INSTALLATION, ORG, organization=True, suspended=True)
    await forget_all(stage)
    assert [seen.vm for seen in stage.hosts["h1"].seen.values()] == ["running"]
    stage.github.apps[INSTALLATION] = Installation(INSTALLATION, ORG, organization=True)
    await stage.deliver_installation(InstallationNews(INSTALLATION, "unsuspend", ORG))
    await stage.run(seconds=4.0)
    assert stage.github.jobs[1].conclusion == "success"
    assert await stage.leftovers() == {}


async def test_no_machine_ends_because_the_app_is_removed_from_its_organisation_alone(stage: Stage) -> None:
    """Redis is emptied meanwhile, and the App is still installed elsewhere: nobody can be asked about this machine."""
    await ready(stage)
    (job,) = stage.github_assigns()
    await stage.deliver(job)
    await stage.look()
    (app,) = stage.github.apps.values()
    stage.github.apps = {ANOTHER: Installation(ANOTHER, "another", organization=True)}
    await forget_all(stage)
    assert [seen.vm for seen in stage.hosts["h1"].seen.values()] == ["running"]
    stage.github.apps[app.id] = app
    await stage.deliver_installation(InstallationNews(app.id, "created", ORG))
    await stage.run(seconds=4.0)
    assert stage.github.jobs[1].conclusion == "success"
    assert await stage.leftovers() == {}


async def test_another_organisations_suspension_keeps_no_machine_unknown(stage: Stage) -> None:
    await ready(stage)
    (job,) = stage.github_assigns()
    await stage.deliver(job)
    await stage.look()
    suspended = Installation(ANOTHER, "another", organization=True, suspended=True)
    stage.github.apps = {ANOTHER: suspended, **stage.github.apps}
    await forget_all(stage)
    assert [record.life.job_id for record in await stage.runners()] == [1]
    await stage.run(seconds=4.0)
    assert stage.github.jobs[1].conclusion == "success"
    assert await stage.leftovers() == {}


async def test_a_refused_job_has_another_chance_when_the_installation_changes(stage: Stage) -> None:
    def refuse(call: str, when: str) -> None:
        if call == "generate_jit" and when == "before":
            raise Refused("Resource not accessible by integration")

    stage.github.trouble = refuse
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    await stage.run(rounds=5)
    assert (await stage.job_record(1)).permanent
    stage.github.trouble = lambda *_: None
    await stage.run(rounds=5)
    assert 1 not in stage.started, "it is asked for again only where something has changed"
    await stage.deliver_installation(InstallationNews(INSTALLATION, "changed", ORG))
    await stage.run(seconds=2.0)
    assert (await stage.job_record(1)).job.conclusion == "success"
    assert "tried_again" in [moment.what for moment in (await stage.job_record(1)).job.story]
