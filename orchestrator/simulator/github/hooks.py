"""Webhooks: signed, sent as GitHub sends them, and kept on a list of deliveries that can be asked for and redelivered.

GitHub sends once and never retries by itself.  Events of one job are sent one after the other; those of different jobs
at the same time, so nothing may be concluded from their order.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
import uuid
from dataclasses import replace
from typing import Any

import httpx

from orchestrator.simulator.github.faults import Faults
from orchestrator.simulator.github.state import Delivery, State

TIMEOUT_S = 10.0
"""GitHub gives a receiver ten seconds."""
CONCURRENT = 16


def signature(secret: str, body: bytes) -> str:
    """The value of ``X-Hub-Signature-256`` for ``body``."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


class Hooks:
    """Makes deliveries and sends them; `start` binds it to the running loop, before that they wait."""

    def __init__(self, state: State, faults: Faults, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._state = state
        self._faults = faults
        self._transport = transport
        self._client: httpx.AsyncClient | None = None
        self._waiting: list[tuple[Delivery, str, float]] = []
        self._lanes: dict[str, asyncio.Lock] = {}
        self._slots = asyncio.Semaphore(CONCURRENT)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._client = httpx.AsyncClient(transport=self._transport, timeout=TIMEOUT_S, trust_env=False)
        waiting, self._waiting = self._waiting, []
        for delivery, lane, delay_s in waiting:
            self._spawn(delivery, lane, delay_s)

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def settle(self) -> None:
        """Wait until every delivery made so far has been sent."""
        while self._tasks:
            # Not `asyncio.gather`: from Python 3.12 on it returns at once where all are done, and what is done stays in the set
            # until the loop has run its callbacks, which it then never would.
            await asyncio.wait(self._tasks)

    def emit(self, event: str, payload: dict[str, Any], *, lane: str = "") -> list[Delivery]:
        """Deliver ``payload`` as ``event``; returns the deliveries made (none where the App has no URL or a fault drops it)."""
        if not self._state.app.webhook_url:
            return []
        action = payload.get("action")
        fault = self._faults.delivery(event, action, _name_in(payload))
        effect = fault.effect if fault else ""
        if effect == "drop":
            return []
        delivery = self._record(event, action, json.dumps(payload).encode(), payload)
        if effect == "fail":
            delivery.status, delivery.status_code, delivery.finished = "Bad Gateway", 502, True
            return [delivery]
        delay_s = self._faults.lateness(fault) if fault else 0.0
        # A late one must not hold back those behind it: lateness is what the fault is about.
        made_lane = lane if effect != "delay" else f"late-{delivery.id}"
        self._send_later(delivery, made_lane, delay_s)
        if effect != "duplicate":
            return [delivery]
        again = replace(delivery, id=self._state.next_id(12_000_000_000))
        self._state.deliveries[again.id] = again
        self._send_later(again, f"{lane}-again", delay_s)
        return [delivery, again]

    def raw(self, event: str, body: bytes, *, headers: dict[str, str] | None = None) -> Delivery:
        """Deliver ``body`` as it is, signed; ``headers`` replace GitHub's."""
        try:
            payload = json.loads(body)
        except (ValueError, RecursionError):
            payload = {}
        delivery = self._record(event, None, body, payload if isinstance(payload, dict) else {})
        delivery.request_headers.update(headers or {})
        self._send_later(delivery, f"raw-{delivery.id}", 0.0)
        return delivery

    def redeliver(self, delivery: Delivery) -> Delivery:
        """Send ``delivery`` again: the same guid, a new id, signed with the present secret."""
        again = replace(
            delivery,
            id=self._state.next_id(12_000_000_000),
            redelivery=True,
            delivered_at=self._state.now(),
            status="pending",
            status_code=0,
            duration=0.0,
            finished=False,
            request_headers=self._headers(delivery.event, delivery.guid, delivery.body),
            url=self._state.app.webhook_url,
        )
        self._state.deliveries[again.id] = again
        self._send_later(again, f"redelivery-{again.id}", 0.0)
        return again

    def _record(self, event: str, action: Any, body: bytes, payload: dict[str, Any]) -> Delivery:
        guid = str(uuid.uuid4())
        delivery = Delivery(
            id=self._state.next_id(12_000_000_000),
            guid=guid,
            event=event,
            action=action if isinstance(action, str) else None,
            body=body,
            installation_id=_id_in(payload, "installation"),
            repository_id=_id_in(payload, "repository"),
            delivered_at=self._state.now(),
            url=self._state.app.webhook_url,
            request_headers=self._headers(event, guid, body),
        )
        self._state.deliveries[delivery.id] = delivery
        return delivery

    def _headers(self, event: str, guid: str, body: bytes) -> dict[str, str]:
        app = self._state.app
        headers = {
            "Accept": "*/*",
            "Content-Type": "application/json",
            "User-Agent": "GitHub-Hookshot/5c1e1f2",
            "X-GitHub-Delivery": guid,
            "X-GitHub-Event": event,
            "X-GitHub-Hook-ID": str(app.hook_id),
            "X-GitHub-Hook-Installation-Target-ID": str(app.id),
            "X-GitHub-Hook-Installation-Target-Type": "integration",
        }
        if app.webhook_secret:
            headers["X-Hub-Signature-256"] = signature(app.webhook_secret, body)
        return headers

    def _send_later(self, delivery: Delivery, lane: str, delay_s: float) -> None:
        if self._client is None:
            self._waiting.append((delivery, lane, delay_s))
        else:
            self._spawn(delivery, lane, delay_s)

    def _spawn(self, delivery: Delivery, lane: str, delay_s: float) -> None:
        task = asyncio.get_running_loop().create_task(self._send(delivery, lane, delay_s))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, delivery: Delivery, lane: str, delay_s: float) -> None:
        if delay_s:
            await asyncio.sleep(delay_s)
        lock = self._lanes.setdefault(lane, asyncio.Lock())
        async with lock, self._slots:
            await self._attempt(delivery)

    async def _attempt(self, delivery: Delivery) -> None:
        assert self._client is not None
        delivery.delivered_at = self._state.now()
        started = time.monotonic()
        try:
            reply = await self._client.post(delivery.url, content=delivery.body, headers=delivery.request_headers)
        except httpx.TimeoutException:
            delivery.status, delivery.status_code = "timed out", 0
        except httpx.HTTPError:
            delivery.status, delivery.status_code = "failed to connect to host", 502
        else:
            delivery.status_code = reply.status_code
            delivery.status = "OK" if reply.is_success else f"Invalid HTTP Response: {reply.status_code}"
            delivery.response_headers = dict(reply.headers)
            delivery.response_body = reply.text[:65536]
        delivery.duration = time.monotonic() - started
        delivery.finished = True


def _id_in(payload: dict[str, Any], key: str) -> int | None:
    value = payload.get(key)
    number = value.get("id") if isinstance(value, dict) else None
    return number if isinstance(number, int) else None


def _name_in(payload: dict[str, Any]) -> str:
    value = payload.get("repository")
    return str(value.get("full_name", "")) if isinstance(value, dict) else ""
