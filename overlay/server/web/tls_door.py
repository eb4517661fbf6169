"""Users by TLS to a name that is exposed by it: carried to the target as they come, ClientHello and all, so that the
server holds no key and learns nothing but the name; or, where their TLS has been ended here, what was in it."""

from collections import Counter

import anyio

from overlay.carrier.limits import Room, network_of
from overlay.carrier.port import TlsGuest
from overlay.server.access.gate import Asker
from overlay.server.access.meter import forward_metered
from overlay.server.tunnels import TunnelError, Visitor
from overlay.server.web.sites import Site


class TlsDoor:
    """Serves users. `drops` counts by reason who did not get through; `room`: for all users of the shared port."""

    def __init__(self, drops: Counter[str], room: Room) -> None:
        self._drops = drops
        self._room = room

    async def serve(self, guest: TlsGuest, visitor: Visitor, site: Site | None) -> None:
        """Until the connection ends, which the caller closes. `site`: whose it is; None: it was given back just now."""
        network = network_of(visitor.source[0])
        if site is None:
            self._turn_away(guest, "tls_stranger")
            return
        asker = Asker(visitor.source[0], secure=True)
        if self._room.full_for(network) or site.full_for(asker):
            self._turn_away(guest, "too_many_users")
            return
        if reason := site.gate.refuses(asker.source):
            self._turn_away(guest, reason)
            return
        visit = self._room.enter(network)
        scope = anyio.CancelScope()
        site.enter(scope, asker)
        try:
            with scope:
                await self._forward(guest, visitor, site)
        finally:
            site.leave(scope)
            visit.leave()

    async def _forward(self, guest: TlsGuest, visitor: Visitor, site: Site) -> None:
        try:
            inside = await site.tunnel.open(visitor)
        except TunnelError as error:
            self._turn_away(guest, error.reason)
        else:
            await forward_metered(guest.stream, inside, site.gate.meter)

    def _turn_away(self, guest: TlsGuest, reason: str) -> None:
        self._drops[reason] += 1
        guest.stream.cut()
