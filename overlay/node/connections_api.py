"""The local API of what is connected in the background. Shapes are those of `connections.py`."""

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from overlay.daemon.localapi import caller, json_object, text_in
from overlay.node.connections import Connections


def connection_routes(connections: Connections) -> list[Route]:
    async def show(_request: Request) -> Response:
        return JSONResponse({"connections": msgspec.to_builtins(connections.status())})

    async def add(request: Request) -> Response:
        document = await json_object(request)
        made = await connections.add(
            text_in(document, "name"), text_in(document, "listen"), text_in(document, "token", ""), caller(request)
        )
        return JSONResponse(msgspec.to_builtins(made))

    async def remove(request: Request) -> Response:
        await connections.remove(request.path_params["id"])
        return JSONResponse({})

    return [
        Route("/v1/connections", show, methods=["GET"]),
        Route("/v1/connections", add, methods=["POST"]),
        Route("/v1/connections/{id}", remove, methods=["DELETE"]),
    ]
