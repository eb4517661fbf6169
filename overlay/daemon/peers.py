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


class CandidateStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint that the peer may be reached at, and what came of asking it."""

    endpoint: str
    kind: Literal["lan", "udp", "tcp"]
    origin: str  # how it is known: see `overlay.path.types.Origin`
    state: str  # "in use", "proven", "asked", "silent", "resting", "waiting"
    pings: int  # sent in all
    pinged_s: float | None  # s ago
    answered_s: float | None  # s ago
    rtt_ms: float | None
    next_try_s: float | None  # in s; None: not planned


class WhyReport(msgspec.Struct, frozen=True, kw_only=True):
    """Why packets to a peer go the way they go."""

    name: str
    addresses: tuple[str, ...]
    online: bool
    path: PathStatus | None
    rtt_ms: float | None
    active: bool  # does data flow?
    reason: str  # a word for scripts
    sentence: str  # the same for a person
    own_nat: str  # a sentence
    peer_nat: str
    relay: bool  # is there one?
    next_call_s: float | None  # in s: when the peer is called again, through the relay
    candidates: tuple[CandidateStatus, ...]


class Peers(Protocol):
    """What a daemon with peers offers. All of it raises `UserError`."""

    def find_peer(self, text: str) -> dict[str, Any]:
        """The peer of that name, overlay address or number: `{"number", "name", "addresses"}`."""

    async def ping(self, number: int, patience: float) -> PingResult:
        """One round trip to the peer, waited for `patience` seconds at most."""

    async def why(self, number: int) -> WhyReport:
        """What the choice of the path to the peer rests on."""


def peer_routes(daemon: Peers) -> list[Route]:
    """For a local API."""

    async def ping(request: Request) -> Response:
        patience = (await json_object(request)).get("patience", 1.0)
        if isinstance(patience, bool) or not isinstance(patience, int | float) or not 0 < patience <= LONGEST_PATIENCE:
            message = f"The patience must be a number of seconds up to {LONGEST_PATIENCE:.0f}."
            raise UserError("bad-request", message, exit_code=Exit.USAGE)
        number = int(daemon.find_peer(request.path_params["peer"])["number"])
        return JSONResponse(msgspec.to_builtins(await daemon.ping(number, float(patience))))

    async def why(request: Request) -> Response:
        number = int(daemon.find_peer(request.path_params["peer"])["number"])
        return JSONResponse(msgspec.to_builtins(await daemon.why(number)))

    return [
        Route("/v1/peers/{peer}/ping", ping, methods=["POST"]),
        Route("/v1/peers/{peer}/why", why, methods=["GET"]),
    ]
