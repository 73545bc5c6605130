"""The control plane's two processes: the API (receiver, inbox, hosts) and the worker (the reconciler and its means)."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import httpx
from starlette.requests import Request

from orchestrator.control.github_kit import KitGitHub
from orchestrator.control.hosts_api import HostsApi
from orchestrator.control.listening import listen
from orchestrator.control.reconcile import Reconciler
from orchestrator.control.store import Store
from orchestrator.core.errors import StoreError
from orchestrator.core.inbox import Keys
from orchestrator.intake.inbox import Inbox
from orchestrator.intake.receiver import Receiver
from orchestrator.simulator.github.identity import pem_of
from tests.chaos.mortal import Killed, Mortal, is_killed

if TYPE_CHECKING:
    from tests.chaos.city import City
    from tests.chaos.machine import Machine

PREFIX = "t:"
CLIENT_TIMEOUT_S = 15.0


class Api(httpx.AsyncBaseTransport):
    """As GitHub's webhooks reach it, a transport; hosts call `desired` and `observed`."""

    def __init__(self, city: City) -> None:
        self.city = city
        self.running = False
        self.start()

    def start(self) -> None:
        city = self.city
        self.mortal = Mortal("api")
        self.mortal.dies_in = city.next_death("api")
        client = city.memory.client(self.mortal)
        self._inbox = Inbox(client, Keys(PREFIX), hint=city.hinted.set)
        receiver = Receiver(self._inbox, lambda: (city.secret.encode(),), clock=city.now)
        self._receiver = httpx.ASGITransport(receiver)
        store = Store(city.memory.client(self.mortal), PREFIX)
        self._hosts = HostsApi(
            store, city.seal, lambda request: request.headers["host"], hint=city.hinted.set, clock=city.now
        )
        self._listening = asyncio.ensure_future(listen(store, clock=city.now))
        self._listening.add_done_callback(self._heard_out)
        self._hosts._wakes = _Asleep()  # type: ignore[assignment]  # hosts here ask again and again
        self.running = True

    def kill(self) -> None:
        self.mortal.die()
        self._buried()

    def _heard_out(self, task: asyncio.Task[None]) -> None:
        """It was in the middle of noting that it listens when it died."""
        if not task.cancelled() and is_killed(task.exception() or Exception()):
            self._buried()

    def _buried(self) -> None:
        if self.running:
            self.running = False
            self._listening.cancel()
            self.city.died("api", self.begin)

    def begin(self) -> None:
        if not self.running and not self.city.control_away and not self.city.api_away:
            self.start()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not self.running:
            raise httpx.ConnectError("nobody listens")
        mortal = self.mortal
        try:
            answer = await mortal.living(self._receiver.handle_async_request(request))
        except Killed:
            self._buried()
            raise httpx.ReadError("it hung up") from None
        self.city.journal.note(f"delivery {request.headers['x-github-event']} {answer.status_code}")
        return answer

    async def desired(self, machine: Machine, generation: int) -> bytes | None:
        """What `Desired` says where it is another generation; None where it isn't, or nobody answers."""
        request = _request(machine, "GET", f"generation={generation}&wait=0".encode(), b"")
        answer = await self._ask(machine, request)
        return answer.body if answer is not None and answer.status_code == 200 else None  # type: ignore[union-attr]

    async def observed(self, machine: Machine, body: bytes) -> bool:
        return await self._ask(machine, _request(machine, "POST", b"", body)) is not None

    async def _ask(self, machine: Machine, request: Request) -> object | None:
        if not self.running or machine.cut_off:
            return None
        call = self._hosts.desired if request.method == "GET" else self._hosts.observed
        try:
            return await call(request)
        except Killed:
            self._buried()
        except StoreError:
            pass
        return None


class _Asleep:
    """In place of what wakes long polls."""

    def event(self, _host: str) -> asyncio.Event:
        return asyncio.Event()


def _request(machine: Machine, method: str, query: bytes, body: bytes) -> Request:
    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"host", machine.name.encode())]
    return Request({"type": "http", "method": method, "path": "/", "query_string": query, "headers": headers}, receive)


class Line(httpx.AsyncBaseTransport):
    """From the worker to GitHub: some delay, a client's patience, and a point before and after."""

    def __init__(self, city: City, mortal: Mortal) -> None:
        self._city = city
        self._mortal = mortal
        self._app = httpx.ASGITransport(city.github.app)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._mortal.point("github")
        await asyncio.sleep(self._city.rng.uniform(0.02, 0.3))
        try:
            answer = await asyncio.wait_for(self._app.handle_async_request(request), CLIENT_TIMEOUT_S)
        except TimeoutError:
            raise httpx.ReadTimeout("no answer", request=request) from None
        self._city.journal.call(request, answer)
        self._mortal.point("github")
        return answer


class Worker:
    def __init__(self, city: City) -> None:
        self.city = city
        self.running = False
        self.start()

    def start(self) -> None:
        city = self.city
        self.mortal = Mortal("worker")
        self.mortal.dies_in = city.next_death("worker")
        self.store = Store(city.memory.client(self.mortal), PREFIX)
        github = KitGitHub(
            city.github.app_record.id,
            pem_of(city.github.app_record.private_key),
            api_url="http://sim",
            transport=Line(city, self.mortal),
            clock=city.now,
        )
        self._reconciler = Reconciler(
            self.store, github, city.settings, city.presets, city.seal, clock=city.now, make_id=city.make_id
        )
        self.running = True
        self._task = asyncio.ensure_future(self._work())

    def kill(self) -> None:
        self.mortal.die()
        self._task.cancel()
        self._buried()

    def _buried(self) -> None:
        if self.running:
            self.running = False
            self.city.died("worker", self.begin)

    def begin(self) -> None:
        if not self.running and not self.city.control_away:
            self.start()

    async def _work(self) -> None:
        while self.running:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.city.hinted.wait(), 5.0)
            await asyncio.sleep(0.5)
            self.city.hinted.clear()
            try:
                await self._reconciler.look()
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # noqa: BLE001 - whatever it is goes on record
                if is_killed(error):
                    self._buried()
                    return
                self.city.journal.broke("worker", error)
                self.city.journal.note(f"look failed: {type(error).__name__}")
                await asyncio.sleep(1.0)
