"""Who comes to the server's shared port and does not want to talk to the server: users, and nodes' calls for users."""

from dataclasses import replace

from overlay.carrier.port import Caller, Guest, TlsGuest, TlsPlace
from overlay.carrier.tls import agreed
from overlay.server.callers import Callers
from overlay.server.proxying import ProxyDoor
from overlay.server.tunnels import Visitor
from overlay.server.web.door import WebDoor
from overlay.server.web.exchange import raw_socket
from overlay.server.web.sites import Site, Sites
from overlay.server.web.tls_door import TlsDoor
from overlay.wire.endpoint import Endpoint
from overlay.wire.ingress.http1 import RequestHead


class WebGuests:
    """`overlay.carrier.port.Guests`."""

    def __init__(self, sites: Sites, door: WebDoor, tls_door: TlsDoor, callers: Callers) -> None:
        self._sites = sites
        self._door = door
        self._tls_door = tls_door
        self._callers = callers
        self.proxy: ProxyDoor | None = None

    def proxies(self, request: RequestHead) -> bool:
        return self.proxy is not None and self.proxy.knows(request)

    def exposes(self, host: str) -> bool:
        return self._sites.exposes(host)

    def tls_end(self, host: str) -> TlsPlace | None:
        site = self._sites.find_tls(host)
        if site is None:
            return None
        return "here" if site.gate.terms.tls_end == "server" else "beyond"

    async def serve_user(self, guest: Guest | TlsGuest, source: Endpoint) -> None:
        tls, alpn = agreed(guest.stream)
        visitor = replace(Visitor.of(raw_socket(guest.stream), source), tls=tls, alpn=alpn)
        if isinstance(guest, TlsGuest):
            named = replace(visitor, authority=guest.name)
            await self._tls_door.serve(guest, named, self._sites.find_tls(guest.name))
            return
        if tls is not None:  # whatever the user speaks, targets are spoken to in this
            visitor = replace(visitor, alpn=b"http/1.1")
        by_connect = self.proxy is not None and guest.begun.startswith(b"CONNECT ")
        if not (by_connect and self.proxy is not None and await self.proxy.serve(guest, visitor)):
            await self._door.serve(guest, visitor, self._find)

    def take_caller(self, caller: Caller) -> None:
        self._callers.take(caller)

    def forget_node(self, node: int) -> None:
        """It was removed."""
        if self.proxy is not None:
            self.proxy.forget_node(node)

    def _find(self, request: RequestHead) -> Site | None:
        return self._sites.find(request.host, request.path)
