"""The simulated GitHub, assembled: state, engine, hooks, faults and the application that serves all its hosts.

It belongs to one event loop.  `Simulator` runs one in a thread; tests without a socket use `app` through
``httpx.ASGITransport``.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric import rsa
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Router
from starlette.types import ASGIApp

from orchestrator.core.errors import UserError
from orchestrator.simulator.github import jit, present, rest
from orchestrator.simulator.github.acts import carry_out
from orchestrator.simulator.github.admin import admin_routes
from orchestrator.simulator.github.asgi import Hosts
from orchestrator.simulator.github.engine import Engine, repository_or_fail
from orchestrator.simulator.github.faults import Faults
from orchestrator.simulator.github.hooks import Hooks
from orchestrator.simulator.github.http import Rest, refused_route
from orchestrator.simulator.github.protocol.broker import Broker
from orchestrator.simulator.github.protocol.results import Results
from orchestrator.simulator.github.protocol.run_service import RunService
from orchestrator.simulator.github.protocol.tokens import TokenHost
from orchestrator.simulator.github.releases import download, release_routes
from orchestrator.simulator.github.spec import WorkflowSpec, workflow_of
from orchestrator.simulator.github.state import (
    Account,
    App,
    Delivery,
    Installation,
    Job,
    Repository,
    Run,
    RunnerGroup,
    State,
)

PERMISSIONS = {
    "actions": "write",
    "administration": "write",
    "checks": "write",
    "contents": "read",
    "metadata": "read",
    "organization_self_hosted_runners": "write",
    "statuses": "write",
}
EVENTS = ["workflow_job"]


class GitHub:
    """An organisation with the App installed on all its repositories."""

    def __init__(
        self,
        *,
        org: str = "acme",
        app_id: int = 424_242,
        webhook_url: str = "",
        webhook_secret: str = "",
        repositories: Sequence[str] = ("app",),
        webhook_transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.time,
        private_key: rsa.RSAPrivateKey | None = None,
        admin: Sequence[BaseRoute] = (),
    ) -> None:
        owner = Account(id=9_919_001, login=org, type="Organization")
        self.person = Account(id=583_231, login="octocat", type="User")
        self.app_record = App(
            id=app_id,
            slug="ironcd",
            name="IronCD",
            client_id=f"Iv23li{app_id:014d}",
            owner=owner,
            private_key=private_key or jit.new_key(),
            permissions=dict(PERMISSIONS),
            events=list(EVENTS),
            webhook_url=webhook_url,
            webhook_secret=webhook_secret,
            hook_id=109_948_940,
            created_at=clock(),
        )
        self.state = State(app=self.app_record, clock=clock)
        self.state.accounts = {org: owner, self.person.login: self.person}
        self.state.groups[1] = RunnerGroup(id=1, name="Default", default=True)
        self.owner = owner
        self.faults = Faults()
        self.faults.by(clock)
        self.hooks = Hooks(self.state, self.faults, webhook_transport)
        self.engine = Engine(self.state, self.hooks, self.faults)
        self.runner_base = ""
        """Where set, runners are sent to ``runner_base/_host/NAME`` in place of ``https://NAME``."""
        self.rest = Rest(self.state, self.engine, self.hooks, self.url_of)
        self.rest.download = download()
        self.broker = Broker(self.state, self.engine, self.url_of)
        self.results = Results(self.state, self.engine, self.url_of)
        self.installation_id = self.install(owner).id
        for name in repositories:
            self.create_repository(name)
        self.app: ASGIApp = Hosts(self._hosts(), Router([*admin_routes(self), *admin]), self.faults)

    def url_of(self, host: str) -> str:
        """The base URL, without a slash at its end, under which runners reach ``host``."""
        return f"{self.runner_base}/_host/{host}" if self.runner_base else f"https://{host}"

    def _hosts(self) -> dict[str, ASGIApp]:
        nothing = PlainTextResponse("Not Found", 404)
        run_service = RunService(self.state, self.engine, self.url_of)
        tokens = TokenHost(self.state, self.url_of)
        return {
            jit.API: Router([*rest.routes(self.rest), refused_route()]),
            jit.BROKER: Router(self.broker.routes()),
            jit.TOKENS: Router(tokens.routes()),
            jit.RUN_SERVICE: Router(run_service.routes()),
            jit.RESULTS: Router(self.results.routes()),
            jit.BLOBS: Router(self.results.blob_routes()),
            jit.WEB: Router(release_routes()),
            jit.CODELOAD: nothing,
            jit.PIPELINES: nothing,
        }

    async def run_forever(self) -> None:
        """Deliver webhooks and let time do its work, until cancelled."""
        self.hooks.start()
        try:
            while True:
                self.pass_time()
                await asyncio.sleep(0.25)
        finally:
            await self.hooks.stop()

    def pass_time(self) -> None:
        """Have what time brings about happen: locks run out, and faults begin and end."""
        self.engine.expire()
        carry_out(self, self.faults)

    # What a person does on GitHub

    def install(self, account: Account) -> Installation:
        it = Installation(
            id=self.state.next_id(57_000_000),
            account=account,
            permissions=dict(self.app_record.permissions),
            created_at=self.state.now(),
        )
        self.state.installations[it.id] = it
        return it

    def create_repository(
        self, name: str, *, private: bool = True, files: dict[str, bytes] | None = None
    ) -> Repository:
        """``name`` in the organisation, with ``files`` on its default branch."""
        if self.state.find_repository(f"{self.owner.login}/{name}"):
            raise UserError(f"{name} exists already", code="repository-exists", remedy="Choose another name.")
        repo = Repository(
            id=self.state.next_id(591_000_000),
            owner=self.owner,
            name=name,
            private=private,
            created_at=self.state.now(),
        )
        repo.files[repo.default_branch] = dict(files or {})
        self.state.repositories[repo.id] = repo
        return repo

    def rename_repository(self, repo: Repository, name: str) -> None:
        """Its former name goes on to lead to it, as GitHub's redirects do."""
        self.state.former_names[repo.full_name.lower()] = repo
        repo.name = name

    def repository(self, name: str) -> Repository:
        return repository_or_fail(self.state, name, self.owner.login)

    def put_file(self, repository: str, path: str, content: bytes, *, branch: str = "") -> None:
        repo = self.repository(repository)
        repo.files.setdefault(branch or repo.default_branch, {})[path] = content

    def create_run(
        self,
        repository: str,
        workflow: WorkflowSpec | dict[str, Any] | str,
        *,
        event: str = "workflow_dispatch",
        branch: str = "",
        sha: str = "",
    ) -> Run:
        """Start a run of ``workflow``; its jobs are queued (or wait) at once and the App is told."""
        repo = self.repository(repository)
        return self.engine.create_run(
            repo, workflow_of(workflow), event=event, actor=self.person, branch=branch, sha=sha
        )

    def ping(self) -> list[Delivery]:
        app = self.app_record
        hook = {
            "type": "App",
            "id": app.hook_id,
            "name": "web",
            "active": True,
            "events": list(app.events),
            "config": {"content_type": "json", "url": app.webhook_url, "insecure_ssl": "0", "secret": "********"},
            "updated_at": "2026-01-01T00:00:00Z",
            "created_at": "2026-01-01T00:00:00Z",
            "app_id": app.id,
            "deliveries_url": f"{present.API}/app/hook/deliveries",
        }
        return self.hooks.emit("ping", {"zen": "Keep it logically awesome.", "hook_id": app.hook_id, "hook": hook})

    # What tests and the demo look at

    def job_log(self, job: Job) -> str:
        blob = self.state.blobs.get(f"/actions-results/{job.plan_id}/{job.uuid}/job.log")
        return bytes(blob).decode("utf-8", "replace") if blob is not None else ""

    def job_view(self, job: Job) -> dict[str, Any]:
        return present.job(job, self.state.groups)

    def run_view(self, run: Run) -> dict[str, Any]:
        return {**present.run(run), "jobs": [self.job_view(job) for job in run.jobs]}

    def delivery_view(self, item: Delivery) -> dict[str, Any]:
        return {
            **present.delivery(item),
            "request": {"headers": item.request_headers, "body_base64": base64.b64encode(item.body).decode()},
            "response": {"headers": item.response_headers, "body": item.response_body},
            "finished": item.finished,
        }
