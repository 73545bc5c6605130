"""One connection pool for all clients of a process, and a look at what every answer says of the rate limit.

githubkit opens an HTTP client for each request; handing it this transport keeps the connections.  `Gauge` holds what
was seen last, for the metrics and for whoever wants to go slower.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime

import httpx
import msgspec

from orchestrator.core.clocks import skew_of_answerer

_IDS = re.compile(r"/(?:\d+|[0-9a-f]{40})(?=/|$)")
_NAMES = re.compile(
    r"^(?:/api/v3)?/(repos/[^/]+/[^/]+|orgs/[^/]+|app/installations|app|installation|rate_limit|meta)(/.*)?$"
)


class Limit(msgspec.Struct, frozen=True):
    limit: int
    remaining: int
    reset_at: float


class Gauge:
    """Calls by method, route and status; the rate limits by installation (0: the App) and resource, as last told."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str, str]] = Counter()
        self.limits: dict[tuple[int, str], Limit] = {}
        self.skew: float | None = None
        """How far GitHub's clock was ahead of ours at the last answer; None where none has said."""

    def saw(self, request: httpx.Request, status: str, headers: Mapping[str, str], installation: int) -> None:
        self.calls[request.method, route_of(request.url.path), status] += 1
        try:
            limit = Limit(
                int(headers["x-ratelimit-limit"]),
                int(headers["x-ratelimit-remaining"]),
                float(headers["x-ratelimit-reset"]),
            )
        except (KeyError, ValueError):
            return
        self.limits[installation, headers.get("x-ratelimit-resource", "core")] = limit

    def timed(self, asked: float, answered: float, headers: Mapping[str, str]) -> None:
        """Compare clocks.  What a cache in between kept has an age, and says nothing of now."""
        if "age" in headers:
            return
        try:
            date = parsedate_to_datetime(headers["date"]).timestamp()
        except (KeyError, ValueError):
            return
        self.skew = skew_of_answerer(date, asked, answered)


def route_of(path: str) -> str:
    """``path`` without what is peculiar to one organisation, repository, runner or job."""
    match = _NAMES.match(path)
    if match is None:
        return "other"
    head = re.sub(r"^repos/.*", "repos/{repo}", re.sub(r"^orgs/.*", "orgs/{org}", match[1]))
    rest = _IDS.sub("/{id}", match[2] or "")
    return "/" + head + re.sub(r"^/contents/.*", "/contents/{path}", rest)


class Transport(httpx.AsyncBaseTransport):
    """Requests of one installation over ``inner``, which stays open when a client closes."""

    def __init__(
        self,
        inner: httpx.AsyncBaseTransport,
        gauge: Gauge,
        installation: int,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._inner = inner
        self._clock = clock
        self._gauge = gauge
        self._installation = installation

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        asked = self._clock()
        try:
            response = await self._inner.handle_async_request(request)
        except httpx.TransportError:
            self._gauge.saw(request, "error", {}, self._installation)
            raise
        self._gauge.timed(asked, self._clock(), response.headers)
        self._gauge.saw(request, str(response.status_code), response.headers, self._installation)
        return response

    async def __aenter__(self) -> Transport:  # noqa: PYI034 - a client enters and leaves; it stays open
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def aclose(self) -> None:
        pass
