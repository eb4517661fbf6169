"""The local API of the inspector. Shapes are those of `shown.py`."""

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from overlay.daemon.localapi import Streamed
from overlay.node.inspector.inspector import Inspector


def inspector_routes(inspector: Inspector) -> list[Route]:
    async def page(_request: Request) -> Response:
        return JSONResponse({"url": await inspector.url()})

    async def exchanges(request: Request) -> Response:
        found = inspector.summaries(request.query_params.get("exposure", ""))
        return JSONResponse({"exchanges": msgspec.to_builtins(found)})

    async def watch(request: Request) -> Response:
        return Streamed(inspector.watch(request.query_params.get("exposure", "")))

    async def exchange(request: Request) -> Response:
        secrets = request.query_params.get("secrets") == "1"
        return JSONResponse(msgspec.to_builtins(await inspector.detail(request.path_params["id"], secrets=secrets)))

    async def replay(request: Request) -> Response:
        secrets = request.query_params.get("secrets") == "1"
        made = await inspector.replay(request.path_params["id"])
        return JSONResponse(msgspec.to_builtins(await inspector.detail(made, secrets=secrets)))

    return [
        Route("/v1/inspector", page, methods=["POST"]),
        Route("/v1/exchanges", exchanges, methods=["GET"]),
        Route("/v1/exchanges/watch", watch, methods=["GET"]),
        Route("/v1/exchanges/{id}", exchange, methods=["GET"]),
        Route("/v1/exchanges/{id}/replay", replay, methods=["POST"]),
    ]
