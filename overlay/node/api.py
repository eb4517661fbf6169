"""The node's local API: requests to methods and back. Shapes are those of `status.py`; knows no protocol."""

from typing import Any, Protocol

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from overlay.daemon.capture import Capturing, capture_routes
from overlay.daemon.localapi import Produce, Streamed, caller, json_object, on_user_error, text_in
from overlay.daemon.peers import Peers, peer_routes
from overlay.daemon.records import Recording, record_routes
from overlay.errors import Exit, UserError
from overlay.node.connections import Connections
from overlay.node.connections_api import connection_routes
from overlay.node.exposure_files import ExposureFiles
from overlay.node.exposure_files_api import exposure_file_routes
from overlay.node.inspector.api import inspector_routes
from overlay.node.inspector.inspector import Inspector
from overlay.node.status import ExposeWish, ExposureStatus, NameAnswer, NamesStatus, NodeStatus
from overlay.wire.control.messages import Connected


class Node(Recording, Protocol):
    """What the API offers."""

    async def status(self) -> NodeStatus: ...
    def shut_down(self) -> None: ...
    def exposures(self) -> tuple[ExposureStatus, ...]: ...
    async def expose(self, wish: ExposeWish, owner: int) -> ExposureStatus: ...
    def watch_requests(self, name: str) -> Produce: ...
    async def unexpose(self, name: str) -> None: ...
    async def connect(self, name: str, token: str) -> Connected: ...
    def names_status(self) -> NamesStatus: ...
    async def query_name(self, name: str, rtype: str) -> NameAnswer: ...


def make_api(
    node: Node,
    capturing: Capturing,
    peers: Peers,
    files: ExposureFiles,
    connections: Connections,
    inspector: Inspector,
) -> Starlette:
    """The application for `serve_local_api`."""

    async def status(_request: Request) -> Response:
        return _answer(await node.status())

    async def down(_request: Request) -> Response:
        node.shut_down()
        return _answer({})

    async def exposures(_request: Request) -> Response:
        return _answer({"exposures": node.exposures()})

    async def expose(request: Request) -> Response:
        document = await json_object(request)
        try:
            wish = msgspec.convert(document, ExposeWish)
        except msgspec.ValidationError as error:
            raise UserError("bad-request", f"That cannot be exposed: {error}.", exit_code=Exit.USAGE) from error
        return _answer(await node.expose(wish, caller(request)))

    async def requests(request: Request) -> Response:
        return Streamed(node.watch_requests(request.path_params["id"]))

    async def unexpose(request: Request) -> Response:
        await node.unexpose(request.path_params["id"])
        return _answer({})

    async def connect(request: Request) -> Response:
        document = await json_object(request)
        return _answer(await node.connect(text_in(document, "name"), text_in(document, "token", "")))

    async def names_status(_request: Request) -> Response:
        return _answer(node.names_status())

    async def query_name(request: Request) -> Response:
        document = await json_object(request)
        return _answer(await node.query_name(text_in(document, "name"), text_in(document, "type", "A")))

    return Starlette(
        routes=[
            Route("/v1/status", status, methods=["GET"]),
            Route("/v1/down", down, methods=["POST"]),
            Route("/v1/exposures", exposures, methods=["GET"]),
            Route("/v1/exposures", expose, methods=["POST"]),
            Route("/v1/exposures/{id}", unexpose, methods=["DELETE"]),
            Route("/v1/exposures/{id}/requests", requests, methods=["GET"]),
            Route("/v1/connect", connect, methods=["POST"]),
            Route("/v1/dns", names_status, methods=["GET"]),
            Route("/v1/dns/query", query_name, methods=["POST"]),
            *exposure_file_routes(files),
            *connection_routes(connections),
            *inspector_routes(inspector),
            *capture_routes(capturing),
            *peer_routes(peers),
            *record_routes(node),
        ],
        exception_handlers={UserError: on_user_error},
    )


def _answer(document: Any) -> Response:
    return JSONResponse(msgspec.to_builtins(document))
