"""GitHub's manners around every endpoint: pages, ETags, rate limits, faults, and the control API's privacy."""

from __future__ import annotations

import re

import httpx
import pytest

from orchestrator.simulator.github import DeliveryFault, ResponseFault

JOB = {"jobs": {"build": {"runs-on": "ironcd", "steps": [{"run": "true"}]}}}
RUNNERS = "/orgs/acme/actions/runners"
FAULTY = "a fault answers"


async def register(client, name: str) -> httpx.Response:
    body = {"name": name, "runner_group_id": 1, "labels": ["ironcd"]}
    return await client.ask("POST", f"{RUNNERS}/generate-jitconfig", body, unchecked=FAULTY)


async def test_following_next_gives_every_runner_once(client):
    for number in range(7):
        await register(client, f"r{number}")
    names, path = [], f"{RUNNERS}?per_page=3"
    while path:
        reply = await client.http.get(path, headers={"Authorization": f"Bearer {client.token}"})
        names += [it["name"] for it in reply.json()["runners"]]
        match = re.search(r'<([^>]+)>; rel="next"', reply.headers.get("link", ""))
        path = match[1] if match else ""
    assert names == [f"r{number}" for number in range(7)]


async def test_what_hasnt_changed_is_304_and_free(client):
    first = await client.ask("GET", RUNNERS)
    left = int(first.headers["x-ratelimit-remaining"])
    again = await client.ask("GET", RUNNERS, headers={"If-None-Match": first.headers["etag"]}, unchecked="no body")
    assert (again.status_code, again.content) == (304, b"")
    assert int(again.headers["x-ratelimit-remaining"]) == left
    await register(client, "new")
    changed = await client.ask("GET", RUNNERS, headers={"If-None-Match": first.headers["etag"]})
    assert changed.status_code == 200


async def test_the_primary_rate_limit_refuses_until_its_reset(client, github, clock):
    github.rest.rates.limits["core"] = 2
    assert [(await client.ask("GET", RUNNERS)).status_code for _ in range(2)] == [200, 200]
    refused = await client.ask("GET", RUNNERS, unchecked="403 isn't documented here")
    assert refused.status_code == 403
    assert refused.headers["x-ratelimit-remaining"] == "0"
    assert (await register(client, "other-bucket")).status_code == 201
    assert (await client.ask("GET", "/rate_limit")).status_code == 200
    clock.ahead = 3601
    assert (await client.ask("GET", RUNNERS, unchecked="the token is too old")).status_code == 401


async def test_a_fault_answers_in_place_of_the_endpoint_as_often_as_asked(client, github):
    fault = ResponseFault(path=r"/orgs/acme/.*jitconfig", status=503, headers={"Retry-After": "1"}, times=2)
    github.faults.responses.append(fault)
    replies = [await register(client, f"r{number}") for number in range(3)]
    assert [it.status_code for it in replies] == [503, 503, 201]
    assert replies[0].headers["retry-after"] == "1"
    assert [it.name for it in github.state.runners.values()] == ["r2"]


async def test_a_fault_after_the_work_loses_the_answer_and_not_the_work(client, github):
    github.faults.responses.append(ResponseFault(path=r".*jitconfig", status=502, after=True, times=1))
    assert (await register(client, "r")).status_code == 502
    assert [it.name for it in github.state.runners.values()] == ["r"]
    assert (await register(client, "r")).status_code == 409


@pytest.mark.parametrize(
    ("effect", "arrived", "listed"),
    [("drop", 0, 0), ("fail", 0, 1), ("duplicate", 2, 2), ("delay", 1, 1)],
)
async def test_faults_of_deliveries(client, github, inbox, effect, arrived, listed):
    fault = DeliveryFault(effect=effect, event="workflow_job", action="queued", delay_s=0.01, times=1)
    github.faults.deliveries.append(fault)
    github.create_run("app", JOB)
    await github.hooks.settle()
    assert len(inbox.got) == arrived
    assert len(github.state.deliveries) == listed
    assert len({headers["x-github-delivery"] for headers, _body in inbox.got}) == min(arrived, 1)
    github.create_run("app", JOB)
    await github.hooks.settle()
    assert len(inbox.got) == arrived + 1


async def test_faults_can_be_set_from_outside(client, github):
    body = {"responses": [{"path": "/meta", "status": 500, "times": 1}], "deliveries": [{"effect": "drop"}]}
    assert (await client.http.post("/_sim/faults", json=body)).status_code == 200
    assert (await client.http.get("/meta")).status_code == 500
    assert (await client.http.get("/meta")).status_code == 200
    github.create_run("app", JOB)
    assert not github.state.deliveries
    assert (await client.http.request("DELETE", "/_sim/faults")).json()["responses"] == []
    assert (await client.http.post("/_sim/faults", json={"responces": []})).status_code == 400


@pytest.mark.parametrize(
    ("client_address", "host"), [("203.0.113.1", "127.0.0.1"), ("127.0.0.1", "evil.example"), ("10.0.0.1", "sim")]
)
async def test_the_control_api_is_for_loopback_only(github, client_address, host):
    transport = httpx.ASGITransport(github.app, client=(client_address, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://sim") as http:
        assert (await http.get("/_sim/state", headers={"Host": host})).status_code == 404


async def test_the_control_api_starts_looks_at_and_ends_a_run(client, github):
    made = await client.http.post("/_sim/runs", json={"repository": "app", "workflow": JOB})
    assert made.status_code == 201
    (job,) = made.json()["jobs"]
    assert (await client.http.get(f"/_sim/jobs/{job['id']}")).json()["status"] == "queued"
    assert (await client.http.get(f"/_sim/jobs/{job['id']}/log")).text == ""
    assert (await client.http.post(f"/_sim/runs/{made.json()['id']}/cancel")).status_code == 202
    state = (await client.http.get("/_sim/state")).json()
    assert [it["conclusion"] for it in state["jobs"]] == ["cancelled"]
    assert (await client.http.get("/_sim/jobs/7")).status_code == 404
    wrong = {
        "repository": "app",
        "workflow": {"jobs": {"x": {"runs-on": "y", "steps": [{"uses": "actions/checkout"}]}}},
    }
    refused = await client.http.post("/_sim/runs", json=wrong)
    assert (refused.status_code, refused.json()["code"]) == (422, "workflow-invalid")


async def test_the_control_api_shortens_a_runners_hold_of_its_job(client, github, clock):
    (job,) = github.create_run("app", JOB).jobs
    github.engine.acquire(job)
    assert (await client.http.post(f"/_sim/jobs/{job.id}/lock", json={"for_s": 30})).status_code == 202
    clock.ahead = 29
    github.pass_time()
    assert job.status == "in_progress"
    clock.ahead = 31
    github.pass_time()
    assert (job.status, job.conclusion) == ("completed", "failure")


async def test_files_and_raw_deliveries_by_the_control_api(client, github, inbox):
    await client.http.put("/_sim/repositories/acme/app/files/.ironcd/policy.yml", content=b"mode: warn\n")
    assert github.repository("app").files["main"] == {".ironcd/policy.yml": b"mode: warn\n"}
    body = {"event": "workflow_job", "body_base64": "bm90IGpzb24=", "headers": {"X-Hub-Signature-256": "sha256=00"}}
    assert (await client.http.post("/_sim/deliveries", json=body)).status_code == 202
    await github.hooks.settle()
    ((headers, content),) = inbox.got
    assert (headers["x-hub-signature-256"], content) == ("sha256=00", b"not json")
