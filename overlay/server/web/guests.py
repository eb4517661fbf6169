"""Who comes to the server's shared port and is no node that talks to it: users, by the names that are exposed."""

from overlay.carrier.port import Caller, Guest
from overlay.server.web.door import WebDoor
from overlay.server.web.sites import Site, Sites
from overlay.wire.endpoint import Endpoint
from overlay.wire.ingress.http1 import RequestHead


class WebGuests:
    """`overlay.carrier.port.Guests`."""

    def __init__(self, sites: Sites, door: WebDoor) -> None:
        self._sites = sites
        self._door = door

    def exposes(self, host: str) -> bool:
        return self._sites.exposes(host)

    async def serve_user(self, guest: Guest, source: Endpoint) -> None:
        await self._door.serve(guest, source, self._find)

    async def serve_caller(self, caller: Caller) -> None:
        caller.stream.close()

    def _find(self, request: RequestHead) -> Site | None:
        return self._sites.find(request.host, request.path)
