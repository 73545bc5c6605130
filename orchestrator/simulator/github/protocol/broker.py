"""The broker: a runner's session, and the long poll by which it hears of jobs and cancellations."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from orchestrator.simulator.github.engine import Engine
from orchestrator.simulator.github.jit import RUN_SERVICE
from orchestrator.simulator.github.protocol.caller import Denied, json_of, runner_of
from orchestrator.simulator.github.state import Message, Runner, Session, State

POLL_S = 50.0
MINIMUM_VERSION = (2, 329, 0)


class Broker:
    def __init__(self, state: State, engine: Engine, url_of: Callable[[str], str]) -> None:
        self._state = state
        self._engine = engine
        self._url_of = url_of
        self.poll_s = POLL_S

    def routes(self) -> list[Route]:
        return [
            Route("/session", _answering(self.create_session), methods=["POST"]),
            Route("/session", _answering(self.delete_session), methods=["DELETE"]),
            Route("/message", _answering(self.next_message), methods=["GET"]),
            Route("/acknowledge", _answering(self.acknowledge), methods=["POST"]),
        ]

    async def create_session(self, request: Request) -> Response:
        runner = runner_of(self._state, request)
        asked = await json_of(request)
        agent = asked.get("agent") or {}
        version = str(agent.get("version", ""))
        if _too_old(version):
            why = f"Runner version v{version} is deprecated and cannot receive messages."
            raise Denied(403, why, source="actions-broker-listener", errorKind="RunnerVersionTooOld")
        if runner.session is not None and self._engine.is_live(runner.session):
            why = f"The session for this runner already exists: {runner.session.owner_name}"
            raise Denied(409, why, source="actions-broker-listener", errorKind="TaskAgentSessionConflict")
        runner.version = version
        runner.os = _os_name(str(agent.get("osDescription", "")))
        session = self._engine.open_session(runner, str(asked.get("ownerName", "")))
        return JSONResponse(
            {"sessionId": session.id, "ownerName": session.owner_name, "agent": {"id": runner.id, "name": runner.name}}
        )

    async def delete_session(self, request: Request) -> Response:
        runner = runner_of(self._state, request)
        self._engine.close_session(runner)
        return Response(status_code=200)

    def _session(self, request: Request, runner: Runner) -> Session:
        session = runner.session
        if session is None or session.id != request.query_params.get("sessionId", ""):
            raise Denied(
                404, "The session was not found.", source="actions-broker-listener", errorKind="RunnerNotFound"
            )
        return session

    async def next_message(self, request: Request) -> Response:
        """202 with no body where nothing came within the poll's length."""
        token_owner = runner_of(self._state, request)
        session = self._session(request, token_owner)
        message = await self._engine.next_message(token_owner, session, self.poll_s)
        if token_owner.gone:
            raise Denied(404, "The runner was not found.", source="actions-broker-listener", errorKind="RunnerNotFound")
        if message is None:
            return Response(status_code=202)
        return JSONResponse(self._present(message))

    def _present(self, message: Message) -> dict[str, Any]:
        body = dict(message.body)
        if message.type == "RunnerJobRequest":
            body |= {
                "id": str(message.id),
                "run_service_url": self._url_of(RUN_SERVICE),
                "billing_owner_id": "U_sim",
                "should_acknowledge": True,
            }
        return {"messageId": message.id, "messageType": message.type, "body": json.dumps(body)}

    async def acknowledge(self, request: Request) -> Response:
        runner = runner_of(self._state, request)
        self._session(request, runner)
        asked = await json_of(request)
        if runner.job is None or runner.job.request_id != asked.get("runnerRequestId"):
            raise Denied(404, "The job was not found.", source="actions-broker-listener", errorKind="JobNotFound")
        return Response(status_code=200)


def _too_old(version: str) -> bool:
    try:
        return tuple(int(part) for part in version.split(".")[:3]) < MINIMUM_VERSION
    except ValueError:
        return True


def _os_name(description: str) -> str:
    words = description.lower()
    return next((name for name in ("linux", "windows", "macos") if name in words), "linux" if words else "unknown")


def _answering(handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except Denied as denied:
            return denied.response()

    return answer


answering = _answering
