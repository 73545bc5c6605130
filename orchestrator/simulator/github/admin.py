"""``/_sim/``: what stands in for people at GitHub's web pages, and for looking behind the scenes.  Loopback only."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from orchestrator.core.errors import IronCDError
from orchestrator.simulator.github import present
from orchestrator.simulator.github.catalogue import CATALOGUE, Order, fault_set
from orchestrator.simulator.github.faults import FaultSet

if TYPE_CHECKING:
    from orchestrator.simulator.github.core import GitHub

_Handler = Callable[[Request], Awaitable[Response]]


class _NotFound(Exception):
    pass


def _guarded(handler: _Handler) -> _Handler:
    async def guarded(request: Request) -> Response:
        try:
            return await handler(request)
        except _NotFound:
            return JSONResponse({"error": "not found"}, 404)
        except IronCDError as error:
            return JSONResponse(error.as_dict(), 422)
        except (ValueError, KeyError, TypeError, msgspec.ValidationError) as error:
            return JSONResponse({"error": f"{type(error).__name__}: {error}"}, 400)

    return guarded


def admin_routes(github: GitHub) -> list[Route]:
    admin = Admin(github)
    table: list[tuple[str, str, _Handler]] = [
        ("GET", "/state", admin.show_state),
        ("POST", "/repositories", admin.create_repository),
        ("PUT", "/repositories/{owner}/{repo}/files/{path:path}", admin.put_file),
        ("GET", "/repositories/{owner}/{repo}/statuses", admin.list_statuses),
        ("POST", "/runs", admin.create_run),
        ("GET", "/runs/{number}", admin.show_run),
        ("POST", "/runs/{number}/cancel", admin.cancel_run),
        ("POST", "/runs/{number}/approve", admin.approve_run),
        ("GET", "/jobs/{number}", admin.show_job),
        ("GET", "/jobs/{number}/log", admin.show_log),
        ("POST", "/jobs/{number}/cancel", admin.cancel_job),
        ("POST", "/jobs/{number}/lock", admin.shorten_lock),
        ("GET", "/deliveries", admin.list_deliveries),
        ("POST", "/deliveries", admin.deliver),
        ("POST", "/ping", admin.ping),
        ("GET", "/faults", admin.show_faults),
        ("POST", "/faults", admin.set_faults),
        ("DELETE", "/faults", admin.clear_faults),
        ("GET", "/faults/known", admin.list_known),
        ("POST", "/faults/{name}", admin.order_fault),
        ("POST", "/rates", admin.set_rates),
    ]
    return [Route("/_sim" + path, _guarded(handler), methods=[method]) for method, path, handler in table]


async def _json(request: Request) -> dict[str, Any]:
    raw = await request.body()
    content = json.loads(raw) if raw.strip() else {}
    if not isinstance(content, dict):
        raise TypeError("a JSON object is wanted")
    return content


class Admin:
    def __init__(self, github: GitHub) -> None:
        self._github = github

    async def show_state(self, _request: Request) -> Response:
        github, state = self._github, self._github.state
        content = {
            "app": {"id": state.app.id, "client_id": state.app.client_id, "slug": state.app.slug},
            "org": github.owner.login,
            "installation_id": github.installation_id,
            "webhook_url": state.app.webhook_url,
            "repositories": [
                {"id": it.id, "full_name": it.full_name, "head_sha": it.head_sha} for it in state.repositories.values()
            ],
            "runs": [present.run(it) for it in state.runs.values()],
            "jobs": [github.job_view(it) for it in state.jobs.values()],
            "runners": [present.runner(it) for it in state.runners.values()],
        }
        return JSONResponse(content)

    async def create_repository(self, request: Request) -> Response:
        asked = await _json(request)
        files = {path: text.encode() for path, text in dict(asked.get("files", {})).items()}
        repo = self._github.create_repository(asked["name"], private=bool(asked.get("private", True)), files=files)
        return JSONResponse(present.repository(repo), 201)

    def _full_name(self, request: Request) -> str:
        return f"{request.path_params['owner']}/{request.path_params['repo']}"

    async def put_file(self, request: Request) -> Response:
        """The request's body becomes the file; ``?branch=`` for another than the default branch."""
        branch = request.query_params.get("branch", "")
        path = request.path_params["path"]
        self._github.put_file(self._full_name(request), path, await request.body(), branch=branch)
        return JSONResponse({}, 201)

    async def list_statuses(self, request: Request) -> Response:
        repo = self._github.repository(self._full_name(request))
        app = self._github.owner
        content = {
            sha: [present.status(item, repo, sha, app) for item in items] for sha, items in repo.statuses.items()
        }
        return JSONResponse(content)

    async def create_run(self, request: Request) -> Response:
        """``{"repository": "app", "workflow": {...} or text, "event": "push"}``"""
        asked = await _json(request)
        run = self._github.create_run(
            asked["repository"],
            asked["workflow"],
            event=str(asked.get("event", "workflow_dispatch")),
            branch=str(asked.get("branch", "")),
            sha=str(asked.get("sha", "")),
        )
        return JSONResponse(self._github.run_view(run), 201)

    def _of(self, kind: dict[int, Any], request: Request) -> Any:
        item = kind.get(int(request.path_params["number"]))
        if item is None:
            raise _NotFound
        return item

    async def show_run(self, request: Request) -> Response:
        return JSONResponse(self._github.run_view(self._of(self._github.state.runs, request)))

    async def cancel_run(self, request: Request) -> Response:
        asked = await _json(request)
        run = self._of(self._github.state.runs, request)
        done = self._github.engine.cancel(run, force=bool(asked.get("force", False)))
        return JSONResponse({"cancelled": done}, 202)

    async def approve_run(self, request: Request) -> Response:
        asked = await _json(request)
        run = self._of(self._github.state.runs, request)
        jobs = self._github.engine.approve(run, approved=bool(asked.get("approved", True)))
        return JSONResponse({"jobs": [job.id for job in jobs]})

    async def show_job(self, request: Request) -> Response:
        return JSONResponse(self._github.job_view(self._of(self._github.state.jobs, request)))

    async def show_log(self, request: Request) -> Response:
        return PlainTextResponse(self._github.job_log(self._of(self._github.state.jobs, request)))

    async def cancel_job(self, request: Request) -> Response:
        asked = await _json(request)
        job = self._of(self._github.state.jobs, request)
        self._github.engine.cancel_job(job, force=bool(asked.get("force", False)))
        return JSONResponse(self._github.job_view(job), 202)

    async def shorten_lock(self, request: Request) -> Response:
        """``{"for_s": 30}``: the runner's hold of the job runs out so soon, unless it is renewed."""
        asked = await _json(request)
        job = self._of(self._github.state.jobs, request)
        job.locked_until = min(job.locked_until, self._github.state.now() + float(asked["for_s"]))
        return JSONResponse(self._github.job_view(job), 202)

    async def list_deliveries(self, _request: Request) -> Response:
        items = [self._github.delivery_view(it) for it in self._github.state.deliveries.values()]
        return JSONResponse(items)

    async def deliver(self, request: Request) -> Response:
        """``{"event": "workflow_job", "payload": {...}}``, or ``body_base64`` for bytes that needn't be JSON."""
        asked = await _json(request)
        body = (
            base64.b64decode(asked["body_base64"]) if "body_base64" in asked else json.dumps(asked["payload"]).encode()
        )
        delivery = self._github.hooks.raw(str(asked["event"]), body, headers=asked.get("headers"))
        return JSONResponse(self._github.delivery_view(delivery), 202)

    async def ping(self, _request: Request) -> Response:
        return JSONResponse([self._github.delivery_view(item) for item in self._github.ping()], 202)

    async def show_faults(self, _request: Request) -> Response:
        """Those in force, and how often each that has a name was used."""
        faults = self._github.faults
        content = {**msgspec.to_builtins(faults.in_force()), "used": dict(faults.used)}
        return Response(msgspec.json.encode(content), media_type="application/json")

    async def set_faults(self, request: Request) -> Response:
        """Add the faults in the body to those in force."""
        self._github.faults.declare(msgspec.json.decode(await request.body() or b"{}", type=FaultSet))
        return await self.show_faults(request)

    async def clear_faults(self, request: Request) -> Response:
        """``?name=`` for those of one name."""
        self._github.faults.clear(request.query_params.get("name", ""))
        self._github.pass_time()
        return await self.show_faults(request)

    async def list_known(self, _request: Request) -> Response:
        return JSONResponse({name: {"row": known.row, "what": known.what} for name, known in CATALOGUE.items()})

    async def order_fault(self, request: Request) -> Response:
        """``{"for_s", "count", "in_s", "chance", "by_s", "repository"}``, each of which may be left out."""
        asked = {**await _json(request), "fault": request.path_params["name"]}
        self._github.faults.declare(fault_set(msgspec.convert(asked, Order)))
        return await self.show_faults(request)

    async def set_rates(self, request: Request) -> Response:
        """``{"core": 3}``: the hourly limit of a resource."""
        asked = await _json(request)
        self._github.rest.rates.limits.update({str(name): int(value) for name, value in asked.items()})
        return JSONResponse(self._github.rest.rates.limits)
