"""The zone's records through the local API: `overlay dns ls | add | rm`. Documents and routes; knows no zone."""

from typing import Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from overlay.daemon.localapi import json_object, text_in


class RecordStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One record that somebody put into the zone."""

    name: str  # absolute, without the last dot
    type: str
    value: str
    node: str  # whose it is
    shadowed: bool  # not served: a node has this name now


class Recording(Protocol):
    """What a daemon offers. All of it raises `UserError`."""

    def records(self) -> tuple[RecordStatus, ...]:
        """All that there are."""

    async def add_record(self, name: str, rtype: str, value: str) -> RecordStatus:
        """Put one into the zone, as this machine's. → as it is written there"""

    async def remove_record(self, name: str, rtype: str) -> None:
        """Take away those of a name, of one type or ("") all."""


def record_routes(daemon: Recording) -> list[Route]:
    """For a local API."""

    async def show(_request: Request) -> Response:
        return JSONResponse({"records": msgspec.to_builtins(daemon.records())})

    async def add(request: Request) -> Response:
        document = await json_object(request)
        record = await daemon.add_record(*(text_in(document, key) for key in ("name", "type", "value")))
        return JSONResponse(msgspec.to_builtins(record))

    async def remove(request: Request) -> Response:
        asked = request.query_params
        await daemon.remove_record(asked.get("name", ""), asked.get("type", ""))
        return JSONResponse({})

    return [
        Route("/v1/dns/records", show, methods=["GET"]),
        Route("/v1/dns/records", add, methods=["POST"]),
        Route("/v1/dns/records", remove, methods=["DELETE"]),
    ]
