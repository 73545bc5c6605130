"""Repositories: themselves, their files, and the statuses and check runs of their commits."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from orchestrator.simulator.github import present
from orchestrator.simulator.github.auth import Refused
from orchestrator.simulator.github.http import Call, Rest, reply
from orchestrator.simulator.github.rest import scope
from orchestrator.simulator.github.state import Account, Repository, Status, timestamp

_STATES = ("error", "failure", "pending", "success")


def routes(rest: Rest) -> list[Route]:
    base = "/repos/{owner}/{repo}"
    return [
        rest.route("GET", base, show_repository),
        rest.route("GET", base + "/contents/{path:path}", show_content),
        rest.route("POST", base + "/statuses/{sha}", create_status),
        rest.route("GET", base + "/commits/{ref}/statuses", list_statuses),
        rest.route("POST", base + "/check-runs", create_check_run),
        rest.route("PATCH", base + "/check-runs/{check_run_id}", update_check_run),
        rest.route("GET", base + "/check-runs/{check_run_id}", show_check_run),
    ]


async def show_repository(call: Call) -> Response:
    repo = scope.repository(call)
    permissions = {"admin": False, "maintain": False, "push": False, "triage": False, "pull": True}
    content = {
        **present.repository(repo),
        "permissions": permissions,
        "subscribers_count": 0,
        "network_count": 0,
    }
    return reply(content)


async def show_content(call: Call) -> Response:
    """One file of a branch, as base64; folders aren't simulated."""
    repo = scope.repository(call)
    call.caller.need("contents", "read")
    branch = call.request.query_params.get("ref", "") or repo.default_branch
    path = call.path("path")
    branch = branch.removeprefix("refs/heads/")
    data = repo.files.get(branch if branch != repo.head_sha else repo.default_branch, {}).get(path)
    if data is None:
        raise Refused(404, scope.NOT_FOUND)
    return reply(_content(repo, branch, path, data))


def _content(repo: Repository, branch: str, path: str, data: bytes) -> dict[str, Any]:
    # What git calls a file: its hash is over a header and the content.
    sha = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    url = f"{present.API}/repos/{repo.full_name}/contents/{path}?ref={branch}"
    git = f"{present.API}/repos/{repo.full_name}/git/blobs/{sha}"
    html = f"{present.WEB}/{repo.full_name}/blob/{branch}/{path}"
    return {
        "name": path.rsplit("/", 1)[-1],
        "path": path,
        "sha": sha,
        "size": len(data),
        "url": url,
        "html_url": html,
        "git_url": git,
        "download_url": f"https://raw.githubusercontent.com/{repo.full_name}/{branch}/{path}",
        "type": "file",
        # GitHub breaks the base64 into lines.
        "content": base64.encodebytes(data).decode(),
        "encoding": "base64",
        "_links": {"self": url, "git": git, "html": html},
    }


def _bot(call: Call) -> Account:
    app = call.state.app
    return Account(id=app.id, login=f"{app.slug}[bot]", type="User")


async def create_status(call: Call) -> Response:
    repo = scope.repository(call)
    call.caller.need("statuses", "write")
    asked, sha = call.json_object(), call.path("sha")
    if len(sha) != 40:
        raise Refused(422, f"No commit found for SHA: {sha}", errors=[])
    if asked.get("state") not in _STATES:
        raise Refused(422, "Validation Failed", errors=["state is not included in the list"])
    it = Status(
        id=call.state.next_id(30_000_000_000),
        state=asked["state"],
        context=str(asked.get("context") or "default"),
        description=asked.get("description"),
        target_url=asked.get("target_url"),
        at=call.state.now(),
    )
    if len(it.description or "") > 140:
        raise Refused(422, "Validation Failed", errors=["description is too long (maximum is 140 characters)"])
    repo.statuses.setdefault(sha, []).append(it)
    return reply(present.status(it, repo, sha, _bot(call)), 201)


async def list_statuses(call: Call) -> Response:
    repo = scope.repository(call)
    call.caller.need("statuses", "read")
    sha = call.path("ref")
    sha = repo.head_sha if sha in (repo.default_branch, f"heads/{repo.default_branch}") else sha
    page, headers = call.page(list(reversed(repo.statuses.get(sha, []))))
    return reply([present.status(item, repo, sha, _bot(call)) for item in page], headers=headers)


def _check_run(call: Call, repo: Repository, number: int, asked: dict[str, Any]) -> dict[str, Any]:
    output = asked.get("output") or {}
    base = f"{present.API}/repos/{repo.full_name}/check-runs/{number}"
    now = timestamp(call.state.now())
    done = "completed" if asked.get("conclusion") else str(asked.get("status", "queued"))
    return {
        "id": number,
        "head_sha": asked["head_sha"],
        "node_id": present.node_id("CR", number),
        "external_id": asked.get("external_id", ""),
        "url": base,
        "html_url": f"{present.WEB}/{repo.full_name}/runs/{number}",
        "details_url": asked.get("details_url"),
        "status": done,
        "conclusion": asked.get("conclusion"),
        "started_at": asked.get("started_at", now),
        "completed_at": asked.get("completed_at", now) if done == "completed" else None,
        "output": {
            "title": output.get("title"),
            "summary": output.get("summary"),
            "text": output.get("text"),
            "annotations_count": len(output.get("annotations", [])),
            "annotations_url": f"{base}/annotations",
        },
        "name": str(asked["name"]),
        "check_suite": {"id": number + 1},
        "app": present.app(call.state.app, len(call.state.installations)),
        "pull_requests": [],
    }


async def create_check_run(call: Call) -> Response:
    repo = scope.repository(call)
    call.caller.need("checks", "write")
    asked = call.json_object()
    if not asked.get("name") or not asked.get("head_sha"):
        raise Refused(422, 'Invalid request.\n\n"name", "head_sha" weren\'t supplied.', errors=[])
    it = _check_run(call, repo, call.state.next_id(31_000_000_000), asked)
    repo.check_runs[it["id"]] = it
    return reply(it, 201)


def _found_check_run(call: Call, repo: Repository) -> dict[str, Any]:
    it = repo.check_runs.get(call.number("check_run_id"))
    if it is None:
        raise Refused(404, scope.NOT_FOUND)
    return it


async def update_check_run(call: Call) -> Response:
    repo = scope.repository(call)
    call.caller.need("checks", "write")
    before = _found_check_run(call, repo)
    asked = {key: value for key, value in before.items() if value is not None} | call.json_object()
    it = _check_run(call, repo, before["id"], asked)
    repo.check_runs[it["id"]] = it
    return reply(it)


async def show_check_run(call: Call) -> Response:
    repo = scope.repository(call)
    call.caller.need("checks", "read")
    return reply(_found_check_run(call, repo))
