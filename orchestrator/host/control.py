"""The one connection that a host makes to the control plane: ask what is wished, tell what is seen, ship the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import httpx
import msgspec

from orchestrator.core.errors import HostError
from orchestrator.core.settings import HostSettings
from orchestrator.core.wire import Desired, LedgerAck, LedgerBatch, Observed

WAIT_S = 25
_desired = msgspec.json.Decoder(Desired)
_ack = msgspec.json.Decoder(LedgerAck)


class Control(Protocol):
    """Each call raises HostError (``control-...``) where the control plane can't be reached or doesn't want it."""

    def desired(self, generation: int, wait_s: int) -> Desired | None:
        """What is wished, or None where nothing newer than ``generation`` came within ``wait_s`` seconds."""

    def observed(self, observed: Observed) -> None: ...

    def ledger(self, batch: LedgerBatch) -> LedgerAck:
        """What the control plane has, and wants next."""


class HttpControl:
    """One of these per thread that talks: httpx's clients keep their connections."""

    def __init__(self, settings: HostSettings, *, timeout_s: float = 10.0) -> None:
        self._token_file = Path(settings.token_file)
        self._timeout_s = timeout_s
        self._client = httpx.Client(base_url=settings.control_url, timeout=timeout_s)

    def desired(self, generation: int, wait_s: int) -> Desired | None:
        query = {"generation": generation, "wait": wait_s}
        answer = self._send("GET", "/host/v1/desired", params=query, timeout=self._timeout_s + wait_s)
        if answer.status_code == httpx.codes.NO_CONTENT:
            return None
        try:
            return _desired.decode(answer.content)
        except msgspec.MsgspecError as error:
            raise _unusable(error) from error

    def observed(self, observed: Observed) -> None:
        self._send("POST", "/host/v1/observed", content=msgspec.json.encode(observed))

    def ledger(self, batch: LedgerBatch) -> LedgerAck:
        answer = self._send("POST", "/host/v1/ledger", content=msgspec.json.encode(batch), timeout=60.0)
        try:
            return _ack.decode(answer.content)
        except msgspec.MsgspecError as error:
            raise _unusable(error) from error

    def close(self) -> None:
        self._client.close()

    def _send(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, int] | None = None,
        content: bytes | None = None,
        timeout: float | None = None,
    ) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self._token()}", "Content-Type": "application/json"}
        try:
            answer = self._client.request(
                method, path, params=params, content=content, headers=headers, timeout=timeout or self._timeout_s
            )
        except httpx.HTTPError as error:
            raise HostError(
                f"the control plane doesn't answer: {type(error).__name__}",
                code="control-away",
                remedy="See host.control_url, and whether the control plane runs.",
            ) from error
        if answer.is_success:
            return answer
        raise HostError(
            f"the control plane answered {answer.status_code} to {method} {path}",
            code="control-refused",
            remedy="Where it is 401 or 403: give this host the token that the control plane has for it.",
        )

    def _token(self) -> str:
        """Read anew each time: a token that was rotated is in force with the next request."""
        try:
            return self._token_file.read_text().strip()
        except OSError as error:
            raise HostError(
                f"can't read the host's token: {error.strerror}",
                code="token-missing",
                remedy=f"Put it into {self._token_file}, mode 0600.",
            ) from error


def _unusable(error: msgspec.MsgspecError) -> HostError:
    return HostError(
        f"the control plane's answer isn't understood: {error}",
        code="control-refused",
        remedy="Run the same version of IronCD on both sides.",
    )
