"""How a node is reached through a relay: as a client of ours, or through our home relay. Knows no session."""

import time

from overlay.engine.home_relay import HomeRelay
from overlay.engine.peer import Peer
from overlay.engine.relay_role import RelayRole
from overlay.wire.endpoint import Endpoint
from overlay.wire.relay import pack_header


class Routes:
    """`home` and `ticket` are ours at our home relay (None: there is none); `role` is our own part as a relay."""

    def __init__(self, role: RelayRole | None) -> None:
        self.role = role
        self.home: HomeRelay | None = None
        self.home_number = 0
        self.home_key = b""
        self.ticket = 0
        self.moved: set[int] = set()
        """Clients that are reached elsewhere now: the loop reroutes their peers at the end of its turn."""
        self.all_moved = False
        """The home relay came, went or moved: all peers are to be rerouted."""

    def relay(self, number: int, now: float) -> tuple[Endpoint, bytes] | None:
        """Where a relayed datagram to that node goes, and the header before it; None: there is no way."""
        if self.role is not None and number in self.role.clients:
            return self.role.route(number, now)
        if self.home is None or self.home.active is None:
            return None
        return self.home.active, pack_header(number, self.ticket)

    def relay_used(self, now: float) -> None:
        """Session traffic went through a relay."""
        if self.home is not None:
            self.home.sent(now)

    def relay_heard(self) -> None:
        """Something authentic came through a relay."""
        if self.home is not None:
            self.home.heard()

    def update(self, peer: Peer, now: float) -> bool:
        """Have the peer's datagrams go along its selector's path. Returns whether they now go another way."""
        selector = peer.selector
        if selector is None:
            return False
        relayed = self.relay(peer.number, now)
        selector.set_relay(relayed is not None, now)
        return self.follow(peer, now)

    def follow(self, peer: Peer, now: float) -> bool:
        """As `update`, where relays are as they were."""
        selector = peer.selector
        if selector is None:
            return False
        path = selector.path
        address, prefix = None, b""
        if path is not None and path.endpoint is not None:
            address = path.endpoint
        elif path is not None:
            relayed = self.relay(peer.number, now)
            if relayed is not None:
                address, prefix = relayed
        changed = peer.set_route(address, prefix, now)
        if changed:
            peer.path_since = time.time()
        return changed
