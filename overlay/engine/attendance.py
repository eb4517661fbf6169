"""What a peer's state machines ask for, done: session and path events, pings, staged packets, the timer.

Called for every peer that something happened to, once per turn of the loop, and at once after a handshake message.
"""

import time
from collections.abc import Callable

from overlay.engine import drops
from overlay.engine.api import Event, HandshakeCompleted, PathChanged, WantTcp
from overlay.engine.drops import Drops
from overlay.engine.exchange import DiscoExchange
from overlay.engine.peer import Peer
from overlay.engine.peers import Peers
from overlay.engine.routes import Routes
from overlay.engine.sender import Sender
from overlay.engine.timers import Timers
from overlay.engine.unreachable import Unreachable
from overlay.path import types as path
from overlay.wire.endpoint import Endpoint
from overlay.wire.wireguard import events

_ROUNDS = 4
"""Times that what one event sets off may bring others; what is left then waits for the next turn."""


class Attendance:
    def __init__(
        self,
        peers: Peers,
        sender: Sender,
        disco: DiscoExchange,
        routes: Routes,
        timers: Timers,
        unreachable: Unreachable,
        counted: Drops,
        on_event: Callable[[Event], None],
    ) -> None:
        self._peers = peers
        self._sender = sender
        self._disco = disco
        self._routes = routes
        self._timers = timers
        self._unreachable = unreachable
        self._drops = counted
        self._on_event = on_event

    def attend(self, peer: Peer, now: float) -> None:
        """Drain the peer's session and selector, then arm its timer."""
        self._observe(peer, now)
        for _ in range(_ROUNDS):
            # The session first: a new path sends what waits, and needs the new key's writer for that.
            on_session = self._attend_session(peer, now)
            on_path = self._attend_path(peer, now)
            if not on_path and not on_session:
                break
        mtu = peer.mtu
        if mtu is not None and (mtu.waiting or (mtu.asleep and mtu.total != peer.tx_bytes)):
            mtu.data_sent(peer.tx_bytes, now)
            self._disco.probe(peer, now)
            peer.follow_mtu()
        self._timers.arm(peer, peer.next_timeout())

    def reroute(self, peer: Peer, now: float) -> None:
        """A relay came, went or moved: the peer's way may be another now."""
        if self._routes.update(peer, now):
            self._way_changed(peer, now)
        self._peers.touched.add(peer)

    def roamed(self, peer: Peer, source: Endpoint, now: float) -> None:
        """A stock WireGuard peer is at `source` now."""
        if peer.set_route(source, b"", now):
            peer.path_since = time.time()
            self._way_changed(peer, now)

    def timeout(self, peer: Peer, now: float) -> None:
        """The peer's deadline has come."""
        peer.session.handle_timeout(now)
        if peer.selector is not None:
            peer.selector.handle_timeout(now)
        if peer.mtu is not None:
            peer.mtu.handle_timeout(peer.tx_bytes, now)
            peer.follow_mtu()
        if peer.repeat_due(now):
            self._sender.again(peer)
        gives_up = peer.gives_up_at()
        if gives_up is not None and gives_up <= now:
            self._give_up(peer, drops.NO_PATH if peer.address is None else drops.STAGED_GIVEN_UP, now)
        for reader in peer.readers.values():
            deadline = reader.next_timeout()
            if deadline is not None and deadline <= now:
                reader.expire(now)
        self._observe(peer, now)
        report = peer.meter.take_report(now)
        if report is not None:
            self._sender.report(peer, report, now)
        self.attend(peer, now)

    def _observe(self, peer: Peer, now: float) -> None:
        """Have the peer's loss meter see what its readers did."""
        for index, reader in peer.readers.items():
            if reader.taken or reader.lost:
                taken, reader.taken = reader.taken, 0
                peer.meter.observe(index, taken, now)

    def _attend_path(self, peer: Peer, now: float) -> bool:
        selector = peer.selector
        if selector is None:
            return False
        pings = selector.pings_to_send()
        for endpoint, txid in pings:
            self._disco.ping(peer.number, endpoint, txid)
        called = selector.call_due()
        if called:
            self._disco.calls.call(peer, now)
        changed = False
        for event in selector.events():
            if isinstance(event, path.WantTcp):
                self._on_event(WantTcp(peer.number, self._disco.calls.half_rtt(peer.number)))
            else:
                changed = True
        if changed:
            in_doubt = peer.doubt(False)
            self._routes.follow(peer, now)
            self._way_changed(peer, now)
            # A flow that heard nothing has sent again, and waits ever longer until it does so once more: what it sent
            # while the path was in doubt goes by the new one.
            self._sender.repeat(peer, in_doubt, now)
        peer.doubt(selector.doubtful)
        return bool(pings or called or changed)

    def _way_changed(self, peer: Peer, now: float) -> None:
        self._on_event(PathChanged(peer.number, peer.path_snapshot()))
        self._sender.again(peer)
        self._sender.flush(peer, now)

    def _attend_session(self, peer: Peer, now: float) -> bool:
        found = peer.session.events()
        for event in found:
            match event:
                case events.SendHandshake(datagram):
                    self._sender.handshake(peer, datagram, now)
                case events.SendKeepalive(keypair):
                    if peer.staging:
                        self._sender.flush(peer, now)  # confirms the key as well, and has something to say
                    else:
                        self._sender.keepalive(peer, keypair, now)
                case events.KeypairAdded(keypair):
                    self._peers.add_keypair(peer, keypair)
                case events.KeypairRemoved(index):
                    self._peers.remove_keypair(peer, index, now)
                case events.HandshakeCompleted():
                    peer.handshake_over()
                    peer.channel = None  # another key is the current one
                    self._on_event(HandshakeCompleted(peer.number))
                    self._sender.flush(peer, now)
                case events.DropStaged():
                    peer.handshake_over()
                    self._give_up(peer, drops.STAGED_GIVEN_UP, now)
        return bool(found)

    def _give_up(self, peer: Peer, reason: str, now: float) -> None:
        """What waits for this peer goes nowhere: its senders are told."""
        frames = peer.staging.take()
        if frames:
            self._drops.count(reason, len(frames))
        for frame in frames:
            self._unreachable.answer(memoryview(frame), now)
