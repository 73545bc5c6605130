"""Clients and receivers written by others: octokit asks, probot receives, githubkit goes the product's own way."""

from __future__ import annotations

import json
import os
import subprocess

import httpx
import pytest
from githubkit import AppAuthStrategy, GitHub
from githubkit.cache import MemCacheStrategy
from githubkit.exception import RequestFailed

from orchestrator.simulator.github import Simulator
from orchestrator.simulator.github.core import GitHub as SimulatedGitHub
from orchestrator.simulator.github.identity import pem_of

WORKFLOW = {"jobs": {"build": {"runs-on": "ironcd", "steps": [{"run": "true"}]}}}


def environment(simulator: Simulator) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "API_URL": simulator.api_url,
        "APP_ID": str(simulator.app_id),
        "PRIVATE_KEY": simulator.app_private_key_pem,
        "ORG": simulator.org,
        "WEBHOOK_SECRET": simulator.webhook_secret,
    }


def test_octokit_signs_in_registers_lists_and_fences(simulator, strangers):
    done = subprocess.run(
        ["node", "octokit-app.mjs"],
        cwd=strangers,
        env=environment(simulator),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen == {
        "slug": "ironcd",
        "installation": simulator.installation_id,
        "repositories": ["acme/app"],
        "status": 201,
        "files": [".runner", ".credentials", ".credentials_rsaparams"],
        "conflict": 409,
        "runners": ["from-octokit", "more-0", "more-1"],
        "deleted": 204,
        "deletedTwice": 404,
        "deliveries": [],
    }


@pytest.fixture
def probot(simulator, strangers):
    process = subprocess.Popen(
        ["node", "probot-receiver.mjs"],
        cwd=strangers,
        env=environment(simulator),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        port = json.loads(process.stdout.readline())["port"]
        simulator.webhook_url = f"http://127.0.0.1:{port}/webhook"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_probot_takes_what_the_simulator_signed(simulator, probot):
    run = simulator.create_run("app", WORKFLOW)
    taken = json.loads(probot.stdout.readline())
    assert (taken["name"], taken["action"], taken["job"]) == ("workflow_job", "queued", run["jobs"][0]["id"])
    (delivery,) = simulator.deliveries()
    assert taken["id"] == delivery["guid"]
    simulator.cancel_run(run["id"])
    assert json.loads(probot.stdout.readline())["action"] == "completed"


def test_probot_refuses_a_body_that_was_changed_by_one_byte(simulator, probot):
    body = json.dumps({"action": "queued", "workflow_job": {"id": 1}}).encode()
    simulator.deliver("workflow_job", body)
    assert json.loads(probot.stdout.readline())["job"] == 1
    (delivery,) = simulator.deliveries()
    headers = delivery["request"]["headers"]
    changed = body.replace(b'"id": 1', b'"id": 2')
    reply = httpx.post(simulator.webhook_url, content=changed, headers=headers, trust_env=False)
    assert reply.status_code == 400
    assert httpx.post(simulator.webhook_url, content=body, headers=headers, trust_env=False).status_code == 200


@pytest.fixture
async def githubkit_app():
    """Githubkit against the application itself, with no socket between."""
    simulated = SimulatedGitHub()
    auth = AppAuthStrategy(simulated.app_record.id, pem_of(simulated.app_record.private_key))
    client = GitHub(
        auth,
        base_url="http://127.0.0.1",
        async_transport=httpx.ASGITransport(simulated.app),
        cache_strategy=MemCacheStrategy(),
        auto_retry=False,
    )
    return simulated, client


async def test_githubkit_signs_in_registers_and_fences(githubkit_app):
    simulated, app = githubkit_app
    installation = (await app.rest.apps.async_get_org_installation("acme")).parsed_data
    assert installation.id == simulated.installation_id
    client = app.with_auth(app.auth.as_installation(installation.id))
    register = client.rest.actions.async_generate_runner_jitconfig_for_org
    made = (await register("acme", name="r", runner_group_id=1, labels=["ironcd"])).parsed_data
    assert made.encoded_jit_config
    with pytest.raises(RequestFailed) as caught:
        await register("acme", name="r", runner_group_id=1, labels=["ironcd"])
    assert caught.value.response.status_code == 409
    listed = (await client.rest.actions.async_list_self_hosted_runners_for_org("acme", name="r")).parsed_data
    assert [it.id for it in listed.runners] == [made.runner.id]
    delete = client.rest.actions.async_delete_self_hosted_runner_from_org
    assert (await delete("acme", made.runner.id)).status_code == 204


async def test_githubkit_reads_runs_jobs_files_and_writes_statuses(githubkit_app):
    simulated, app = githubkit_app
    client = app.with_auth(app.auth.as_installation(simulated.installation_id))
    simulated.put_file("app", ".ironcd/policy.yml", b"mode: enforce\n")
    run = simulated.create_run("app", WORKFLOW)
    jobs = (await client.rest.actions.async_list_jobs_for_workflow_run("acme", "app", run.id)).parsed_data
    assert [it.status for it in jobs.jobs] == ["queued"]
    file = (await client.rest.repos.async_get_content("acme", "app", ".ironcd/policy.yml")).parsed_data
    assert file.path == ".ironcd/policy.yml"
    status = client.rest.repos.async_create_commit_status
    made = (await status("acme", "app", run.head_sha, state="success", context="ironcd/policy")).parsed_data
    assert made.state == "success"
    hooks = app.rest.apps
    assert (await hooks.async_list_webhook_deliveries()).parsed_data == []
