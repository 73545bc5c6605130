"""Workflow runs and their jobs: look, cancel, run again, approve."""

from __future__ import annotations

from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from orchestrator.simulator.github import jit, present
from orchestrator.simulator.github.auth import Refused
from orchestrator.simulator.github.http import Call, Rest, reply
from orchestrator.simulator.github.rest import scope
from orchestrator.simulator.github.state import Job, Run, timestamp


def routes(rest: Rest) -> list[Route]:
    base = "/repos/{owner}/{repo}/actions"
    run = base + "/runs/{run_id}"
    return [
        rest.route("GET", base + "/runs", list_runs),
        rest.route("GET", run, show_run),
        rest.route("GET", run + "/jobs", list_jobs),
        rest.route("GET", run + "/attempts/{attempt_number}", show_attempt),
        rest.route("GET", run + "/attempts/{attempt_number}/jobs", list_attempt_jobs),
        rest.route("POST", run + "/cancel", cancel),
        rest.route("POST", run + "/force-cancel", force_cancel),
        rest.route("POST", run + "/rerun", rerun),
        rest.route("POST", run + "/rerun-failed-jobs", rerun_failed),
        rest.route("GET", run + "/pending_deployments", list_pending_deployments),
        rest.route("POST", run + "/pending_deployments", review_deployments),
        rest.route("GET", base + "/jobs/{job_id}", show_job),
        rest.route("GET", base + "/jobs/{job_id}/logs", show_log),
        rest.route("POST", base + "/jobs/{job_id}/rerun", rerun_job),
    ]


def _run(call: Call, level: str = "read") -> Run:
    it = scope.run(call)
    call.caller.need("actions", level)
    return it


async def list_runs(call: Call) -> Response:
    repo = scope.repository(call)
    call.caller.need("actions", "read")
    query = call.request.query_params
    items = [it for it in call.state.runs.values() if it.repository is repo and _matches(it, query.get("status", ""))]
    if event := query.get("event"):
        items = [it for it in items if it.event == event]
    page, headers = call.page(list(reversed(items)))
    return reply({"total_count": len(items), "workflow_runs": [present.run(it) for it in page]}, headers=headers)


def _matches(it: Run, wanted: str) -> bool:
    """The filter takes a status or a conclusion, as GitHub's does."""
    return wanted in ("", it.status(), it.conclusion())


async def show_run(call: Call) -> Response:
    return reply(present.run(_run(call)))


def _attempt(call: Call, it: Run) -> int:
    number = call.number("attempt_number")
    if number not in it.attempts:
        raise Refused(404, scope.NOT_FOUND)
    return number


async def show_attempt(call: Call) -> Response:
    it = _run(call)
    return reply(present.run(it, _attempt(call, it)))


def _jobs(call: Call, items: list[Job]) -> Response:
    page, headers = call.page(items)
    jobs = [present.job(item, call.state.groups) for item in page]
    return reply({"total_count": len(items), "jobs": jobs}, headers=headers)


async def list_jobs(call: Call) -> Response:
    it = _run(call)
    if call.request.query_params.get("filter", "latest") == "all":
        every = {job.id: job for jobs in it.attempts.values() for job in jobs}
        return _jobs(call, list(every.values()))
    return _jobs(call, it.jobs)


async def list_attempt_jobs(call: Call) -> Response:
    it = _run(call)
    return _jobs(call, it.attempts[_attempt(call, it)])


async def cancel(call: Call) -> Response:
    return _cancel(call, force=False)


async def force_cancel(call: Call) -> Response:
    return _cancel(call, force=True)


def _cancel(call: Call, *, force: bool) -> Response:
    if not call.engine.cancel(_run(call, "write"), force=force):
        raise Refused(409, "Cannot cancel a workflow run that is completed.")
    return reply({}, 202)


async def rerun(call: Call) -> Response:
    it = _run(call, "write")
    _ended(it)
    call.engine.rerun(it)
    return reply({}, 201)


async def rerun_failed(call: Call) -> Response:
    it = _run(call, "write")
    _ended(it)
    call.engine.rerun(it, only={job.key for job in it.jobs if job.conclusion != "success"})
    return reply({}, 201)


def _ended(it: Run) -> None:
    if it.status() != "completed":
        raise Refused(403, "This workflow is already running")


async def list_pending_deployments(call: Call) -> Response:
    it = _run(call)
    waiting = [job for job in it.jobs if job.status == "waiting"]
    return reply([_pending(job) for job in waiting])


def _pending(job: Job) -> dict[str, object]:
    name = job.spec.environment
    return {
        "environment": {
            "id": job.deployment_id,
            "node_id": present.node_id("EN", job.deployment_id),
            "name": name,
            "url": f"{present.API}/repos/{job.run.repository.full_name}/environments/{name}",
            "html_url": f"{present.WEB}/{job.run.repository.full_name}/deployments/activity_log?environments_filter={name}",
        },
        "wait_timer": 0,
        "wait_timer_started_at": timestamp(job.created_at),
        "current_user_can_approve": True,
        "reviewers": [],
    }


async def review_deployments(call: Call) -> Response:
    it = _run(call, "write")
    state = call.json_object().get("state")
    if state not in ("approved", "rejected"):
        raise Refused(422, "Validation Failed", errors=["state must be approved or rejected"])
    jobs = call.engine.approve(it, approved=state == "approved")
    return reply([present.deployment(job, it.actor) for job in jobs])


def _job(call: Call, level: str = "read") -> Job:
    it = scope.job(call)
    call.caller.need("actions", level)
    return it


async def show_job(call: Call) -> Response:
    return reply(present.job(_job(call), call.state.groups))


async def show_log(call: Call) -> Response:
    """302 to where the runner uploaded the log; not found while there is none."""
    it = _job(call)
    path = f"/actions-results/{it.plan_id}/{it.uuid}/job.log"
    if path not in call.state.blobs:
        raise Refused(404, scope.NOT_FOUND)
    return RedirectResponse(call.rest.url_of(jit.BLOBS) + path + "?sig=read", 302)


async def rerun_job(call: Call) -> Response:
    it = _job(call, "write")
    _ended(it.run)
    call.engine.rerun(it.run, only={it.key})
    return reply({}, 201)
