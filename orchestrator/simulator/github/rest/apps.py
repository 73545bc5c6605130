"""The App: itself, its installations, their tokens, its webhook and the deliveries made to it."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from orchestrator.simulator.github import present
from orchestrator.simulator.github.acts import tell_installation
from orchestrator.simulator.github.auth import Refused, issue_token, narrowed
from orchestrator.simulator.github.http import Call, Rest, reply
from orchestrator.simulator.github.rest.scope import NOT_FOUND
from orchestrator.simulator.github.state import Delivery, Installation, timestamp


def routes(rest: Rest) -> list[Route]:
    one = "/app/installations/{installation_id}"
    delivery = "/app/hook/deliveries/{delivery_id}"
    return [
        rest.route("GET", "/app", show_app, app=True),
        rest.route("GET", "/app/installations", list_installations, app=True),
        rest.route("GET", "/app/installation-requests", list_requests, app=True),
        rest.route("GET", one, show_installation, app=True),
        rest.route("DELETE", one, delete_installation, app=True),
        rest.route("PUT", one + "/suspended", suspend, app=True),
        rest.route("DELETE", one + "/suspended", unsuspend, app=True),
        rest.route("POST", one + "/access_tokens", create_token, app=True),
        rest.route("GET", "/orgs/{org}/installation", show_org_installation, app=True),
        rest.route("GET", "/repos/{owner}/{repo}/installation", show_repo_installation, app=True),
        rest.route("GET", "/installation/repositories", list_repositories),
        rest.route("DELETE", "/installation/token", revoke_token),
        rest.route("GET", "/app/hook/config", show_hook, app=True),
        rest.route("PATCH", "/app/hook/config", update_hook, app=True),
        rest.route("GET", "/app/hook/deliveries", list_deliveries, app=True),
        rest.route("GET", delivery, show_delivery, app=True),
        rest.route("POST", delivery + "/attempts", redeliver, app=True),
        rest.route("POST", "/app-manifests/{code}/conversions", convert_manifest, open_=True),
    ]


async def show_app(call: Call) -> Response:
    return reply(present.app(call.state.app, len(call.state.installations)))


async def list_installations(call: Call) -> Response:
    items = [present.installation(item, call.state.app) for item in call.state.installations.values()]
    page, headers = call.page(items)
    return reply(page, headers=headers)


async def list_requests(_call: Call) -> Response:
    return reply([])


def _installation(call: Call) -> Installation:
    it = call.state.installations.get(call.number("installation_id"))
    if it is None:
        raise Refused(404, NOT_FOUND)
    return it


async def show_installation(call: Call) -> Response:
    return reply(present.installation(_installation(call), call.state.app))


async def show_org_installation(call: Call) -> Response:
    return _installation_of(call, call.path("org"))


async def show_repo_installation(call: Call) -> Response:
    repo = call.state.find_repository(f"{call.path('owner')}/{call.path('repo')}")
    if repo is None:
        raise Refused(404, NOT_FOUND)
    return _installation_of(call, repo.owner.login)


def _installation_of(call: Call, login: str) -> Response:
    account = call.state.find_account(login)
    it = call.state.installation_of(account) if account else None
    if it is None:
        raise Refused(404, NOT_FOUND)
    return reply(present.installation(it, call.state.app))


async def delete_installation(call: Call) -> Response:
    it = _installation(call)
    del call.state.installations[it.id]
    tell_installation(call.state, call.hooks, it, "deleted")
    return reply(None, 204)


async def suspend(call: Call) -> Response:
    it = _installation(call)
    it.suspended_at = call.state.now()
    tell_installation(call.state, call.hooks, it, "suspend")
    return reply(None, 204)


async def unsuspend(call: Call) -> Response:
    it = _installation(call)
    it.suspended_at = None
    tell_installation(call.state, call.hooks, it, "unsuspend")
    return reply(None, 204)


async def create_token(call: Call) -> Response:
    it = _installation(call)
    if it.suspended_at:
        raise Refused(403, "This installation has been suspended")
    asked = call.json_object()
    permissions = narrowed(it, asked.get("permissions"))
    chosen = _chosen_repositories(call, it, asked)
    token = issue_token(call.state, it, permissions, chosen)
    content: dict[str, Any] = {
        "token": token.value,
        "expires_at": timestamp(token.expires_at),
        "permissions": permissions,
        "repository_selection": "all" if chosen is None and it.repository_ids is None else "selected",
    }
    if chosen is not None:
        content["repositories"] = [present.repository(call.state.repositories[number]) for number in sorted(chosen)]
    return reply(content, 201)


def _chosen_repositories(call: Call, it: Installation, asked: dict[str, Any]) -> set[int] | None:
    names, numbers = asked.get("repositories"), asked.get("repository_ids")
    if names is None and numbers is None:
        return None
    visible = {
        repo.id: repo
        for repo in call.state.repositories.values()
        if repo.owner.id == it.account.id and (it.repository_ids is None or repo.id in it.repository_ids)
    }
    by_name = {repo.name.lower(): repo.id for repo in visible.values()}
    chosen = {by_name.get(str(name).lower(), 0) for name in names or []} | set(numbers or [])
    if not chosen or not chosen <= set(visible):
        raise Refused(
            422, "There is at least one repository that does not exist or is not accessible to the parent installation."
        )
    return chosen


async def revoke_token(call: Call) -> Response:
    assert call.caller.token is not None
    call.state.tokens.pop(call.caller.token.value, None)
    return reply(None, 204)


async def list_repositories(call: Call) -> Response:
    items = [repo for repo in call.state.repositories.values() if call.caller.sees(repo)]
    page, headers = call.page(items)
    selected = call.caller.installation is not None and call.caller.installation.repository_ids is not None
    content = {
        "total_count": len(items),
        "repository_selection": "selected" if selected else "all",
        "repositories": [present.repository(item) for item in page],
    }
    return reply(content, headers=headers)


def _hook(call: Call) -> dict[str, Any]:
    app = call.state.app
    secret = {"secret": "********"} if app.webhook_secret else {}
    return {"content_type": "json", "insecure_ssl": "0", "url": app.webhook_url or "https://unset.invalid/", **secret}


async def show_hook(call: Call) -> Response:
    return reply(_hook(call))


async def update_hook(call: Call) -> Response:
    asked = call.json_object()
    call.state.app.webhook_url = str(asked.get("url", call.state.app.webhook_url))
    call.state.app.webhook_secret = str(asked.get("secret", call.state.app.webhook_secret))
    return reply(_hook(call))


async def list_deliveries(call: Call) -> Response:
    """Newest first, by cursor: this list has no page numbers."""
    query = call.request.query_params
    size = call.query_number("per_page", 30, most=100)
    wanted = query.get("status", "")
    items = [item for item in reversed(list(call.state.deliveries.values())) if item.finished and _has(item, wanted)]
    if cursor := query.get("cursor", ""):
        try:
            before = int(cursor.removeprefix("v1_"))
        except ValueError:
            raise Refused(400, "Invalid cursor.") from None
        items = [item for item in items if item.id < before]
    page = items[:size]
    headers = {}
    if len(items) > size:
        url = call.request.url.include_query_params(cursor=f"v1_{page[-1].id}")
        headers["Link"] = f'<{url}>; rel="next"'
    return reply([present.delivery(item) for item in page], headers=headers)


def _has(item: Delivery, wanted: str) -> bool:
    good = 200 <= item.status_code < 400
    return wanted not in ("success", "failure") or (wanted == "success") == good


def _delivery(call: Call) -> Delivery:
    it = call.state.deliveries.get(call.number("delivery_id"))
    if it is None:
        raise Refused(404, NOT_FOUND)
    return it


async def show_delivery(call: Call) -> Response:
    it = _delivery(call)
    try:
        payload = json.loads(it.body)
    except (ValueError, RecursionError):
        payload = None
    content = {
        **present.delivery(it),
        "url": it.url,
        "request": {"headers": it.request_headers, "payload": payload if isinstance(payload, dict) else None},
        "response": {"headers": it.response_headers, "payload": it.response_body},
    }
    return reply(content)


async def redeliver(call: Call) -> Response:
    call.hooks.redeliver(_delivery(call))
    return reply({}, 202)


async def convert_manifest(call: Call) -> Response:
    """Redeem the code of an App manifest, once."""
    from orchestrator.simulator.github.identity import pem_of

    app = call.state.manifests.pop(call.path("code"), None)
    if app is None:
        raise Refused(404, NOT_FOUND)
    content = {
        **present.app(app, len(call.state.installations)),
        "client_secret": "0" * 40,
        "webhook_secret": app.webhook_secret,
        "pem": pem_of(app.private_key),
    }
    return reply(content, 201)
