"""Known ways a job goes wrong, 12 to 20, by their number, against the simulated GitHub, with guests, hosts and processes that fail.

See ``tests/chaos/test_rows_before.py``.
"""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.control.records import RunnerRecord
from tests.chaos.town import JIT, RUNNER, Town, story

RERUN = r"/repos/acme/app/actions/jobs/\d+/rerun"


def over(runner: RunnerRecord) -> float:
    """When it was proved gone."""
    return next(moment.at for moment in runner.story if moment.what == "GONE")


@story(hosts=2)
async def test_row_12_a_guest_that_never_speaks(town: Town) -> None:
    for host in town.city.hosts:
        host.fates.append("guest-mute")
    (job,) = town.jobs()
    assert await town.comes_to_rest() == {"served": 1}
    mute, *others = await town.runners_of(job)
    assert others, "it wasn't mute, and this shows nothing"
    assert mute.life.reason == "guest-silent"
    assert 60 <= over(mute) - mute.marks["domain_started"] <= 75
    assert mute.life.host not in [other.life.host for other in others[:1]], "the next one is tried on another host"
    assert len(town.calls("POST", JIT)) == 1 + len(others), "each with a registration of its own"
    assert town.calls("DELETE", RUNNER)[0].status == 204


@story()
async def test_row_13_a_registration_that_lags(town: Town) -> None:
    town.goes_wrong("jit-lag", count="1", by="25s")
    (job,) = town.jobs()
    assert await town.comes_to_rest() == {"served": 1}
    assert town.happened("jit-lag") == 1
    assert len(town.calls("POST", JIT)) == 1, "the same configuration is tried again, in the same machine"
    assert len(await town.runners_of(job)) == 1


@story()
async def test_row_14_an_idle_runner_is_given_back_only_where_github_says_that_it_has_no_job(town: Town) -> None:
    """A job is assigned to it and it is never told, again and again: GitHub refuses to delete it, and it stays."""
    town.goes_wrong("start-lost", count="3")
    (job,) = town.jobs()
    assert await town.comes_to_rest() == {"served": 1}
    assert town.happened("start-lost") == 3
    refused = [call for call in town.calls("DELETE", RUNNER) if call.status == 422]
    assert refused, "it was idle for five minutes, and was asked for"
    (only,) = await town.runners_of(job)
    assert only.life.job_id == job.id, "the runner that GitHub had given a job was kept for it"


@story()
async def test_row_14_busy_lies_end_no_job(town: Town) -> None:
    town.goes_wrong("busy-lies", for_="20m")
    (job,) = town.jobs(lasts_s=900.0)
    assert await town.comes_to_rest() == {"served": 1}
    assert (await town.known(job)).job.replacements == 0


@pytest.mark.parametrize(("again", "environment"), [((), ""), (("*",), ""), (("*",), "production")])
def test_row_15_a_machine_that_dies_under_its_job(again: tuple[str, ...], environment: str) -> None:
    @story(rerun_on_infra_loss=again)
    async def told(town: Town) -> None:
        (job,) = town.jobs(lasts_s=300.0, environment=environment)
        if environment:
            await town.until(lambda: town.store.job(job.id))
            town.city.github.engine.approve(job.run, approved=True)
        await town.until(lambda: town.city.taken.get(job.id))
        await town.passes(30)
        crashed = town.now
        assert town.city.hosts[0].crash_a_guest()

        async def is_lost() -> bool:
            return bool((await town.known(job)).loss)

        assert await town.until(is_lost, within_s=15) <= 15, "at once"
        assert (await town.known(job)).job.state == "in_progress", "GitHub ends it, not we"
        kinds = await town.comes_to_rest()
        assert town.calls("POST", RERUN, since=crashed + 500) == town.calls("POST", RERUN), "not before GitHub ended it"
        if again and not environment:
            assert kinds == {"infrastructure": 1, "served": 1}
            assert [call.status for call in town.calls("POST", RERUN)] == [201]
        else:
            assert kinds == {"infrastructure": 1}
            assert town.calls("POST", RERUN) == []
        assert (await town.known(job)).loss
        assert await town.counted("incidents{kind=infrastructure_loss}") == 1

    told()


@story(rerun_on_infra_loss=("*",))
async def test_row_15_what_a_person_cancelled_is_not_run_again(town: Town) -> None:
    (job,) = town.jobs(lasts_s=300.0)
    await town.until(lambda: town.city.taken.get(job.id))
    assert town.city.hosts[0].crash_a_guest()
    await town.passes(60)
    town.city.cancelled.add(job.id)
    town.city.github.engine.cancel_job(job)
    await town.comes_to_rest()
    assert job.conclusion == "cancelled"
    assert town.calls("POST", RERUN) == []


@story(hosts=2, vcpus=2)
async def test_row_15_a_host_that_is_lost_frees_nothing_and_its_jobs_say_so(town: Town) -> None:
    lost, other = town.jobs(2, lasts_s=400.0)
    await town.until(lambda: town.city.taken.get(lost.id) and town.city.taken.get(other.id))
    (runner,) = await town.runners_of(lost)
    host = next(host for host in town.city.hosts if host.name == runner.life.host)
    host.cut_off = True

    async def is_lost() -> bool:
        return "host_lost" in (await town.known(lost)).loss

    assert 60 <= await town.until(is_lost) <= 240
    assert (await town.known(other)).loss == ""
    host.cut_off = False
    assert sum((await town.comes_to_rest()).values()) == 2
    assert other.conclusion == "success"


@story()
async def test_row_16_a_runner_that_can_have_no_job_and_never_ends(town: Town) -> None:
    town.goes_wrong("acquire-404", count="1")
    (job,) = town.jobs()
    assert await town.comes_to_rest() == {"served": 1}
    ghost, *others = await town.runners_of(job)
    assert ghost.life.reason == "ghost"
    assert len(others) == 1
    assert 240 <= over(ghost) - ghost.marks["runner_listening"] <= 280, (
        "idle for two minutes, unknown to GitHub for two"
    )


@story()
async def test_row_16_a_registration_that_outlives_its_job(town: Town) -> None:
    town.goes_wrong("ghost", count="1")
    town.jobs()
    assert await town.comes_to_rest() == {"served": 1}
    assert town.happened("ghost") == 1
    assert 204 in {call.status for call in town.calls("DELETE", RUNNER)}


@story()
async def test_row_16_a_runner_that_hangs_after_its_job(town: Town) -> None:
    town.city.hosts[0].fates.append("guest-hangs")
    (job,) = town.jobs()
    assert await town.comes_to_rest(within_s=400) == {"served": 1}
    assert (await town.known(job)).job.conclusion == "success"


@story()
async def test_row_17_the_end_that_nobody_tells(town: Town) -> None:
    town.goes_wrong("completed-lost", count="1")
    (job,) = town.jobs()
    assert await town.comes_to_rest() == {"served": 1}
    assert town.happened("completed-lost") == 1
    assert (await town.known(job)).job.conclusion == "success", "asked for at GitHub"
    assert town.calls("GET", f"/repos/acme/app/actions/jobs/{job.id}")


@pytest.mark.parametrize("who", ["worker", "api", "agent"])
def test_row_18_a_process_that_dies_at_each_point_of_a_jobs_start(who: str) -> None:
    """Every process that follows dies too, a little later in its work each time, until the job has begun."""

    @story()
    async def told(town: Town) -> None:
        city, host = town.city, town.city.hosts[0]
        deaths = iter(range(9, 400, 29))
        city.next_death = lambda _name: next(deaths, None) if who in (_name, {host.name: "agent"}.get(_name)) else None  # type: ignore[method-assign]
        mortal = {"worker": city.worker.mortal, "api": city.api.mortal, "agent": host.mortal}[who]
        mortal.dies_in = 3
        (job,) = town.jobs()
        assert await town.comes_to_rest() == {"served": 1}
        assert city.kills >= 2
        assert len(city.taken[job.id]) == 1

    told()


@story(lifetime_s=300)
async def test_row_19_a_job_that_runs_away_is_told_first(town: Town) -> None:
    (job,) = town.jobs(lasts_s=3000.0)
    await town.until(lambda: town.city.taken.get(job.id))
    lasted = await town.until(lambda: job.status == "completed", within_s=400)
    assert 235 <= lasted <= 275, "SIGTERM a minute before its end"
    assert town.city.losses[job.id] == "stopped"
    town.city.cancelled.add(job.id)
    assert sum((await town.comes_to_rest()).values()) == 1


@story(lifetime_s=300)
async def test_row_19_its_host_ends_it_alone(town: Town) -> None:
    """The control plane is away, and the runner doesn't heed SIGTERM."""
    (job,) = town.jobs(lasts_s=3000.0)
    await town.until(lambda: town.city.taken.get(job.id))
    began = town.now
    await town.passes(30)
    town.city.control_away = True
    for process in (town.city.api, town.city.worker):
        process.kill()
    (guest,) = town.city.hosts[0].guests.values()
    guest._stopped = asyncio.Event()
    guest._stopped.is_set = lambda: False  # type: ignore[method-assign]
    await town.until(lambda: not town.city.hosts[0].guests, within_s=400)
    assert 290 <= town.now - began <= 320
    town.city.control_back()
    town.city.cancelled.add(job.id)
    assert sum((await town.comes_to_rest()).values()) == 1


@story(hosts=2, vcpus=2)
async def test_row_20_a_host_is_drained(town: Town) -> None:
    assert town.city.people is not None
    long, short = town.jobs(2, lasts_s=600.0)
    await town.until(lambda: town.city.taken.get(long.id) and town.city.taken.get(short.id))
    (runner,) = await town.runners_of(long)
    began = town.now
    town.city.start(town.city.people.drain(runner.life.host, 1000.0, 120.0))
    (next_one,) = town.jobs()
    await town.until(lambda: long.status == "completed")
    assert 120 <= town.now - began <= 200, "it had until the deadline, then SIGTERM"
    assert town.city.losses[long.id] == "drained"
    town.city.cancelled.add(long.id)
    await town.until(lambda: next_one.status == "completed", within_s=1000)
    (other,) = await town.runners_of(next_one)
    assert other.life.host != runner.life.host, "nothing new on it"
    await town.comes_to_rest()
    assert short.conclusion == "success"
