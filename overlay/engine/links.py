"""The links of the engine: taken over, read, written, watched and closed. Engine thread.

What ends by itself is told by `LinkLost`, once; whichever way a link ends, its socket is closed once, here.
"""

import logging
import select
from collections.abc import Callable

from overlay.engine import drops
from overlay.engine.api import AddLink, Event, LinkLost
from overlay.engine.drops import Drops
from overlay.engine.exchange import DiscoExchange
from overlay.engine.inbound import Inbound
from overlay.engine.link import IDLE, LOOK, Link, link_endpoint
from overlay.engine.outbox import Outbox
from overlay.engine.peer import Peer
from overlay.engine.peers import Peers
from overlay.engine.routes import Routes
from overlay.engine.timers import Timers

logger = logging.getLogger(__name__)


class Links:
    """All of them, by descriptor, and what goes with them."""

    def __init__(
        self,
        peers: Peers,
        outbox: Outbox,
        routes: Routes,
        inbound: Inbound,
        disco: DiscoExchange,
        timers: Timers,
        counted: Drops,
        epoll: select.epoll,
        on_event: Callable[[Event], None],
        clock: Callable[[], float],
    ) -> None:
        self.by_descriptor: dict[int, Link] = {}
        self._peers = peers
        self._sockets = outbox.sockets
        self._outbox = outbox
        self._routes = routes
        self._inbound = inbound
        self._disco = disco
        self._timers = timers
        self._drops = counted
        self._epoll = epoll
        self._on_event = on_event
        self._clock = clock
        self._warned: set[str] = set()  # reasons that were logged as a warning

    def add(self, command: AddLink, now: float) -> None:
        """Take a link over."""
        role, home = self._routes.role, self._routes.home
        self.remove(command.number, now)
        handed, client, lively = command.handed, command.client, self._sockets.lively_links
        try:
            if client is not None and role is None:
                raise ValueError("a client's link to who is no relay")
            peer = None if command.peer is None else self._peers.by_number.get(command.peer)
            if command.peer is not None and (peer is None or peer.selector is None or command.shown is None):
                raise ValueError("a link to who is no peer")
            link = Link(command.number, handed, client, command.peer, command.carrier, self._clock, lively)
            self._epoll.register(link.descriptor, select.EPOLLIN)
        except (OSError, ValueError) as error:  # it ended on the way here
            logger.debug("link %d not taken: %s", command.number, error)
            handed.socket.close()
            self._drops.count(drops.LINK_LOST)
            self._on_event(LinkLost(command.number, "link_failed"))
            return
        self._sockets.links[link.endpoint] = link
        self.by_descriptor[link.descriptor] = link
        self._outbox.add_link(link)
        self._timers.arm(link, link.next_timeout())
        if peer is not None and peer.selector is not None and command.shown is not None:
            peer.selector.add_link(link.endpoint, command.shown, now)
            self._peers.touched.add(peer)
        elif client is None and home is not None:
            home.add_link(link.endpoint, now)
            self._disco.attend_home(now)
        elif client is not None and role is not None:
            role.queues.add_link(link)
            role.add_link(link.endpoint, client, now)
        if link.has_received:
            self._inbound.receive_link(link, now)

    def remove(self, number: int, now: float) -> None:
        """Close a link, in order as far as that takes no time; one that is not there is no mistake."""
        link = self._sockets.links.get(link_endpoint(number))
        if link is not None:
            link.end()
            self._forget(link, now)

    def remove_client(self, client: int, now: float) -> None:
        """The node has no business here any more."""
        for link in list(self._sockets.links.values()):
            if link.client == client:
                link.end()
                self._lost(link, "link_client_removed", now)

    def remove_peer(self, number: int, now: float) -> None:
        """The node is no peer any more, or has another key."""
        for link in list(self._sockets.links.values()):
            if link.peer == number:
                link.end()
                self._lost(link, "link_peer_removed", now)

    def ready(self, link: Link, mask: int, now: float) -> None:
        """epoll says that something can be done."""
        if mask & select.EPOLLOUT and link.flush():
            if link.client is not None and self._routes.role is not None:
                self._routes.role.queues.flush(link, now)
            else:
                self._outbox.flush(link)
        if mask & (select.EPOLLIN | select.EPOLLERR | select.EPOLLHUP):
            self._inbound.receive_link(link, now)

    def timeout(self, link: Link, now: float) -> None:
        """The link's deadline has come."""
        if self._sockets.links.get(link.endpoint) is link:
            link.handle_timeout(now)
            if now >= link.look_due:
                self._look(link, now)
            self._timers.arm(link, link.next_timeout())

    def write(self) -> None:
        """Write what was gathered, before the turn ends: somebody waits for it."""
        for link in self._sockets.lively_links:
            link.write()

    def end_turn(self, now: float) -> bool:
        """Write what was gathered, part with those that were lost, and look out for room where it lacks. Returns
        whether any was lost: others go other ways now."""
        home, lively, count = self._routes.home, self._sockets.lively_links, len(self._sockets.links)
        if home is not None:
            for endpoint in home.dead_links():
                dead = self._sockets.links.get(endpoint)
                if dead is not None:
                    dead.end()
                    self._lost(dead, "link_unanswered", now)
        while lively:
            link = lively.pop()
            if self._sockets.links.get(link.endpoint) is not link:
                continue
            link.write()
            if link.lost:
                self._lost(link, link.lost, now)
            elif link.blocked != link.watched_out:
                link.watched_out = link.blocked
                self._epoll.modify(link.descriptor, select.EPOLLIN | (select.EPOLLOUT if link.blocked else 0))
                self._timers.arm(link, link.next_timeout())
        return len(self._sockets.links) != count

    # --- inside -------------------------------------------------------------------------------------------------------

    def _look(self, link: Link, now: float) -> None:
        """Is the peer there, and is there something to say to it?"""
        link.look_due = now + LOOK
        peer = self._peer_of(link)
        if peer is None or peer.selector is None or not peer.selector.proven(link.endpoint):
            link.lose("link_unproven")
        elif now >= peer.selector.last_data + IDLE:
            link.lose("link_idle")

    def _peer_of(self, link: Link) -> Peer | None:
        return None if link.peer is None else self._peers.by_number.get(link.peer)

    def _lost(self, link: Link, reason: str, now: float) -> None:
        self._drops.count(drops.LINK_LOST)
        self._drops.count(reason)
        quiet = link.peer is not None or reason in self._warned  # a punched connection may fail: it is tried again
        level = logging.DEBUG if quiet else logging.WARNING
        self._warned.add(reason)
        logger.log(level, "link %d (%s) ended: %s", link.number, link.carrier, reason)
        self._forget(link, now)
        self._on_event(LinkLost(link.number, reason))

    def _forget(self, link: Link, now: float) -> None:
        role, home = self._routes.role, self._routes.home
        del self._sockets.links[link.endpoint]
        del self.by_descriptor[link.descriptor]
        self._epoll.unregister(link.descriptor)
        link.close()
        self._outbox.remove_link(link)
        if link.client is not None and role is not None:
            role.queues.remove_link(link)
            role.remove_link(link.endpoint)
        peer = self._peer_of(link)
        if peer is not None:
            if peer.selector is not None:
                peer.selector.remove_link(link.endpoint, now)
            self._peers.touched.add(peer)
        elif link.peer is None and home is not None:
            active, suspect = home.active, home.suspect
            home.remove_link(link.endpoint, now)
            self._disco.home_changed(active, suspect)
            self._disco.attend_home(now)
            self._timers.arm(home, home.next_timeout())
