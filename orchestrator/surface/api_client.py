"""The ``ironcd`` command's way to the control plane: its admin API, with the admin's token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from orchestrator.core.errors import ConfigurationError, OperationalError, UserError
from orchestrator.surface.settings import Settings, read_secret

_STREAM_TIMEOUT = httpx.Timeout(10.0, read=45.0)
"""A stream has a sign of life each 15 seconds."""


class ApiClient:
    """Reads ``/api/v1``, and gives orders there.  Errors are IronCDErrors: unreachable, not permitted, not found."""

    def __init__(
        self, base_url: str, token: str, *, prefix: str = "/api/v1", transport: httpx.BaseTransport | None = None
    ) -> None:
        self.base_url = base_url
        self._prefix = prefix
        self._client = httpx.Client(
            base_url=base_url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(10.0, read=60.0),
            transport=transport,
            trust_env=False,
        )

    @classmethod
    def of(cls, settings: Settings) -> ApiClient:
        control = settings.control
        url = control.url or f"http://{control.listen}"
        return cls(url, read_secret(control.admin_token_file, "control.admin_token_file"))

    @classmethod
    def of_host(cls, settings: Settings) -> ApiClient:
        """With this host's own token, to what a host may ask for (``/host/v1``)."""
        host = settings.host_settings()
        return cls(host.control_url, read_secret(Path(host.token_file), "host.token_file"), prefix="/host/v1")

    def get(self, path: str, params: Mapping[str, str | int | float | None] | None = None) -> Any:
        """The JSON at ``path`` (below ``/api/v1/``).  Parameters that are None are left out."""
        return self._ask("GET", path, params)

    def post(self, path: str, params: Mapping[str, str | int | float | None] | None = None) -> Any:
        """Give an order; the JSON of the answer."""
        return self._ask("POST", path, params)

    def stream(self, path: str, params: Mapping[str, str | int | float | None]) -> Iterator[tuple[str, bytes]]:
        """The messages of server-sent events at ``path``: id and data of each, data empty where it only keeps alive.

        Ends where the control plane ends it.  Raises OperationalError (``control-unreachable``, ``control-failed``) where it
        breaks; what was given till then was whole.
        """
        given = {name: value for name, value in params.items() if value is not None}
        try:
            with self._client.stream("GET", f"/api/v1/{path}", params=given, timeout=_STREAM_TIMEOUT) as response:
                if not response.is_success:
                    response.read()
                    self._judged(response, path)
                yield from _messages(response.iter_lines())
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _ask(self, method: str, path: str, params: Mapping[str, str | int | float | None] | None) -> Any:
        given = {name: value for name, value in (params or {}).items() if value is not None}
        try:
            response = self._client.request(method, f"{self._prefix}/{path}", params=given)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        return self._judged(response, path)

    def _unreachable(self, error: httpx.HTTPError) -> OperationalError:
        return OperationalError(
            f"the control plane at {self.base_url} does not answer ({type(error).__name__})",
            code="control-unreachable",
            remedy="Start it with `ironcd up`, or set control.url to where it runs.",
        )

    def _judged(self, response: httpx.Response, path: str) -> Any:
        if response.is_success:
            return response.json()
        if response.status_code in (401, 403):
            raise ConfigurationError(
                f"the control plane at {self.base_url} refused the admin token",
                code="control-refused",
                remedy="Let control.admin_token_file hold the token that the control plane was started with.",
            )
        if response.status_code == 404:
            raise UserError(
                f"there is no {path.replace('/', ' ')}", code="not-found", remedy="List what there is, and look again."
            )
        said = _words(response)
        raise OperationalError(
            f"the control plane answered {response.status_code}{said}",
            code="control-failed",
            remedy="Read the control plane's log.",
        )


def _messages(lines: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Of server-sent events; one that isn't whole is left out."""
    place, data = "", ""
    for line in lines:
        if line.startswith("id: "):
            place = line.removeprefix("id: ")
        elif line.startswith("data: "):
            data += line.removeprefix("data: ")
        elif not line:
            yield place, data.encode()
            data = ""


def _words(response: httpx.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        return ""
    said = next((body[key] for key in ("error", "detail") if key in body), "") if isinstance(body, dict) else ""
    return f": {said}" if said else ""
