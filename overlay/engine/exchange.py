"""Disco on the wire: pings out, pongs back, and what either means for peers, the home relay, and our clients.

Who may make us work is bounded: so many datagrams a second are opened, whoever sends them. A ping is answered to where
it came from, and with no more bytes than it had.
"""

from collections.abc import Callable
from typing import Final

from overlay.engine import drops
from overlay.engine.api import Event, Observed, PingReply, RelayChanged
from overlay.engine.calls import Calls
from overlay.engine.drops import Drops
from overlay.engine.echoes import Echoes
from overlay.engine.link import is_link
from overlay.engine.outbox import Outbox
from overlay.engine.peer import Peer
from overlay.engine.peers import Peers
from overlay.engine.routes import Routes
from overlay.errors import RemoteProtocolError
from overlay.path.budget import Budget
from overlay.wire.disco import TXID_SIZE, CallMe, DiscoKey, Ping, Pong, sender
from overlay.wire.endpoint import Endpoint

RATE: Final = 2000.0
BURST: Final = 500.0
"""Disco datagrams opened per second, and at once: 20 µs each, 4 % of a core. A relay's client makes one per 25 s."""

_NONCE_SIZE: Final = 24
_MAX_KEYS: Final = 4096

_NO_ADDRESS: Final[Endpoint] = ("192.0.0.8", 1)
"""In the place of an endpoint where there is none, on a link: the address that nobody has (RFC 7600)."""


class DiscoExchange:
    """Holds the keys that it has made; `private_key` is ours, 32 bytes, clamped."""

    def __init__(
        self,
        private_key: bytes,
        number: int,
        peers: Peers,
        outbox: Outbox,
        routes: Routes,
        counted: Drops,
        random_bytes: Callable[[int], bytes],
        on_event: Callable[[Event], None],
    ) -> None:
        self._private_key = private_key
        self._number = number
        self._peers = peers
        self._outbox = outbox
        self._routes = routes
        self._drops = counted
        self._random_bytes = random_bytes
        self._on_event = on_event
        self._keys: dict[bytes, DiscoKey] = {}  # by public key
        self._budget = Budget(RATE, BURST)
        self._echoes = Echoes()
        self.probe_answered: Callable[[Peer, bytes, Endpoint, float], bool] = lambda peer, txid, source, now: False
        """Was this pong asked for by a probe of many (`Punches`)?"""
        self.calls = Calls(peers, counted, random_bytes, on_event, self._send_relayed)

    def ping(self, number: int, endpoint: Endpoint, txid: bytes) -> None:
        """Ask whether node `number` is at `endpoint`."""
        if not is_link(endpoint) and self._peers.is_inner(endpoint):
            self._drops.count(drops.INNER_ENDPOINT)
            return
        self._send(number, Ping(txid), endpoint)

    def is_from(self, number: int, datagram: bytes) -> bool:
        """Is this an authentic type 7 of node `number`?"""
        key = self._key(number)
        try:
            return key is not None and sender(datagram) == number and bool(key.open(datagram))
        except RemoteProtocolError as error:
            self._drops.count(error.reason)
            return False

    def sealed_ping(self, number: int, endpoint: Endpoint, txid: bytes) -> bytes | None:
        """A ping to send to that endpoint; None: it is inside the network, or the node is no peer."""
        key = self._key(number)
        if key is None or self._peers.is_inner(endpoint):
            return None
        return key.seal(Ping(txid), self._number, self._random_bytes(_NONCE_SIZE))

    def echo(self, peer: Peer, reply: PingReply, now: float) -> bool:
        """Ask for one answer on the way that data goes. False: there is no such way."""
        path, key = peer.path_snapshot(), self._key(peer.number)
        if path is None or key is None or peer.address is None:
            return False
        txid = self._random_bytes(TXID_SIZE)
        datagram = key.seal(Ping(txid), self._number, self._random_bytes(_NONCE_SIZE))
        self._echoes.asked(peer.number, txid, path, reply, now)
        outcome = self._outbox.send((peer.prefix, datagram), 0, peer.address)
        if outcome:
            self._drops.count(outcome)
        return True

    def probe(self, peer: Peer, now: float) -> None:
        """Send what the search for the path's datagram size asks for, the way that data goes."""
        mtu, key = peer.mtu, self._key(peer.number)
        if mtu is None or key is None or peer.address is None:
            return
        while probes := mtu.probes_to_send():  # a refusal may ask for others, each time smaller
            for size, txid in probes:
                ping = Ping(txid, size - len(peer.prefix))
                datagram = key.seal(ping, self._number, self._random_bytes(_NONCE_SIZE))
                outcome = self._outbox.send((peer.prefix, datagram), 0, peer.address)
                if outcome == drops.SEND_TOO_LONG:
                    mtu.refused(size, now)
                elif outcome:
                    self._drops.count(outcome)

    def receive(self, datagram: memoryview, source: Endpoint, now: float) -> None:
        """Take a type 7. Raises `RemoteProtocolError` for one that is not authentic."""
        if not self._budget.take(now):
            self._drops.count(drops.DISCO_RATE)
            return
        number = sender(datagram)
        key = self._key(number)
        if key is None:
            self._drops.count(drops.DISCO_STRANGER)
            return
        message = key.open(datagram)
        if isinstance(message, Ping):
            self._ping_received(number, message, source, now)
        elif isinstance(message, Pong):
            self._pong_received(number, message, source, now)
        else:
            self._drops.count(drops.DISCO_NOT_RELAYED)

    def receive_relayed(self, datagram: memoryview, number: int, now: float) -> None:
        """Take a type 7 that node `number` sent through a relay: a call, or a probe of that path's size, or the answer
        to one; the last two say nothing of where the node is. Raises `RemoteProtocolError` if it is not authentic."""
        if not self._budget.take(now):
            self._drops.count(drops.DISCO_RATE)
            return
        peer = self._peers.by_number.get(number)
        key = self._key(number) if peer is not None and sender(datagram) == number else None
        route = self._routes.relay(number, now)
        if peer is None or key is None or route is None:
            self._drops.count(drops.DISCO_STRANGER)
            return
        message = key.open(datagram)
        self._routes.relay_heard()
        if isinstance(message, Ping):
            address, prefix = route
            answer = key.seal(Pong(message.txid, _shown(address)), self._number, self._random_bytes(_NONCE_SIZE))
            outcome = self._outbox.send((prefix, answer), 0, address)
            if outcome:
                self._drops.count(outcome)
        elif isinstance(message, CallMe):
            self.calls.received(peer, message, now)
        elif not self._probe_answered(peer, message, now):
            self._drops.count(drops.DISCO_UNASKED)

    def _send_relayed(self, peer: Peer, call: CallMe, now: float) -> bool:
        key, route = self._key(peer.number), self._routes.relay(peer.number, now)
        if key is None or route is None:
            return False
        address, prefix = route
        outcome = self._outbox.send((prefix, key.seal(call, self._number, self._random_bytes(_NONCE_SIZE))), 0, address)
        if outcome:
            self._drops.count(outcome)
        return True

    def attend_home(self, now: float) -> None:
        """Do what the home relay's machine wants done."""
        home = self._routes.home
        if home is None:
            return
        active, suspect = home.active, home.suspect
        home.handle_timeout(now)
        for endpoint, txid in home.pings_to_send():
            self.ping(self._routes.home_number, endpoint, txid)
        self.home_changed(active, suspect)

    def home_changed(self, active: Endpoint | None, suspect: bool) -> None:
        """The home relay's machine had its say; what was before it."""
        home = self._routes.home
        if home is None or (home.active, home.suspect) == (active, suspect):
            return
        if home.active != active:
            self._routes.all_moved = True
        self._on_event(RelayChanged(home.active, home.suspect))

    def _ping_received(self, number: int, ping: Ping, source: Endpoint, now: float) -> None:
        self._send(number, Pong(ping.txid, _shown(source)), source)
        role = self._routes.role
        if role is not None and number in role.clients:
            before = role.clients[number].address
            txid = role.ping_received(number, source, now)
            if txid is not None:
                self._send(number, Ping(txid), source)
            if role.clients[number].address != before:
                self._routes.moved.add(number)
            return
        peer = self._peers.by_number.get(number)
        if peer is not None and peer.selector is not None:
            if is_link(source) and not peer.selector.has_link(source):
                return  # no place where a peer could be
            peer.selector.ping_received(source, now)
            self._peers.touched.add(peer)

    def _pong_received(self, number: int, pong: Pong, source: Endpoint, now: float) -> None:
        routes = self._routes
        if routes.home is not None and number == routes.home_number:
            active, suspect, observed = routes.home.active, routes.home.suspect, routes.home.observed
            if routes.home.pong(source, pong.txid, pong.observed, now):
                self.home_changed(active, suspect)
                if routes.home.observed is not None and routes.home.observed != observed:
                    self._on_event(Observed(routes.home.observed))
                return
        if routes.role is not None and routes.role.pong_received(number, source, pong.txid, now):
            routes.moved.add(number)
            return
        peer = self._peers.by_number.get(number)
        if peer is not None and self._probe_answered(peer, pong, now):
            return
        if peer is not None and self.probe_answered(peer, pong.txid, source, now):
            return
        if (
            peer is None
            or peer.selector is None
            or not peer.selector.pong_received(source, pong.txid, pong.observed, now)
        ):
            self._drops.count(drops.DISCO_UNASKED)
            return
        self._peers.touched.add(peer)

    def _probe_answered(self, peer: Peer, pong: Pong, now: float) -> bool:
        """Whichever way the answer came: the probe went the way of data, and nobody else saw its id."""
        if self._echoes.answered(peer.number, pong.txid, now):
            return True
        if not peer.probe_answered(pong.txid, now):
            return False
        self._peers.touched.add(peer)  # there may be another probe to send
        return True

    def _send(self, number: int, message: Ping | Pong, endpoint: Endpoint) -> None:
        key = self._key(number)
        if key is None:
            return
        datagram = key.seal(message, self._number, self._random_bytes(_NONCE_SIZE))
        outcome = self._outbox.send((datagram,), 0, endpoint)
        if outcome:
            self._drops.count(outcome)

    def _key(self, number: int) -> DiscoKey | None:
        """The key with that node; None: a stranger. Raises `RemoteProtocolError` for a public key of low order."""
        public_key = self._public_key(number)
        if public_key is None:
            return None
        key = self._keys.get(public_key)
        if key is None:
            if len(self._keys) >= _MAX_KEYS:
                self._keys.clear()
            key = self._keys[public_key] = DiscoKey(self._private_key, public_key)
        return key

    def _public_key(self, number: int) -> bytes | None:
        role = self._routes.role
        if role is not None and number in role.clients:
            return role.clients[number].public_key
        peer = self._peers.by_number.get(number)
        if peer is not None and peer.selector is not None:
            return peer.config.public_key
        if self._routes.home is not None and number == self._routes.home_number:
            return self._routes.home_key
        return None


def _shown(endpoint: Endpoint) -> Endpoint:
    """What a pong says of where its ping came from."""
    return _NO_ADDRESS if is_link(endpoint) else endpoint
