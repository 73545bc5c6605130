"""Webhooks: GitHub's signature, its headers, and payloads that a stranger's models take."""

from __future__ import annotations

import asyncio
import json
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import githubkit.webhooks
import pytest

from orchestrator.simulator.github.hooks import signature

SECRET = "a webhook secret"
JOB = {"jobs": {"build": {"runs-on": ["self-hosted", "ironcd"], "steps": [{"run": "true"}]}}}
GATED = {"jobs": {"deploy": {"runs-on": "ironcd", "environment": "production", "steps": [{"run": "true"}]}}}


def test_githubs_documented_signature():
    expected = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    assert signature("It's a Secret to Everybody", b"Hello, World!") == expected


async def test_a_delivery_has_githubs_headers_and_a_signature_over_its_very_bytes(github, inbox):
    github.create_run("app", JOB)
    await github.hooks.settle()
    ((headers, body),) = inbox.got
    assert githubkit.webhooks.verify(SECRET, body, headers["x-hub-signature-256"])
    assert not githubkit.webhooks.verify(SECRET, body + b" ", headers["x-hub-signature-256"])
    assert uuid.UUID(headers["x-github-delivery"])
    assert headers["x-github-event"] == "workflow_job"
    assert headers["x-github-hook-installation-target-type"] == "integration"
    assert headers["x-github-hook-installation-target-id"] == str(github.app_record.id)
    assert headers["user-agent"].startswith("GitHub-Hookshot/")
    assert headers["content-type"] == "application/json"


async def test_the_life_of_a_job_in_order_by_githubkits_strict_models(github, inbox):
    run = github.create_run("app", GATED)
    github.engine.approve(run, approved=True)
    job = run.jobs[0]
    runner = github.engine.add_runner(
        name="r",
        owner=github.owner,
        repository=None,
        group_id=1,
        labels=["ironcd"],
        work_folder="_work",
        key=github.rest.spare_keys[0].public_key(),
    )
    session = github.engine.open_session(runner, "me")
    session.polled_at = github.state.now()
    github.engine.assign()
    assert job.runner is runner
    github.engine.acquire(job)
    github.engine.complete(job, "success")
    await github.hooks.settle()
    events = [githubkit.webhooks.parse(headers["x-github-event"], body) for headers, body in inbox.got]
    assert [it.action for it in events] == ["waiting", "queued", "in_progress", "completed"]
    assert [it.workflow_job.status for it in events] == ["waiting", "queued", "in_progress", "completed"]
    assert [it.workflow_job.runner_name for it in events] == [None, None, "r", "r"]
    assert [it.workflow_job.conclusion for it in events] == [None, None, None, "success"]
    raw = [json.loads(body) for _headers, body in inbox.got]
    assert [it["installation"]["id"] for it in raw] == [github.installation_id] * 4
    assert {it["repository"]["full_name"] for it in raw} == {"acme/app"}
    assert ["deployment" in it for it in raw] == [False, True, True, True]


async def test_cancelled_in_the_queue_completes_with_no_runner(github, inbox):
    run = github.create_run("app", JOB)
    github.engine.cancel(run)
    await github.hooks.settle()
    last = json.loads(inbox.got[-1][1])
    assert (last["action"], last["workflow_job"]["conclusion"]) == ("completed", "cancelled")
    assert last["workflow_job"]["runner_id"] is None


@pytest.mark.parametrize("status", [200, 404, 500])
async def test_what_the_receiver_answered_is_on_record_and_nothing_is_tried_again(github, inbox, status):
    inbox.status = status
    github.create_run("app", JOB)
    await github.hooks.settle()
    (delivery,) = github.state.deliveries.values()
    assert (delivery.status_code, delivery.finished, len(inbox.got)) == (status, True, 1)


async def test_nothing_is_sent_where_the_app_isnt_installed_or_suspended(github, inbox):
    github.state.installations[github.installation_id].suspended_at = github.state.now()
    github.create_run("app", JOB)
    github.state.installations.clear()
    github.create_run("app", JOB)
    await github.hooks.settle()
    assert inbox.got == []


async def test_ping_and_installation_events_parse(client, github, inbox):
    github.ping()
    one = f"/app/installations/{github.installation_id}"
    await client.ask("PUT", one + "/suspended", app=True)
    await github.hooks.settle()
    parsed = [githubkit.webhooks.parse(headers["x-github-event"], body) for headers, body in inbox.got]
    assert parsed[1].action == "suspend"


async def test_settling_right_after_the_last_delivery_ends(github, inbox):
    """Its task is done then, and the loop hasn't yet run what is to be done after it."""
    github.create_run("app", JOB)
    (delivery,) = github.state.deliveries.values()
    while not delivery.finished:  # noqa: ASYNC110 - the very step of the loop in which it is finished
        await asyncio.sleep(0)
    with stopped_after(60):
        await github.hooks.settle()
    assert len(inbox.got) == 1


@contextmanager
def stopped_after(seconds: int) -> Iterator[None]:
    """Raises TimeoutError in what goes round and never lets the loop run, as no timeout of asyncio could."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"still going round after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
