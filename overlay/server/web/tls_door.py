"""Users by TLS to a name that is exposed by it: carried to the target as they come, ClientHello and all, so that the
server holds no key and learns nothing but the name; or, where their TLS has been ended here, what was in it.

An authority that certifies a node comes the same way (RFC 8737). No list of networks can have it, and of a group one
member alone can show it what it wants: the one that has ordered. The others end its connection without a word.
"""

from collections import Counter
from typing import Final

import anyio

from overlay.carrier.limits import Room, network_of
from overlay.carrier.port import TlsGuest
from overlay.certificates.challenges import ALPN_OFFERED
from overlay.server.access.gate import Asker
from overlay.server.access.meter import Meter, forward_metered
from overlay.server.groups import Group
from overlay.server.tunnels import TunnelError, Visitor
from overlay.server.web.sites import Site

MOST_ASKED: Final = 16  # members of a group, for a proof
PROOF: Final = 2.0  # s for each


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
        proves = site.gate.terms.tls_end == "node" and guest.protocols == ALPN_OFFERED
        if reason := site.gate.refuses(asker.source, listed=not proves):
            self._turn_away(guest, reason)
            return
        visit = self._room.enter(network)
        scope = anyio.CancelScope()
        site.enter(scope, asker)
        try:
            with scope:
                if proves and isinstance(site.tunnel, Group):
                    await self._lead_to_proof(guest, visitor, site.tunnel, site.gate.meter)
                else:
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

    async def _lead_to_proof(self, guest: TlsGuest, visitor: Visitor, group: Group, meter: Meter) -> None:
        """To whichever member answers."""
        hello = await guest.stream.receive()  # all of it is here, and nothing comes before an answer
        tried: set[int] = set()
        while len(tried) < MOST_ASKED:
            try:
                inside = await group.open_another(visitor, tried)
            except TunnelError:
                break
            try:
                with anyio.fail_after(PROOF):
                    await inside.send(hello)
                    answer = await inside.receive()
                    await guest.stream.send(answer)
            except (TimeoutError, anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                inside.close()
                continue
            except BaseException:
                inside.close()
                raise
            meter.add(len(hello) + len(answer))
            await forward_metered(guest.stream, inside, meter)
            return
        self._turn_away(guest, "no_proof")

    def _turn_away(self, guest: TlsGuest, reason: str) -> None:
        self._drops[reason] += 1
        guest.stream.cut()
