"""What github.com itself serves: the runner's release, which is the simulator's own runner under GitHub's name."""

from __future__ import annotations

from functools import cache
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from orchestrator.simulator.runner import runner_tarball


@cache
def _release() -> tuple[bytes, str, str, str]:
    """The tarball, its sha256, its file name, and its path on github.com."""
    data, digest, version = runner_tarball()
    name = f"actions-runner-linux-x64-{version}.tar.gz"
    return data, digest, name, f"/actions/runner/releases/download/v{version}/{name}"


def download() -> dict[str, Any]:
    """One entry of ``runners/downloads``."""
    _data, digest, name, path = _release()
    return {
        "os": "linux",
        "architecture": "x64",
        "download_url": f"https://github.com{path}",
        "filename": name,
        "sha256_checksum": digest,
    }


def release_routes() -> list[Route]:
    async def front(_request: Request) -> Response:
        return PlainTextResponse("GitHub (simulated)\n")

    async def tarball(_request: Request) -> Response:
        return Response(_release()[0], media_type="application/octet-stream")

    return [Route("/", front), Route(_release()[3], tarball)]
