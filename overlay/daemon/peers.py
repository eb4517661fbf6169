"""Peers asked about through the local API: `overlay ping`, `overlay why`. Documents and routes; knows no engine."""

from typing import Any, Literal, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from overlay.daemon.localapi import json_object
from overlay.errors import Exit, UserError

LONGEST_PATIENCE = 8.0
"""s that one ping may wait: less than a command waits for the daemon."""


class PathStatus(msgspec.Struct, frozen=True, kw_only=True):
    kind: Literal["relay", "lan", "udp", "tcp"]
    endpoint: str | None  # None for relay
    since: float  # Unix time, s
    mtu: int  # largest UDP payload, bytes


class PingResult(msgspec.Struct, frozen=True, kw_only=True):
    """`path`: the way that the ping took. `rtt_ms`: None if no answer came, and then `path` is None, too."""

    path: PathStatus | None
    rtt_ms: float | None


class Peers(Protocol):
    """What a daemon with peers offers. All of it raises `UserError`."""

    def find_peer(self, text: str) -> dict[str, Any]:
        """The peer of that name, overlay address or number: `{"number", "name", "addresses"}`."""

    async def ping(self, number: int, patience: float) -> PingResult:
        """One round trip to the peer, waited for `patience` seconds at most."""


def peer_routes(daemon: Peers) -> list[Route]:
    """For a local API."""

    async def ping(request: Request) -> Response:
        patience = (await json_object(request)).get("patience", 1.0)
        if isinstance(patience, bool) or not isinstance(patience, int | float) or not 0 < patience <= LONGEST_PATIENCE:
            message = f"The patience must be a number of seconds up to {LONGEST_PATIENCE:.0f}."
            raise UserError("bad-request", message, exit_code=Exit.USAGE)
        number = int(daemon.find_peer(request.path_params["peer"])["number"])
        return JSONResponse(msgspec.to_builtins(await daemon.ping(number, float(patience))))

    return [Route("/v1/peers/{peer}/ping", ping, methods=["POST"])]
