"""Which runner, or which job, a request of the runner's protocol comes from."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from orchestrator.simulator.github.state import Runner, State


class Denied(Exception):
    """The answer of a service of the runner's protocol that isn't a success."""

    def __init__(self, status: int, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.content = {"statusCode": status, "errorMessage": message, **more}

    def response(self) -> JSONResponse:
        return JSONResponse(self.content, self.status)


def bearer(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token if scheme.lower() == "bearer" else ""


def runner_of(state: State, request: Request) -> Runner:
    """The runner that the token was issued to.  Raises `Denied`: 401 for no such token."""
    runner = state.runner_tokens.get(bearer(request))
    if runner is None:
        raise Denied(401, "The token is not valid.", source="actions-broker-listener", errorKind="InvalidToken")
    return runner


async def json_of(request: Request) -> dict[str, Any]:
    """The request's JSON object.  Raises `Denied` (400) for anything else."""
    try:
        content = await request.json()
    except ValueError:
        raise Denied(400, "Problems parsing JSON") from None
    if not isinstance(content, dict):
        raise Denied(400, "Not an object")
    return content
