"""The REST API's endpoints, by theme; `routes` is all of them."""

from __future__ import annotations

from starlette.routing import Route

from orchestrator.simulator.github.http import Rest
from orchestrator.simulator.github.rest import apps, meta, repositories, runners, runs


def routes(rest: Rest) -> list[Route]:
    return [
        *apps.routes(rest),
        *meta.routes(rest),
        *repositories.routes(rest),
        *runners.routes(rest),
        *runs.routes(rest),
    ]
