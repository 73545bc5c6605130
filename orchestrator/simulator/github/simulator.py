"""The simulator as tests and the demo use it: a GitHub in a thread of its own, behind real sockets.

``with Simulator(webhook_url=...) as sim:`` serves the REST API over HTTP on loopback at ``sim.api_url``.  More listeners
(HTTPS, in another network namespace) share the same state: `listen`.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import uvicorn
from cryptography.hazmat.primitives.asymmetric import rsa
from starlette.routing import BaseRoute

from orchestrator.core.errors import OperationalError
from orchestrator.simulator.github import present
from orchestrator.simulator.github.core import GitHub
from orchestrator.simulator.github.identity import pem_of
from orchestrator.simulator.github.jit import new_key
from orchestrator.simulator.github.spec import WorkflowSpec

_T = TypeVar("_T")
START_S = 30.0


class Simulator:
    """Its methods may be called from any thread; each runs in the simulator's own loop.

    ``shared_keys``: where above 0, registrations share so many RSA keys, so that bursts aren't held up by making keys.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        webhook_url: str = "",
        webhook_secret: str = "",
        app_id: int = 424_242,
        org: str = "acme",
        repositories: Sequence[str] = ("app",),
        shared_keys: int = 0,
        private_key: rsa.RSAPrivateKey | None = None,
        admin: Sequence[BaseRoute] = (),
    ) -> None:
        self.webhook_secret = webhook_secret or secrets.token_hex(20)
        self.github = GitHub(
            org=org,
            app_id=app_id,
            webhook_url=webhook_url,
            webhook_secret=self.webhook_secret,
            repositories=repositories,
            private_key=private_key,
            admin=admin,
        )
        self.github.rest.spare_keys = [new_key() for _ in range(shared_keys)]
        self.org = org
        self.app_id = app_id
        self.installation_id = self.github.installation_id
        self.app_private_key_pem = pem_of(self.github.app_record.private_key)
        self._address = (host, port)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._servers: list[tuple[uvicorn.Server, asyncio.Task[None]]] = []
        self._stopping: asyncio.Event | None = None
        self.api_url = ""

    def start(self) -> Self:
        """Serve; returns once the API answers."""
        listener = socket.create_server(self._address)
        self.api_url = f"http://{self._address[0]}:{listener.getsockname()[1]}"
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._main, args=(ready,), name="simulator", daemon=True)
        self._thread.start()
        ready.result(START_S)
        self._serve(listener, None)
        return self

    def stop(self) -> None:
        """End all servers and the thread; nothing happens where it isn't running."""
        loop, stopping, thread = self._loop, self._stopping, self._thread
        if loop is None or stopping is None or thread is None:
            return
        loop.call_soon_threadsafe(stopping.set)
        thread.join(START_S)
        self._loop = self._thread = self._stopping = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def listen(self, listener: socket.socket, *, certificate: Path, key: Path) -> None:
        """Serve HTTPS on ``listener`` too, which may belong to another network namespace."""
        self._serve(listener, (certificate, key))

    def _main(self, ready: Future[None]) -> None:
        try:
            asyncio.run(self._run(ready))
        except BaseException as error:
            if not ready.done():
                ready.set_exception(error)
            raise

    async def _run(self, ready: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        clockwork = asyncio.create_task(self.github.run_forever())
        ready.set_result(None)
        await self._stopping.wait()
        for server, _task in self._servers:
            server.should_exit = server.force_exit = True
        await asyncio.gather(*(task for _server, task in self._servers), return_exceptions=True)
        clockwork.cancel()
        await asyncio.gather(clockwork, return_exceptions=True)

    def _serve(self, listener: socket.socket, tls: tuple[Path, Path] | None) -> None:
        # asyncio sets it only where the socket was made with the protocol's number; accepted sockets inherit it.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        config = uvicorn.Config(
            self.github.app,
            log_config=None,
            access_log=False,
            lifespan="off",
            # Whoever connects is who it says: the control API is for loopback only.
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=1,
            ssl_certfile=str(tls[0]) if tls else None,
            ssl_keyfile=str(tls[1]) if tls else None,
        )
        server = uvicorn.Server(config)

        async def begin() -> None:
            task = asyncio.create_task(server.serve(sockets=[listener]))
            self._servers.append((server, task))
            while not server.started and not task.done():  # noqa: ASYNC110 - uvicorn only has a flag
                await asyncio.sleep(0.005)
            if task.done():
                await task
                raise OperationalError(
                    "the simulator couldn't serve", code="simulator-listen", remedy="Look for what uses its address."
                )

        asyncio.run_coroutine_threadsafe(begin(), self._running()).result(START_S)

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise OperationalError(
                "the simulator isn't running", code="simulator-stopped", remedy="Call start() first, or use `with`."
            )
        return self._loop

    def call(self, function: Callable[[], _T]) -> _T:
        """Run ``function`` in the simulator's loop, where `github` may be touched, and return what it returns."""

        async def inside() -> _T:
            return function()

        return asyncio.run_coroutine_threadsafe(inside(), self._running()).result(START_S)

    # What a person does on GitHub

    @property
    def webhook_url(self) -> str:
        return self.github.app_record.webhook_url

    @webhook_url.setter
    def webhook_url(self, url: str) -> None:
        self.github.app_record.webhook_url = url

    def create_repository(
        self, name: str, *, private: bool = True, files: dict[str, bytes] | None = None
    ) -> dict[str, Any]:
        return self.call(lambda: present.repository(self.github.create_repository(name, private=private, files=files)))

    def put_file(self, repository: str, path: str, content: bytes, *, branch: str = "") -> None:
        self.call(lambda: self.github.put_file(repository, path, content, branch=branch))

    def create_run(
        self,
        repository: str,
        workflow: WorkflowSpec | dict[str, Any] | str,
        *,
        event: str = "workflow_dispatch",
        branch: str = "",
        sha: str = "",
    ) -> dict[str, Any]:
        """Start a run; returns it as the REST API shows it, with its ``jobs``."""
        return self.call(
            lambda: self.github.run_view(
                self.github.create_run(repository, workflow, event=event, branch=branch, sha=sha)
            )
        )

    def cancel_run(self, run_id: int, *, force: bool = False) -> bool:
        return self.call(lambda: self.github.engine.cancel(self.github.state.runs[run_id], force=force))

    def cancel_job(self, job_id: int, *, force: bool = False) -> None:
        self.call(lambda: self.github.engine.cancel_job(self.github.state.jobs[job_id], force=force))

    def approve_run(self, run_id: int, *, approved: bool = True) -> None:
        self.call(lambda: self.github.engine.approve(self.github.state.runs[run_id], approved=approved))

    def deliver(self, event: str, body: bytes, *, headers: dict[str, str] | None = None) -> int:
        """Sign and send ``body`` as it is; returns the delivery's id."""
        return self.call(lambda: self.github.hooks.raw(event, body, headers=headers).id)

    # What tests look at

    def run(self, run_id: int) -> dict[str, Any]:
        return self.call(lambda: self.github.run_view(self.github.state.runs[run_id]))

    def job(self, job_id: int) -> dict[str, Any]:
        return self.call(lambda: self.github.job_view(self.github.state.jobs[job_id]))

    def job_log(self, job_id: int) -> str:
        """All that the job's runner uploaded as the job's log; empty while there is none."""
        return self.call(lambda: self.github.job_log(self.github.state.jobs[job_id]))

    def runners(self) -> list[dict[str, Any]]:
        return self.call(lambda: [present.runner(it) for it in self.github.state.runners.values()])

    def deliveries(self) -> list[dict[str, Any]]:
        """All deliveries, oldest first, each with its request and response."""
        return self.call(lambda: [self.github.delivery_view(it) for it in self.github.state.deliveries.values()])

    def statuses(self, repository: str, sha: str) -> list[dict[str, Any]]:
        """Commit statuses, newest first."""

        def look() -> list[dict[str, Any]]:
            repo = self.github.repository(repository)
            items = reversed(repo.statuses.get(sha, []))
            return [present.status(item, repo, sha, self.github.owner) for item in items]

        return self.call(look)

    def wait_for_job(self, job_id: int, *, timeout_s: float = 60.0) -> dict[str, Any]:
        """The job once it is completed.  Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while True:
            job = self.job(job_id)
            if job["status"] == "completed":
                return job
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job_id} is {job['status']} after {timeout_s} s")
            time.sleep(0.05)
