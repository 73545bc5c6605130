"""The token host: a runner proves with its key who it is and gets a bearer token for the broker."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from urllib.parse import parse_qs

import jwt
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from orchestrator.simulator.github.jit import token_url
from orchestrator.simulator.github.state import State

_ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
LIFETIME_S = 3000


class TokenHost:
    def __init__(self, state: State, url_of: Callable[[str], str]) -> None:
        self._state = state
        self._url_of = url_of

    def routes(self) -> list[Route]:
        return [Route("/_apis/oauth2/token/{client_id}", self.issue, methods=["POST"])]

    async def issue(self, request: Request) -> Response:
        form = {name: values[0] for name, values in parse_qs((await request.body()).decode("utf-8", "replace")).items()}
        client_id = request.path_params["client_id"]
        runner = next((item for item in self._state.runners.values() if item.client_id == client_id), None)
        if runner is None or self._state.now() < runner.known_from:
            return _refuse("invalid_client", f"Registration {client_id} was not found.")
        if form.get("client_assertion_type") != _ASSERTION or form.get("grant_type") != "client_credentials":
            return _refuse("unsupported_grant_type", "Only client credentials by assertion are supported.")
        try:
            claims = jwt.decode(
                form.get("client_assertion", ""),
                runner.key,
                algorithms=["RS256"],
                audience=token_url(runner, self._url_of),
                issuer=client_id,
                leeway=300,
            )
        except jwt.PyJWTError as error:
            return _refuse("invalid_client", f"The assertion is not valid: {error}")
        if claims.get("sub") != client_id or not claims.get("jti"):
            return _refuse("invalid_client", "The assertion is not about this client.")
        token = "eyJ0eXAiOiJKV1QifQ." + secrets.token_urlsafe(120) + "." + secrets.token_urlsafe(43)
        self._state.runner_tokens[token] = runner
        return JSONResponse({"access_token": token, "token_type": "JWT", "expires_in": LIFETIME_S})


def _refuse(error: str, why: str) -> Response:
    return JSONResponse({"error": error, "error_description": why}, 400)
