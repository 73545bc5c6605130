"""Every endpoint of the simulated REST API against GitHub's own description of it.

Two things are outside of that description as we have it: a DELETE or GET of a runner that is gone (404, which GitHub
sends and doesn't document), and commit statuses, contents and check runs, which githubkit's models check.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any

import githubkit_schemas.latest.models as models
import pytest
from githubkit.compat import type_validate_python
from openapi_core.exceptions import OpenAPIError

from orchestrator.simulator.github.state import App

JOB = {"jobs": {"build": {"runs-on": ["self-hosted", "ironcd"], "steps": [{"run": "true"}]}}}
GATED = {"jobs": {"deploy": {"runs-on": "ironcd", "environment": "production", "steps": [{"run": "true"}]}}}
REGISTRATION = {"name": "ironcd-1", "runner_group_id": 1, "labels": ["self-hosted", "ironcd"], "work_folder": "_work"}
UNDOCUMENTED = "GitHub sends this status and doesn't document it"
NOT_IN_CUT = "not in the cut description"


async def test_the_app_and_its_installations(client, github):
    one = f"/app/installations/{github.installation_id}"
    shown = (await client.ask("GET", "/app", app=True)).json()
    assert (shown["id"], shown["slug"], shown["installations_count"]) == (424_242, "ironcd", 1)
    await client.ask("GET", "/app/installation-requests", app=True)
    assert [it["id"] for it in (await client.ask("GET", "/app/installations", app=True)).json()] == [
        github.installation_id
    ]
    for path in (one, "/orgs/acme/installation", "/repos/acme/app/installation"):
        assert (await client.ask("GET", path, app=True)).json()["account"]["login"] == "acme"
    assert (await client.ask("GET", "/app/installations/1", app=True)).status_code == 404
    assert (await client.ask("PUT", one + "/suspended", app=True)).status_code == 204
    assert (await client.ask("GET", one, app=True)).json()["suspended_at"]
    assert (await client.ask("DELETE", one + "/suspended", app=True)).status_code == 204
    assert (await client.ask("DELETE", one, app=True)).status_code == 204


async def test_installation_tokens(client, github):
    path = f"/app/installations/{github.installation_id}/access_tokens"
    reply = await client.ask("POST", path, app=True)
    assert reply.status_code == 201
    assert reply.json()["token"].startswith("ghs_")
    assert len(reply.json()["token"]) > 500
    narrow = {"repositories": ["app"], "permissions": {"actions": "read"}}
    reply = await client.ask("POST", path, narrow, app=True)
    assert reply.json()["permissions"] == {"actions": "read"}
    assert [it["name"] for it in reply.json()["repositories"]] == ["app"]
    too_much = {"permissions": {"members": "write"}}
    assert (await client.ask("POST", path, too_much, app=True)).status_code == 422
    assert (await client.ask("POST", path, {"repositories": ["nothing"]}, app=True)).status_code == 422
    client.token = reply.json()["token"]
    assert (await client.ask("GET", "/installation/repositories")).json()["total_count"] == 1
    assert (await client.ask("DELETE", "/installation/token")).status_code == 204
    assert (await client.ask("GET", "/installation/repositories")).status_code == 401


@pytest.mark.parametrize("base", ["/orgs/acme", "/repos/acme/app"])
async def test_runners(client, github, base):
    path = base + "/actions/runners"
    made = await client.ask("POST", path + "/generate-jitconfig", REGISTRATION)
    assert made.status_code == 201
    runner = made.json()["runner"]
    assert (runner["name"], runner["os"], runner["status"], runner["busy"]) == ("ironcd-1", "unknown", "offline", False)
    assert [it["name"] for it in runner["labels"]] == ["self-hosted", "ironcd"]
    assert (await client.ask("POST", path + "/generate-jitconfig", REGISTRATION)).status_code == 409
    elsewhere = {**REGISTRATION, "name": "ironcd-2", "runner_group_id": 77}
    assert (await client.ask("POST", path + "/generate-jitconfig", elsewhere)).status_code == 404
    assert (await client.ask("GET", path)).json()["total_count"] == 1
    assert (await client.ask("GET", path, params={"name": "ironcd-1"})).json()["total_count"] == 1
    assert (await client.ask("GET", path, params={"name": "other"})).json()["total_count"] == 0
    one = f"{path}/{runner['id']}"
    assert (await client.ask("GET", one)).json()["id"] == runner["id"]
    assert (await client.ask("GET", one + "/labels")).json()["total_count"] == 2
    (download,) = (await client.ask("GET", path + "/downloads")).json()
    tarball = await client.http.get(download["download_url"].replace("https://", "/_host/"))
    assert hashlib.sha256(tarball.content).hexdigest() == download["sha256_checksum"]
    for name in ("registration-token", "remove-token"):
        assert (await client.ask("POST", f"{path}/{name}")).status_code == 201
    github.state.runners[runner["id"]].job = object()
    assert (await client.ask("DELETE", one)).status_code == 422
    github.state.runners[runner["id"]].job = None
    assert (await client.ask("DELETE", one)).status_code == 204
    assert (await client.ask("DELETE", one, unchecked=UNDOCUMENTED)).status_code == 404
    assert (await client.ask("GET", one, unchecked=UNDOCUMENTED)).status_code == 404


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"name": "x" * 65}, "name"),
        ({"name": "two words"}, "name"),
        ({"labels": []}, "labels"),
        ({"labels": ["x"] * 101}, "labels"),
        ({"runner_group_id": "1"}, "runner_group_id"),
        ({"runner_group_id": None}, "runner_group_id"),
    ],
)
async def test_a_registration_that_breaks_the_rules_is_422_and_says_which(client, change, word):
    path = "/orgs/acme/actions/runners/generate-jitconfig"
    reply = await client.ask("POST", path, REGISTRATION | change, badly=True)
    assert reply.status_code == 422
    assert word in str(reply.json()["errors"])
    assert (await client.ask("GET", "/orgs/acme/actions/runners")).json()["total_count"] == 0


async def test_a_missing_group_is_422(client):
    body = {name: value for name, value in REGISTRATION.items() if name != "runner_group_id"}
    reply = await client.ask("POST", "/orgs/acme/actions/runners/generate-jitconfig", body, badly=True)
    assert reply.status_code == 422


async def test_runner_groups(client):
    base = "/orgs/acme/actions/runner-groups"
    groups = (await client.ask("GET", base)).json()
    assert [(it["id"], it["default"]) for it in groups["runner_groups"]] == [(1, True)]
    await client.ask("GET", base + "/1")
    await client.ask("GET", base + "/1/repositories")
    await client.ask("POST", "/orgs/acme/actions/runners/generate-jitconfig", REGISTRATION)
    assert (await client.ask("GET", base + "/1/runners")).json()["total_count"] == 1


async def test_runs_and_jobs(client, github):
    run = github.create_run("app", JOB, event="push")
    base = "/repos/acme/app/actions"
    one, job = f"{base}/runs/{run.id}", run.jobs[0]
    runs = (await client.ask("GET", base + "/runs", params={"status": "queued"})).json()
    assert [it["id"] for it in runs["workflow_runs"]] == [run.id]
    assert (await client.ask("GET", base + "/runs", params={"status": "completed"})).json()["total_count"] == 0
    assert (await client.ask("GET", one)).json()["event"] == "push"
    for path in (one + "/jobs", one + "/attempts/1/jobs"):
        jobs = (await client.ask("GET", path)).json()["jobs"]
        assert [(it["id"], it["status"], it["runner_id"]) for it in jobs] == [(job.id, "queued", None)]
    await client.ask("GET", one + "/jobs", params={"filter": "all"})
    await client.ask("GET", one + "/attempts/1")
    assert (await client.ask("GET", one + "/attempts/9/jobs")).status_code == 404
    assert (await client.ask("GET", f"{base}/jobs/{job.id}")).json()["labels"] == ["self-hosted", "ironcd"]
    github.state.blobs[f"/actions-results/{job.plan_id}/{job.uuid}/job.log"] = bytearray(b"line\n")
    log = await client.ask("GET", f"{base}/jobs/{job.id}/logs")
    assert log.status_code == 302
    assert log.headers["location"].startswith("https://productionresultssa0.blob.core.windows.net/")


async def test_cancel_and_run_again(client, github):
    run = github.create_run("app", JOB)
    one = f"/repos/acme/app/actions/runs/{run.id}"
    first = run.jobs[0]
    rerun_job = f"/repos/acme/app/actions/jobs/{first.id}/rerun"
    assert (await client.ask("POST", rerun_job)).status_code == 403
    assert (await client.ask("POST", one + "/cancel")).status_code == 202
    assert (await client.ask("POST", one + "/cancel")).status_code == 409
    assert (await client.ask("POST", one + "/force-cancel")).status_code == 409
    shown = (await client.ask("GET", one)).json()
    assert (shown["status"], shown["conclusion"]) == ("completed", "cancelled")
    assert (await client.ask("POST", rerun_job)).status_code == 201
    shown = (await client.ask("GET", one)).json()
    assert (shown["status"], shown["run_attempt"]) == ("queued", 2)
    assert run.jobs[0].id != first.id
    await client.ask("POST", one + "/force-cancel")
    assert (await client.ask("POST", one + "/rerun")).status_code == 201
    await client.ask("POST", one + "/cancel")
    assert (await client.ask("POST", one + "/rerun-failed-jobs")).status_code == 201
    every = (await client.ask("GET", one + "/jobs", params={"filter": "all"})).json()
    assert [it["run_attempt"] for it in every["jobs"]] == [1, 2, 3, 4]


async def test_deployments_wait_for_approval(client, github):
    run = github.create_run("app", GATED)
    path = f"/repos/acme/app/actions/runs/{run.id}/pending_deployments"
    assert [it["environment"]["name"] for it in (await client.ask("GET", path)).json()] == ["production"]
    body = {"environment_ids": [1], "state": "approved", "comment": "yes"}
    assert (await client.ask("POST", path, body)).status_code == 200
    assert run.jobs[0].status == "queued"
    assert (await client.ask("GET", path)).json() == []


async def test_the_webhook_and_its_deliveries(client, github):
    shown = (await client.ask("GET", "/app/hook/config", app=True)).json()
    assert shown["secret"] == "********"
    await client.ask("PATCH", "/app/hook/config", {"secret": "another"}, app=True)
    assert github.app_record.webhook_secret == "another"
    github.ping()
    await github.hooks.settle()
    (item,) = (await client.ask("GET", "/app/hook/deliveries", app=True)).json()
    assert (item["event"], item["status"], item["status_code"]) == ("ping", "OK", 202)
    one = f"/app/hook/deliveries/{item['id']}"
    shown = (await client.ask("GET", one, app=True)).json()
    assert shown["request"]["headers"]["X-GitHub-Event"] == "ping"
    assert shown["response"]["payload"] == "taken"
    assert (await client.ask("POST", one + "/attempts", app=True)).status_code == 202
    await github.hooks.settle()
    again, first = (await client.ask("GET", "/app/hook/deliveries", app=True)).json()
    assert again["guid"] == first["guid"]
    assert again["id"] != first["id"]
    assert (again["redelivery"], first["redelivery"]) == (True, False)


async def test_deliveries_are_paged_by_cursor(client, github):
    for _ in range(5):
        github.ping()
    await github.hooks.settle()
    seen: list[int] = []
    reply = await client.ask("GET", "/app/hook/deliveries", app=True, params={"per_page": 2})
    while True:
        seen += [it["id"] for it in reply.json()]
        match = re.search(r"cursor=([^&>]+)[^>]*>; rel=\"next\"", reply.headers.get("link", ""))
        if match is None:
            break
        params = {"per_page": 2, "cursor": match[1]}
        reply = await client.ask("GET", "/app/hook/deliveries", app=True, params=params)
    assert len(seen) == 5
    assert seen == sorted(seen, reverse=True)


async def test_rate_limit_and_meta(client):
    resources = (await client.ask("GET", "/rate_limit")).json()["resources"]
    assert resources["actions_runner_registration"]["limit"] == 10_000
    names = (await client.ask("GET", "/meta")).json()["domains"]["actions_inbound"]["full_domains"]
    assert "broker.actions.githubusercontent.com" in names


async def test_a_manifest_is_redeemed_once(client, github, private_key):
    it = github.app_record
    github.state.manifests["code"] = App(**{**vars(it), "id": 7, "private_key": private_key})
    reply = await client.ask("POST", "/app-manifests/code/conversions")
    assert reply.status_code == 201
    assert reply.json()["pem"].startswith("-----BEGIN RSA PRIVATE KEY-----")
    assert (await client.ask("POST", "/app-manifests/code/conversions")).status_code == 404


async def test_repositories_contents_and_statuses_fit_githubkits_models(client, github):
    text = b"mode: enforce\n" * 20
    github.put_file("app", ".ironcd/policy.yml", text)
    sha = github.repository("app").head_sha

    async def ask(method: str, path: str, content: Any, model: Any) -> Any:
        reply = await client.ask(method, "/repos/acme/app" + path, content, unchecked=NOT_IN_CUT)
        assert reply.is_success, reply.text
        return type_validate_python(model, reply.json())

    repo = await ask("GET", "", None, models.FullRepository)
    assert repo.default_branch == "main"
    content = await ask("GET", "/contents/.ironcd/policy.yml", None, models.ContentFile)
    assert base64.b64decode(content.content) == text
    status = {
        "state": "failure",
        "context": "ironcd/policy",
        "description": "no policy",
        "target_url": "https://x.example/",
    }
    made = await ask("POST", f"/statuses/{sha}", status, models.Status)
    assert (made.state, made.context) == ("failure", "ironcd/policy")
    listed = await ask("GET", f"/commits/{sha}/statuses", None, list[models.Status])
    assert [it.id for it in listed] == [made.id]
    check = await ask("POST", "/check-runs", {"name": "egress", "head_sha": sha}, models.CheckRun)
    done = {"conclusion": "neutral", "output": {"title": "t", "summary": "s"}}
    check = await ask("PATCH", f"/check-runs/{check.id}", done, models.CheckRun)
    assert (check.status, check.conclusion) == ("completed", "neutral")
    assert (await ask("GET", f"/check-runs/{check.id}", None, models.CheckRun)).output.title == "t"


async def test_a_file_that_isnt_there_and_a_branch_that_has_another(client, github):
    github.put_file("app", "a.txt", b"head", branch="feature")
    missing = await client.ask("GET", "/repos/acme/app/contents/a.txt", unchecked=NOT_IN_CUT)
    assert missing.status_code == 404
    found = await client.ask("GET", "/repos/acme/app/contents/a.txt", params={"ref": "feature"}, unchecked=NOT_IN_CUT)
    assert base64.b64decode(found.json()["content"]) == b"head"


async def test_the_check_itself_notices_a_wrong_answer(client, github, monkeypatch):
    """What all of the above rests on."""
    from orchestrator.simulator.github import present

    whole = present.runner
    monkeypatch.setattr(present, "runner", lambda it: {**whole(it), "busy": "no"})
    with pytest.raises(OpenAPIError):
        await client.ask("POST", "/orgs/acme/actions/runners/generate-jitconfig", REGISTRATION)


async def test_every_endpoint_of_the_simulator_is_in_the_description_or_named_here(github, spec):
    documented = {
        (method.upper(), re.sub(r"{[^}]*}", "{}", path)) for path, item in spec["paths"].items() for method in item
    }
    served = {
        (next(iter(route.methods - {"HEAD"})), re.sub(r"{[^}]*}", "{}", route.path))
        for route in github.app._apps["api.github.com"].routes
        if route.path != "/{path:path}"
    }
    repo = "/repos/{}/{}"
    assert served - documented == {
        ("GET", "/repos/actions/runner/releases/latest"),
        ("GET", repo),
        ("GET", repo + "/contents/{}"),
        ("POST", repo + "/statuses/{}"),
        ("GET", repo + "/commits/{}/statuses"),
        ("POST", repo + "/check-runs"),
        ("PATCH", repo + "/check-runs/{}"),
        ("GET", repo + "/check-runs/{}"),
    }


async def test_the_latest_release_of_the_runner(client, github):
    path = "/repos/actions/runner/releases/latest"
    github.state.runner_release = ("2.400.0", 1_700_000_000.0)
    shown = await client.ask("GET", path, unchecked=NOT_IN_CUT)
    release = type_validate_python(models.Release, shown.json())
    assert (release.tag_name, release.published_at.timestamp()) == ("v2.400.0", 1_700_000_000.0)
