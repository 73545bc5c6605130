"""``/_sim/world/``: what arrived in the world, for a program that isn't in the simulator's process."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from orchestrator.simulator.world import World


def world_routes(world: World) -> list[Route]:
    """``GET received?address=&port=&proto=``, ``GET sources``, ``POST clear``, ``PUT names/NAME`` (a list of addresses)."""

    async def received(request: Request) -> Response:
        query = request.query_params
        port = query.get("port")
        try:
            number = int(port) if port else None
        except ValueError:
            return JSONResponse({"error": "port is not a number"}, 400)
        items = world.received(query.get("address"), number, query.get("proto"))
        return JSONResponse([item.as_dict() for item in items])

    async def sources(_request: Request) -> Response:
        counts = await asyncio.to_thread(world.sources)
        strangers = await asyncio.to_thread(world.strangers)
        return JSONResponse({"sources": counts, "strangers": strangers})

    async def clear(_request: Request) -> Response:
        await asyncio.to_thread(world.clear)
        return JSONResponse({})

    async def set_name(request: Request) -> Response:
        addresses = await request.json()
        if not isinstance(addresses, list):
            return JSONResponse({"error": "a list of addresses is wanted"}, 400)
        world.names.set(request.path_params["name"], [str(item) for item in addresses])
        return JSONResponse({})

    return [
        Route("/_sim/world/received", received, methods=["GET"]),
        Route("/_sim/world/sources", sources, methods=["GET"]),
        Route("/_sim/world/clear", clear, methods=["POST"]),
        Route("/_sim/world/names/{name}", set_name, methods=["PUT"]),
    ]
