"""Self-hosted runners of organisations and repositories: just-in-time registration, list, fence, groups, downloads."""

from __future__ import annotations

import asyncio
import re
import secrets
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from orchestrator.simulator.github import jit, present
from orchestrator.simulator.github.auth import Refused
from orchestrator.simulator.github.engine import RunnerBusy
from orchestrator.simulator.github.http import Call, Endpoint, Rest, reply
from orchestrator.simulator.github.rest import scope
from orchestrator.simulator.github.state import Account, Repository, Runner, RunnerGroup, timestamp

_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")


def routes(rest: Rest) -> list[Route]:
    endpoints: list[tuple[str, str, Endpoint]] = [
        ("GET", "", list_runners),
        ("GET", "/downloads", list_downloads),
        ("POST", "/generate-jitconfig", generate_jit),
        ("POST", "/registration-token", create_registration_token),
        ("POST", "/remove-token", create_registration_token),
        ("GET", "/{runner_id}", show_runner),
        ("DELETE", "/{runner_id}", delete_runner),
        ("GET", "/{runner_id}/labels", list_labels),
    ]
    group = "/orgs/{org}/actions/runner-groups/{runner_group_id}"
    return [
        *(
            rest.route(method, base + "/actions/runners" + path, endpoint)
            for base in ("/orgs/{org}", "/repos/{owner}/{repo}")
            for method, path, endpoint in endpoints
        ),
        rest.route("GET", "/orgs/{org}/actions/runner-groups", list_groups),
        rest.route("GET", group, show_group),
        rest.route("GET", group + "/repositories", list_group_repositories),
        rest.route("GET", group + "/runners", list_group_runners),
    ]


@dataclass(frozen=True)
class _Scope:
    owner: Account
    repository: Repository | None


def _scope(call: Call, level: str) -> _Scope:
    """Whose runners the path speaks of; the caller needs ``level`` on them."""
    if "org" in call.request.path_params:
        owner = scope.organization(call)
        call.caller.need("organization_self_hosted_runners", level)
        return _Scope(owner, None)
    repo = scope.repository(call)
    call.caller.need("administration", level)
    return _Scope(repo.owner, repo)


async def generate_jit(call: Call) -> Response:
    where = _scope(call, "write")
    asked = call.json_object()
    name, group_id, labels = _valid_registration(call, asked)
    if any(item.name == name for item in call.engine.runners_of(where.owner, where.repository)):
        raise Refused(409, f"Already exists - A runner with the name {name} already exists.")
    # Making a key takes tens of milliseconds: others are served meanwhile, so the name is looked at again.
    key = await asyncio.to_thread(jit.new_key) if not call.rest.spare_keys else call.rest.spare_key()
    if any(item.name == name for item in call.engine.runners_of(where.owner, where.repository)):
        raise Refused(409, f"Already exists - A runner with the name {name} already exists.")
    runner = call.engine.add_runner(
        name=name,
        owner=where.owner,
        repository=where.repository,
        group_id=group_id,
        labels=labels,
        work_folder=str(asked.get("work_folder") or "_work"),
        key=key.public_key(),
    )
    encoded = jit.encode(runner, key, call.rest.url_of)
    return reply({"runner": present.runner(runner), "encoded_jit_config": encoded}, 201)


def _valid_registration(call: Call, asked: dict[str, Any]) -> tuple[str, int, list[str]]:
    missing = [f'"{key}" wasn\'t supplied.' for key in ("name", "runner_group_id", "labels") if key not in asked]
    if missing:
        raise Refused(422, "Invalid request.\n\n" + " ".join(missing), errors=missing)
    name, group_id, labels = asked["name"], asked["runner_group_id"], asked["labels"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise Refused(422, "Validation Failed", errors=["name is not valid (1 to 64 letters, digits, '-', '_', '.')"])
    if not isinstance(group_id, int) or isinstance(group_id, bool):
        raise Refused(422, "Validation Failed", errors=["runner_group_id is not an integer"])
    if not isinstance(labels, list) or not 1 <= len(labels) <= 100 or not all(isinstance(x, str) and x for x in labels):
        raise Refused(422, "Validation Failed", errors=["labels must be 1 to 100 strings"])
    if group_id not in call.state.groups:
        raise Refused(404, scope.NOT_FOUND)
    return name, group_id, labels


async def create_registration_token(call: Call) -> Response:
    _scope(call, "write")
    expires = timestamp(call.state.now() + 3600)
    return reply({"token": "A" + secrets.token_hex(14).upper(), "expires_at": expires}, 201)


async def list_runners(call: Call) -> Response:
    where = _scope(call, "read")
    name = call.request.query_params.get("name")
    every = [it for it in call.engine.runners_of(where.owner, where.repository) if call.engine.known_to(it)]
    items = [it for it in every if name is None or it.name == name]
    page, headers = call.page(items)
    return reply({"total_count": len(items), "runners": [_shown(call, it) for it in page]}, headers=headers)


def _shown(call: Call, it: Runner) -> dict[str, Any]:
    return {**present.runner(it), "busy": call.engine.seems_busy(it)}


def _runner(call: Call, where: _Scope) -> Runner:
    it = call.state.runners.get(call.number("runner_id"))
    if it is None or it.owner.id != where.owner.id or it.repository is not where.repository:
        raise Refused(404, scope.NOT_FOUND)
    return it


async def show_runner(call: Call) -> Response:
    it = _runner(call, _scope(call, "read"))
    if not call.engine.known_to(it):
        raise Refused(404, scope.NOT_FOUND)
    return reply(_shown(call, it))


async def delete_runner(call: Call) -> Response:
    """The fence: 422 where a job got in first."""
    it = _runner(call, _scope(call, "write"))
    try:
        call.engine.remove_runner(it)
    except RunnerBusy:
        message = f'Bad request - Runner "{it.name}" is still running a job"'
        raise Refused(422, message, errors=[]) from None
    return reply(None, 204)


async def list_labels(call: Call) -> Response:
    it = _runner(call, _scope(call, "read"))
    return reply({"total_count": len(it.labels), "labels": [present.runner_label(name) for name in it.labels]})


async def list_downloads(call: Call) -> Response:
    _scope(call, "read")
    return reply([item for item in [call.rest.download] if item])


async def list_groups(call: Call) -> Response:
    owner = scope.organization(call)
    call.caller.need("organization_self_hosted_runners", "read")
    page, headers = call.page([present.runner_group(it, owner.login) for it in call.state.groups.values()])
    return reply({"total_count": len(call.state.groups), "runner_groups": page}, headers=headers)


def _group(call: Call) -> tuple[RunnerGroup, Account]:
    owner = scope.organization(call)
    call.caller.need("organization_self_hosted_runners", "read")
    it = call.state.groups.get(call.number("runner_group_id"))
    if it is None:
        raise Refused(404, scope.NOT_FOUND)
    return it, owner


async def show_group(call: Call) -> Response:
    it, owner = _group(call)
    return reply(present.runner_group(it, owner.login))


async def list_group_repositories(call: Call) -> Response:
    it, _owner = _group(call)
    items = [repo for repo in call.state.repositories.values() if repo.id in it.repository_ids]
    page, headers = call.page([present.minimal_repository(repo) for repo in items])
    return reply({"total_count": len(items), "repositories": page}, headers=headers)


async def list_group_runners(call: Call) -> Response:
    it, owner = _group(call)
    items = [runner for runner in call.engine.runners_of(owner, None) if runner.group_id == it.id]
    page, headers = call.page([present.runner(runner) for runner in items])
    return reply({"total_count": len(items), "runners": page}, headers=headers)
