"""The control API's process: webhooks, hosts, admins, metrics, on one port.

Each plane brings its own routes and knows nothing of the others; here they get the store, the secrets and each other's
hints.  ``python -m orchestrator.surface.app --settings FILE --listen ADDRESS:PORT``.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Self

import msgspec
import structlog
import uvicorn
from fastapi import APIRouter, FastAPI, Response
from starlette.types import Lifespan, Receive, Scope, Send

from orchestrator import audit
from orchestrator.control import admin_api, drain_api, hosts_api, metrics, quarantine_api
from orchestrator.control.auth import AdminToken, HostTokens
from orchestrator.control.listening import listen
from orchestrator.control.policy_archive import POLICIES, PolicyArchive
from orchestrator.control.sealed import Seal
from orchestrator.control.settings import ControlSettings
from orchestrator.control.store import Store
from orchestrator.core.errors import ConfigurationError, IronCDError, StoreError
from orchestrator.core.inbox import Keys
from orchestrator.intake.inbox import Inbox
from orchestrator.intake.receiver import Receiver
from orchestrator.intake.receiver import router as receiver_routes
from orchestrator.intake.secrets import SecretFiles
from orchestrator.system import log
from orchestrator.system.hint import Hints

_log = structlog.get_logger()

WEBHOOK = "/webhook"


class ControlApi(FastAPI):
    """All routes; a delivery goes straight to its receiver, since routers and middleware cost more than checking it does."""

    def __init__(self, receiver: Receiver, *, lifespan: Lifespan[Self]) -> None:
        super().__init__(title="IronCD", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
        self._receiver = receiver

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == WEBHOOK and scope["method"] == "POST":
            await self._receiver(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_app(settings: ControlSettings) -> FastAPI:
    """The application.  Raises ConfigurationError where there is no webhook secret."""
    secrets = SecretFiles(settings.webhook_secret_files)
    secrets.require()
    store = Store.at(settings.redis_url, settings.prefix)
    hints = Hints(settings.redis_url, prefix=settings.prefix)
    inbox = Inbox.at(settings.redis_url, Keys(settings.prefix), hint=hints)
    tokens = HostTokens(settings.hosts)
    hosts = hosts_api.HostsApi(store, Seal.in_folder(Path(settings.state_dir)), tokens, hint=hints)
    admin = AdminToken(settings.admin_token_file)
    policies = PolicyArchive(Path(settings.state_dir) / POLICIES)
    ledger = audit.Ledger(Path(settings.state_dir) / "audit")

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(store.close)
            stack.callback(hints.close)
            stack.push_async_callback(inbox.close)
            stack.push_async_callback(hosts.close)
            stack.callback(ledger.engine.close)
            retention = settings.retention if settings.delete_records else None
            listening = asyncio.create_task(listen(store))
            stack.push_async_callback(_ended, listening)
            tending = asyncio.create_task(audit.tend(ledger.folder, retention))
            stack.push_async_callback(_ended, tending)
            telling = asyncio.create_task(count_incidents(store, ledger.incidents))
            stack.push_async_callback(_ended, telling)
            if settings.checkpoint_copies:
                place, every_s = Path(settings.checkpoint_copies), settings.checkpoint_copy_s
                alarm = ledger.incidents.append
                copying = asyncio.create_task(audit.keep_copies(ledger.folder, place, every_s=every_s, alarm=alarm))
                stack.push_async_callback(_ended, copying)
            yield

    receiver = Receiver(inbox, secrets, installations=frozenset(settings.installations))
    app = ControlApi(receiver, lifespan=lifespan)
    app.include_router(receiver_routes(receiver))
    app.include_router(hosts_api.router(hosts))
    drains = drain_api.DrainApi(store, hosts=tokens.hosts)
    app.include_router(drain_api.host_router(drains, tokens))
    app.include_router(drain_api.admin_router(drains, admin))
    admins = admin_api.AdminApi(store, hosts=tokens.hosts, policies=policies, settings=settings)
    app.include_router(admin_api.router(admins, admin))
    app.include_router(quarantine_api.router(quarantine_api.QuarantineApi(store), admin))
    app.include_router(audit.router(ledger, host=tokens, admin=admin))
    app.include_router(metrics.router(store, hosts=tokens.hosts))
    app.include_router(_health(store))
    return app


async def count_incidents(store: Store, kinds: list[str], *, every_s: float = 5.0) -> None:
    """Until cancelled: put what the record has to tell among the counters, from which Prometheus has it."""
    while True:
        await asyncio.sleep(every_s)
        found = Counter(kinds[:])
        if not found:
            continue
        try:
            await store.add_counts({f"incidents{{kind={kind}}}": count for kind, count in found.items()}, {})
            del kinds[: found.total()]
        except StoreError as error:
            _log.warning("incidents_not_counted", error=error.message)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _health(store: Store) -> APIRouter:
    """``/healthz``: 200 where deliveries can be stored, 503 where Redis is away."""
    routes = APIRouter(include_in_schema=False)

    async def healthz() -> Response:
        try:
            async with asyncio.timeout(2):
                await store.client.ping()
        except Exception:  # noqa: BLE001 - whatever keeps Redis from answering makes us unfit to receive
            return Response(b'{"status":"redis away"}', 503, media_type="application/json")
        return Response(b'{"status":"ok"}', media_type="application/json")

    routes.add_api_route("/healthz", healthz, methods=["GET"], response_class=Response)
    return routes


def read_settings(path: Path) -> ControlSettings:
    """The settings that `ironcd up` wrote.  Raises ConfigurationError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=ControlSettings)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigurationError(
            f"can't read the control plane's settings from {path}: {error}",
            code="settings-invalid",
            remedy="`ironcd up` writes this file; start the process with it.",
        ) from error


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.surface.app")
    parser.add_argument("--settings", type=Path, required=True, help="ControlSettings as JSON")
    parser.add_argument("--listen", default="127.0.0.1:8470", metavar="ADDRESS:PORT")
    arguments = parser.parse_args()
    log.configure("control")
    address, _, port = arguments.listen.rpartition(":")
    try:
        app = create_app(read_settings(arguments.settings))
    except IronCDError as error:
        _log.error("control_ended", **error.as_dict())
        return error.exit_status
    uvicorn.run(
        app,
        host=address.strip("[]"),
        port=int(port),
        loop="uvloop",
        http="httptools",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nobody asks for a client's address, and reading it costs each delivery
        timeout_graceful_shutdown=3,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
