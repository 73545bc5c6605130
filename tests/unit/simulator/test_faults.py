"""Faults with a name: each does to GitHub what it says, when, as often and for as long as it was asked to."""

from __future__ import annotations

import json
import random

import pytest

from orchestrator.core.errors import UserError
from orchestrator.simulator.github.catalogue import CATALOGUE, Order, fault_set
from orchestrator.simulator.github.faults import Faults, ResponseFault

JOB = {"jobs": {"build": {"runs-on": ["ironcd"], "steps": [{"run": "true"}]}}}
GATED = {"jobs": {"deploy": {"runs-on": "ironcd", "environment": "production", "steps": [{"run": "true"}]}}}
RUNNERS = "/orgs/acme/actions/runners"
JIT = {"name": "r", "runner_group_id": 1, "labels": ["ironcd"]}
REFUSED = "what a fault answers isn't all in GitHub's description"


def declare(github, name, **order):
    github.faults.by(github.state.now, random.Random(1))
    github.faults.declare(fault_set(Order(name, **order)))
    github.pass_time()


async def registered(client, name="r"):
    return await client.ask("POST", f"{RUNNERS}/generate-jitconfig", {**JIT, "name": name}, unchecked=REFUSED)


def online(github, name="r"):
    runner = github.engine.add_runner(
        name=name,
        owner=github.owner,
        repository=None,
        group_id=1,
        labels=["ironcd"],
        work_folder="_work",
        key=github.rest.spare_keys[0].public_key(),
    )
    github.engine.open_session(runner, "me").polled_at = github.state.now()
    return runner


async def told(github, inbox):
    await github.hooks.settle()
    return [action for event, action in inbox.events() if event == "workflow_job"]


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_fault_ends_by_itself_unless_it_is_asked_not_to(name):
    parts = fault_set(Order(name)).every()
    assert parts
    assert all(part.times is not None or part.for_s is not None for part in parts)
    assert all(part.name == name for part in parts)


def test_an_unknown_fault_names_the_nearest():
    with pytest.raises(UserError) as refused:
        fault_set(Order("outrage"))
    assert "outage" in refused.value.remedy


def test_from_when_how_often_and_how_long():
    now = [1000.0]
    faults = Faults()
    faults.by(lambda: now[0])
    faults.declare(fault_set(Order("jit-conflict", in_s=10, for_s=20, count=2)))
    seen = []
    for moment in (1000, 1009, 1010, 1011, 1012, 1029, 1030):
        now[0] = moment
        seen.append(faults.response("api.github.com", "POST", f"{RUNNERS}/generate-jitconfig") is not None)
    assert seen == [False, False, True, True, False, False, False]
    assert faults.used == {"jit-conflict": 2}
    assert faults.in_force().every() == []


def test_chance_is_a_share_and_can_be_repeated():
    def drawn(seed):
        faults = Faults()
        faults.by(lambda: 0.0, random.Random(seed))
        faults.responses.append(ResponseFault(path=".*", status=500, chance=0.3))
        return [faults.response("h", "GET", "/") is not None for _ in range(400)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert 80 < sum(drawn(1)) < 160


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("jit-conflict", 409), ("jit-invalid", 422), ("jit-forbidden", 403), ("jit-missing", 404), ("jit-full", 422),
        ("rate-limit", 403), ("rate-limit-pause", 429), ("rate-limit-wordless", 403), ("outage", 503), ("errors", 502),
    ],
)  # fmt: skip
async def test_refusals(client, github, clock, name, status):
    declare(github, name, for_s=60.0)
    answer = await registered(client)
    assert answer.status_code == status
    assert not github.state.runners
    if name == "rate-limit":
        assert 50 < int(answer.headers["x-ratelimit-reset"]) - github.state.now() <= 60
    clock.ahead += 61
    assert (await registered(client)).status_code == 201


@pytest.mark.parametrize("name", ["jit-timeout", "lost-answers"])
async def test_what_succeeded_and_was_never_answered(client, github, monkeypatch, name):
    monkeypatch.setattr("orchestrator.simulator.github.asgi.asyncio.sleep", _at_once)
    declare(github, name)
    assert (await registered(client)).status_code >= 500
    assert [it.name for it in github.state.runners.values()] == ["r"]


async def _at_once(_seconds):
    return None


async def test_a_fault_of_one_repository_leaves_the_others_alone(client, github):
    github.create_repository("other")
    declare(github, "errors", for_s=60.0, repository="acme/app")
    assert (await client.ask("GET", "/repos/acme/app/actions/runs", unchecked=REFUSED)).status_code == 502
    assert (await client.ask("GET", "/repos/acme/other/actions/runs")).status_code == 200


@pytest.mark.parametrize(
    ("name", "arrived"),
    [("delivery-dropped", []), ("delivery-failed", []), ("delivery-doubled", ["queued", "queued"])],
)
async def test_deliveries(github, inbox, name, arrived):
    declare(github, name)
    github.create_run("app", JOB)
    assert await told(github, inbox) == arrived
    assert len(github.state.deliveries) == {"delivery-dropped": 0, "delivery-failed": 1, "delivery-doubled": 2}[name]


@pytest.mark.parametrize("name", ["delivery-late", "delivery-reordered", "outage"])
async def test_late_deliveries_hold_back_no_other(github, inbox, monkeypatch, name):
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    monkeypatch.setattr("orchestrator.simulator.github.hooks.asyncio.sleep", sleep)
    declare(github, name, for_s=90.0)
    run = github.create_run("app", JOB)
    github.engine.cancel(run)
    assert sorted(await told(github, inbox)) == ["completed", "queued"]
    assert len(waits) == 2
    assert len(set(waits)) == 2


async def test_the_end_that_nobody_is_told_of(github, inbox):
    declare(github, "completed-lost")
    github.engine.cancel(github.create_run("app", JOB))
    assert await told(github, inbox) == ["queued"]


async def test_payloads_that_are_not_ours_are_signed_and_come(github, inbox, clock):
    declare(github, "foreign-installation", count=2)
    clock.ahead += 11
    github.pass_time()
    github.pass_time()
    assert await told(github, inbox) == ["queued", "queued"]
    assert {json.loads(body)["installation"]["id"] for _headers, body in inbox.got} != {github.installation_id}
    assert not github.state.jobs
    declare(github, "hostile-payload", count=9, by_s=0.5)
    for _ in range(8):
        clock.ahead += 1
        github.pass_time()
    await github.hooks.settle()
    assert len({body for _headers, body in inbox.got[2:]}) == 9
    assert all("x-hub-signature-256" in headers for headers, _body in inbox.got)


async def test_a_job_may_go_to_another_runner(github):
    names = set()
    declare(github, "other-runner")
    for number in range(12):
        first, _second = online(github, f"a{number}"), online(github, f"b{number}")
        job = github.create_run("app", JOB).jobs[0]
        names.add(job.runner is first)
        github.engine.complete(job, "success")
        github.state.runners.clear()
    assert names == {True, False}


async def test_an_assignment_that_its_runner_never_hears_of_lapses(github, clock):
    declare(github, "start-lost")
    runner = online(github)
    job = github.create_run("app", JOB).jobs[0]
    assert job.runner is runner
    assert runner.session.messages == []
    clock.ahead += 121
    runner.session.polled_at = github.state.now()
    github.pass_time()
    assert job.runner is runner
    assert len(runner.session.messages) == 1


async def test_a_gate_that_queues_twice(github, inbox):
    declare(github, "gate-queued-twice")
    run = github.create_run("app", GATED)
    github.engine.approve(run, approved=True)
    assert await told(github, inbox) == ["queued", "waiting", "queued"]
    assert all("deployment" in json.loads(body) for _headers, body in inbox.got if b'"action": "queued"' in body)


async def test_a_registration_that_lags(client, github, clock):
    declare(github, "jit-lag", by_s=10.0)
    number = (await registered(client)).json()["runner"]["id"]
    assert (await client.ask("GET", RUNNERS)).json()["runners"] == []
    assert (await client.ask("GET", f"{RUNNERS}/{number}", unchecked=REFUSED)).status_code == 404
    clock.ahead += 11
    assert (await client.ask("GET", f"{RUNNERS}/{number}")).status_code == 200


async def test_busy_lies_and_the_fence_does_not(client, github):
    declare(github, "busy-lies")
    runner = online(github)
    github.create_run("app", JOB)
    assert (await client.ask("GET", f"{RUNNERS}/{runner.id}")).json()["busy"] is False
    assert (await client.ask("DELETE", f"{RUNNERS}/{runner.id}")).status_code == 422


async def test_a_deletion_that_is_refused_for_no_reason(client, github):
    declare(github, "delete-refused")
    runner = online(github)
    refused = await client.ask("DELETE", f"{RUNNERS}/{runner.id}", unchecked=REFUSED)
    assert refused.status_code == 422
    assert (await client.ask("DELETE", f"{RUNNERS}/{runner.id}")).status_code == 204


async def test_ghosts(github):
    declare(github, "ghost")
    runner = online(github)
    job = github.create_run("app", JOB).jobs[0]
    github.engine.acquire(job)
    github.engine.complete(job, "success")
    assert list(github.state.runners.values()) == [runner]
    assert not runner.online


async def test_a_job_that_its_runner_cannot_have(github):
    declare(github, "acquire-404")
    runner = online(github)
    job = github.create_run("app", JOB).jobs[0]
    assert github.engine.withhold(job)
    assert (job.runner, job.status) == (None, "queued")
    assert runner.id not in github.state.runners
    assert runner.session is not None


async def test_suspended_and_let_go_on(github, inbox, clock):
    declare(github, "suspended", for_s=60.0)
    github.create_run("app", JOB)
    clock.ahead += 61
    github.pass_time()
    await github.hooks.settle()
    assert [action for _event, action in inbox.events()] == ["suspend", "unsuspend"]


async def test_uninstalled_and_installed_anew(github, inbox, clock):
    before = github.installation_id
    declare(github, "uninstalled", for_s=60.0)
    assert not github.state.installations
    clock.ahead += 61
    github.pass_time()
    await github.hooks.settle()
    assert [action for _event, action in inbox.events()] == ["deleted", "created"]
    assert list(github.state.installations) == [github.installation_id] != [before]


async def test_renamed(client, github):
    declare(github, "renamed", repository="acme/app")
    assert (await client.ask("GET", "/installation/repositories")).json()["repositories"][0]["name"] == "app-renamed"
    assert (await client.ask("GET", "/repos/acme/app/actions/runs")).status_code == 200


async def test_faults_are_declared_and_ended_by_name_from_outside(client, github):
    known = (await client.http.get("/_sim/faults/known")).json()
    assert set(known) == set(CATALOGUE)
    assert (await client.http.post("/_sim/faults/suspended", json={"for_s": 600})).status_code == 200
    github.pass_time()
    assert github.state.installations[github.installation_id].suspended_at
    shown = (await client.http.get("/_sim/faults")).json()
    assert (shown["acts"][0]["name"], shown["used"]) == ("suspended", {"suspended": 1})
    assert (await client.http.request("DELETE", "/_sim/faults?name=suspended")).json()["acts"] == []
    assert not github.state.installations[github.installation_id].suspended_at
    assert (await client.http.post("/_sim/faults/outrage")).status_code == 422
    assert (await client.http.post("/_sim/faults/outage", json={"four_s": 1})).status_code == 400
