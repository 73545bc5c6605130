"""Known ways a job goes wrong, 1 to 11, by their number, against the simulated GitHub that is told to misbehave so.

All else is the product's own: receiver, worker, agent, the guest's session.  What a part does by itself in each case is
held, in more cases, by ``tests/unit`` under the same numbers.
"""

from __future__ import annotations

import pytest

from orchestrator.simulator.github.faults import DeliveryFault
from tests.chaos.town import JIT, RUNNER, Town, story

ATTEMPTS = r"/app/hook/deliveries/\d+/attempts"
RUNS = r"/repos/acme/app/actions/runs"


@story()
async def test_row_01_a_delivery_that_failed_is_asked_for_again(town: Town) -> None:
    town.goes_wrong("delivery-failed", count="1")
    began = town.now
    (job,) = town.jobs()
    await town.until(lambda: town.calls("POST", ATTEMPTS))
    assert 60 <= town.calls("POST", ATTEMPTS)[0].at - began <= 180
    assert await town.comes_to_rest() == {"served": 1}
    assert [call.status for call in town.calls("POST", ATTEMPTS)] == [202], "once is enough"
    assert await town.counted("redeliveries{result=asked}") == 1
    assert (await town.known(job)).job.conclusion == "success"


@story()
async def test_row_02_a_delivery_that_was_never_made_is_made_up_for(town: Town) -> None:
    town.jobs()
    await town.comes_to_rest()
    town.goes_wrong("delivery-dropped", count="1")
    began = town.now
    (job,) = town.jobs()
    await town.until(lambda: town.calls("POST", JIT, since=began))
    assert town.calls("POST", JIT, since=began)[0].at - began <= 120
    assert await town.comes_to_rest() == {"served": 2}
    assert len(town.calls("POST", JIT)) == 2
    assert town.calls("POST", ATTEMPTS) == [], "GitHub has no such delivery on its list"
    assert 304 in {call.status for call in town.calls("GET", RUNS)}, "asking again costs nothing where nothing changed"
    assert (await town.known(job)).job.conclusion == "success"


@story()
async def test_row_03_deliveries_that_come_twice_count_once(town: Town) -> None:
    town.goes_wrong("delivery-doubled", count="6")
    town.jobs(2)
    assert await town.comes_to_rest() == {"served": 2}
    assert town.happened("delivery-doubled") == 6
    assert len(town.calls("POST", JIT)) == 2


@story()
async def test_row_04_deliveries_that_overtake_one_another(town: Town) -> None:
    town.goes_wrong("delivery-reordered", for_="10m", by="90s")
    taken, *jobs = town.jobs(4, lasts_s=1.0)
    town.city.stranger_takes(taken)
    assert await town.comes_to_rest() == {"served": 3, "elsewhere": 1}
    order = [(it.delivered_at, it.id) for it in town.city.github.state.deliveries.values()]
    assert order != sorted(order), "none overtook another, and this shows nothing"
    records = [await town.known(job) for job in (taken, *jobs)]
    assert [record.job.conclusion for record in records] == ["success"] * 4


@story()
async def test_row_05_hostile_and_foreign_payloads_are_taken_and_change_nothing(town: Town) -> None:
    began = town.now
    town.goes_wrong("foreign-installation", count="3")
    town.goes_wrong("hostile-payload", count="9")
    await town.until(lambda: town.happened("foreign-installation") == 3 and town.happened("hostile-payload") == 9)
    await town.passes(10)
    answers = {it.status_code for it in town.city.github.state.deliveries.values()}
    assert answers == {202}, "an error would bring them again, and again"
    assert (await town.store.lengths())["dead"] >= 3
    assert town.calls("POST", JIT, since=began) == []
    town.jobs()
    assert await town.comes_to_rest() == {"served": 1}


@story(hosts=2)
async def test_row_06_runners_get_other_jobs_than_those_they_were_made_for(town: Town) -> None:
    town.goes_wrong("other-runner", for_="10m")
    jobs = town.jobs(6, lasts_s=30.0)
    assert await town.comes_to_rest() == {"served": 6}
    had = {job.id: (await town.known(job)).job.runner for job in jobs}
    meant = {job.id: (await town.runners_of(job))[0].id for job in jobs}
    assert had != meant, "none was swapped, and this shows nothing"
    assert len(set(had.values())) == 6
    for job in jobs:
        runner = await town.store.runner(had[job.id])
        assert runner is not None
        assert (runner.life.job_id, runner.identity.job_id) == (job.id, job.id), "the policy is that of the job it had"
    assert len(town.calls("POST", JIT)) == 6


@story(hosts=2)
async def test_row_06_a_label_of_its_run_keeps_a_jobs_runner_for_it(town: Town) -> None:
    town.goes_wrong("other-runner", for_="10m")
    specs = {f"job{n}": {"runs-on": ["ironcd", f"run-{n}-x"], "steps": [{"run": "true"}]} for n in range(6)}
    jobs = town.city.github.create_run("app", {"jobs": specs}).jobs
    assert await town.comes_to_rest() == {"served": 6}
    assert town.happened("other-runner") > 0
    for job in jobs:
        assert [runner.life.meant_for for runner in await town.runners_of(job)] == [job.id]


@story()
async def test_row_06_a_job_that_somebody_elses_runner_took(town: Town) -> None:
    (job,) = town.jobs()
    await town.until(lambda: town.calls("POST", JIT))
    town.city.stranger_takes(job)
    assert await town.comes_to_rest() == {"elsewhere": 1}
    assert (await town.known(job)).job.served == "elsewhere"
    assert 204 in {call.status for call in town.calls("DELETE", RUNNER)}, "the runner for it was surplus"


@story()
async def test_row_06_a_job_that_is_assigned_and_never_told(town: Town) -> None:
    town.goes_wrong("start-lost", count="1")
    (job,) = town.jobs()
    assert await town.comes_to_rest() == {"served": 1}
    assert town.happened("start-lost") == 1
    assert (await town.known(job)).job.conclusion == "success"


@story()
async def test_row_07_cancelled_before_its_start(town: Town) -> None:
    (job,) = town.jobs()
    await town.until(lambda: town.calls("POST", JIT))
    town.city.cancelled.add(job.id)
    town.city.github.engine.cancel_job(job)
    assert await town.comes_to_rest() == {"ended_by_user": 1}
    first, *_ = town.calls("DELETE", RUNNER)
    assert first.status == 204
    ended = [at for at, what in town.lines() if "vm_proved_gone" in what]
    assert ended, "it had a machine"
    assert ended[0] > first.at, "the registration goes first, then the machine"


@story(vcpus=2)
async def test_row_07_its_runner_serves_the_next_job_of_those_labels(town: Town) -> None:
    (first,) = town.jobs()
    await town.until(lambda: town.calls("POST", JIT))
    (second,) = town.jobs()
    await town.until(lambda: town.reason(second))
    town.city.cancelled.add(first.id)
    town.city.github.engine.cancel_job(first)
    assert await town.comes_to_rest() == {"ended_by_user": 1, "served": 1}
    assert len(town.calls("POST", JIT)) == 1, "the machine was handed on"


@story()
async def test_row_07_a_removal_that_is_refused_ends_no_machine(town: Town) -> None:
    town.goes_wrong("delete-refused", count="1")
    (job,) = town.jobs()
    await town.until(lambda: town.calls("POST", JIT))
    town.city.cancelled.add(job.id)
    town.city.github.engine.cancel_job(job)
    await town.until(lambda: town.calls("DELETE", RUNNER))
    assert town.calls("DELETE", RUNNER)[0].status == 422
    assert await town.comes_to_rest() == {"ended_by_user": 1}
    given_back = next(call for call in town.calls("DELETE", RUNNER) if call.status in (204, 404))
    assert all(at > given_back.at for at, what in town.lines() if "vm_proved_gone" in what)


@story()
async def test_row_08_a_gate_that_queues_twice(town: Town) -> None:
    town.goes_wrong("gate-queued-twice", for_="10m")
    (job,) = town.jobs(environment="production")
    await town.until(lambda: town.happened("gate-queued-twice"))
    await town.passes(300)
    assert (await town.known(job)).job.state == "waiting"
    assert town.calls("POST", JIT) == [], "nothing boots before it is approved"
    town.city.github.engine.approve(job.run, approved=True)
    assert await town.comes_to_rest() == {"served": 1}
    assert len(town.calls("POST", JIT)) == 1


@story()
async def test_row_08_a_gate_of_which_only_queued_is_told(town: Town) -> None:
    """GitHub is asked whether it is approved; a job that is doesn't wait."""
    town.goes_wrong("gate-queued-twice", for_="10m")
    town.city.github.faults.deliveries.append(DeliveryFault(effect="drop", event="workflow_job", action="waiting"))
    (gated,), (open_,) = town.jobs(environment="production"), town.jobs(environment="test")
    town.city.github.engine.approve(open_.run, approved=True)
    await town.until(lambda: town.reason(gated))
    assert await town.reason(gated) == "environment 'production' waits for an approval"
    await town.until(lambda: open_.conclusion)
    assert len(town.calls("POST", JIT)) == 1
    town.city.github.engine.approve(gated.run, approved=True)
    assert await town.comes_to_rest() == {"served": 2}
    assert len(town.calls("POST", JIT)) == 2


@story()
async def test_row_09_a_registration_that_succeeds_and_times_out(town: Town) -> None:
    town.goes_wrong("jit-timeout", count="1")
    (job,) = town.jobs()
    assert await town.comes_to_rest() == {"served": 1}
    assert town.happened("jit-timeout") == 1
    assert len(town.calls("GET", r"/.*/actions/runners")) >= 1, "the lost one is looked for by its name"
    assert len(await town.runners_of(job)) == 1


@story()
async def test_row_09_a_name_that_is_taken(town: Town) -> None:
    town.goes_wrong("jit-conflict", count="1")
    (job,) = town.jobs()
    assert await town.comes_to_rest() == {"served": 1}
    assert [call.status for call in town.calls("POST", JIT)] == [409, 201]
    assert len(await town.runners_of(job)) == 1


@story()
async def test_row_09_a_group_that_is_full_is_asked_again_and_cleared_of_ours(town: Town) -> None:
    await town.passes(60)
    town.goes_wrong("jit-full", count="2")
    began = town.now
    (job,) = town.jobs()
    await town.until(lambda: len(town.calls("POST", JIT)) == 2)
    assert "max limit" in await town.reason(job)
    assert await town.comes_to_rest() == {"served": 1}
    assert [call.status for call in town.calls("POST", JIT)] == [422, 422, 201]
    assert town.calls("GET", "/orgs/acme/actions/runners", since=began), (
        "registrations that nobody has a use for are swept"
    )


@pytest.mark.parametrize(
    ("fault", "status", "says"),
    [
        ("jit-invalid", 422, "Validation Failed"),
        ("jit-forbidden", 403, "Resource not accessible by integration"),
        ("jit-missing", 404, "Not Found"),
    ],
)
def test_row_09_a_registration_that_can_never_be(fault: str, status: int, says: str) -> None:
    @story()
    async def told(town: Town) -> None:
        town.goes_wrong(fault, count="1")
        (job,) = town.jobs()
        await town.until(lambda: town.calls("POST", JIT))
        await town.passes(400)
        assert [call.status for call in town.calls("POST", JIT)] == [status], "it isn't asked again"
        assert says in await town.reason(job)
        assert await town.counted("incidents{kind=job_given_up}") == 1, "an alarm, once"
        await town.oracle.give_up()
        assert await town.comes_to_rest() == {"refused": 1}

    told()


@pytest.mark.parametrize(
    ("fault", "lasts_s", "status"),
    [("rate-limit", 120, 403), ("rate-limit-pause", 25, 429), ("rate-limit-wordless", 50, 403)],
)
def test_row_10_a_rate_limit(fault: str, lasts_s: int, status: int) -> None:
    """With the primary limit's headers, with Retry-After alone, and with nothing but words."""

    @story()
    async def told(town: Town) -> None:
        town.goes_wrong(fault, for_=f"{lasts_s}s")
        began = town.now
        (job,) = town.jobs()
        await town.until(lambda: town.reason(job))
        assert "rate limit" in await town.reason(job)
        assert {it.status_code for it in town.city.github.state.deliveries.values()} == {202}, "webhooks are taken"
        await town.until(lambda: town.calls("POST", JIT))
        asked = [call for call in town.calls("GET", "/repos/.*", since=began) if call.at < began + lasts_s]
        assert [call.status for call in asked] == [status], "it is told once, and then asked nothing until it is over"
        assert town.calls("POST", JIT)[0].status == 201
        assert await town.comes_to_rest() == {"served": 1}

    told()


@story()
async def test_row_11_an_outage_and_its_end(town: Town) -> None:
    (running,) = town.jobs(lasts_s=120.0)
    await town.until(lambda: town.city.taken.get(running.id))
    began = town.now
    town.goes_wrong("outage", for_="8m")
    (queued,) = town.jobs()
    await town.until(town.store.outage_since)
    await town.passes(300)
    assert not town.city.taken.get(queued.id)
    away = [call for call in town.calls(".*", ".*", since=began) if call.status == 503]
    probes = [call for call in away if call.at > began + 120]
    assert len(probes) <= 13, "twice a minute"
    assert not [what for at, what in town.lines() if at > began and "vm_proved_gone" in what], (
        "nothing is ended for want of news"
    )
    assert town.calls("POST", JIT, since=began) == []
    assert await town.comes_to_rest() == {"served": 2}
    assert (await town.known(running)).job.replacements == 0
    assert (await town.known(queued)).job.replacements == 0
    assert town.calls("GET", "/app/hook/deliveries", since=began + 480), "what was missed is looked for"
