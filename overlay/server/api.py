"""The server's local API: HTTP requests to method calls and back. Knows no protocol and keeps no state."""

from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from overlay.daemon.capture import Capturing, capture_routes
from overlay.daemon.localapi import json_object, on_user_error
from overlay.daemon.peers import Peers, peer_routes
from overlay.daemon.records import Recording, record_routes
from overlay.errors import Exit, UserError
from overlay.server.invites import DEFAULT_EXPIRY, DEFAULT_USES
from overlay.server.tokens import Tokens, token_routes


class Administration(Recording, Protocol):
    """What an administrator can ask of the network."""

    async def invite(self, *, uses: int, expires_in: float, tags: tuple[str, ...]) -> dict[str, Any]: ...
    def nodes(self) -> list[dict[str, Any]]: ...
    async def remove_node(self, name: str) -> None: ...
    async def rename_node(self, old: str, new: str) -> str: ...


class Daemon(Protocol):
    """What an administrator can ask of the process."""

    async def status(self) -> dict[str, Any]: ...
    def shut_down(self) -> None: ...


def make_api(daemon: Daemon, network: Administration, capturing: Capturing, peers: Peers, tokens: Tokens) -> Starlette:
    """The application for `serve_local_api`."""

    async def status(_request: Request) -> Response:
        return JSONResponse(await daemon.status())

    async def down(_request: Request) -> Response:
        daemon.shut_down()
        return JSONResponse({})

    async def invite(request: Request) -> Response:
        document = await json_object(request)
        uses = document.get("uses", DEFAULT_USES)
        expires_in = document.get("expires_s", DEFAULT_EXPIRY)
        tags = document.get("tags", [])
        if not isinstance(uses, int) or isinstance(uses, bool):
            raise _bad_request("'uses' must be a whole number.")
        if not isinstance(expires_in, int | float) or isinstance(expires_in, bool):
            raise _bad_request("'expires_s' must be a number of seconds.")
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise _bad_request("'tags' must be a list of texts.")
        return JSONResponse(await network.invite(uses=uses, expires_in=expires_in, tags=tuple(tags)))

    async def nodes(_request: Request) -> Response:
        return JSONResponse({"nodes": network.nodes()})

    async def remove_node(request: Request) -> Response:
        await network.remove_node(request.path_params["name"])
        return JSONResponse({})

    async def rename_node(request: Request) -> Response:
        name = (await json_object(request)).get("name")
        if not isinstance(name, str):
            raise _bad_request("'name' must be a text.")
        return JSONResponse({"name": await network.rename_node(request.path_params["name"], name)})

    return Starlette(
        routes=[
            Route("/v1/status", status),
            Route("/v1/down", down, methods=["POST"]),
            Route("/v1/invites", invite, methods=["POST"]),
            Route("/v1/nodes", nodes),
            Route("/v1/nodes/{name}", remove_node, methods=["DELETE"]),
            Route("/v1/nodes/{name}", rename_node, methods=["PATCH"]),
            *capture_routes(capturing),
            *peer_routes(peers),
            *record_routes(network),
            *token_routes(tokens),
        ],
        exception_handlers={UserError: on_user_error},
    )


def _bad_request(message: str) -> UserError:
    return UserError("bad-request", message, exit_code=Exit.USAGE)
