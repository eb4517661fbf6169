"""Who comes to the server's shared port and does not want to talk to the server: users, and nodes' calls for users."""

from overlay.carrier.port import Caller, Guest
from overlay.server.callers import Callers
from overlay.server.tunnels import Visitor
from overlay.server.web.door import WebDoor
from overlay.server.web.exchange import raw_socket
from overlay.server.web.sites import Site, Sites
from overlay.wire.endpoint import Endpoint
from overlay.wire.ingress.http1 import RequestHead


class WebGuests:
    """`overlay.carrier.port.Guests`."""

    def __init__(self, sites: Sites, door: WebDoor, callers: Callers) -> None:
        self._sites = sites
        self._door = door
        self._callers = callers

    def exposes(self, host: str) -> bool:
        return self._sites.exposes(host)

    async def serve_user(self, guest: Guest, source: Endpoint) -> None:
        await self._door.serve(guest, Visitor.of(raw_socket(guest.stream), source), self._find)

    def take_caller(self, caller: Caller, host: str) -> None:
        self._callers.take(caller, host)

    def expects(self, host: str) -> bool:
        return self._callers.expects(host)

    def _find(self, request: RequestHead) -> Site | None:
        return self._sites.find(request.host, request.path)
