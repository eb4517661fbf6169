"""Everything that goes to a peer: data, keepalives, handshakes. Seals with the session's key, sends along its path.

A packet that has no key or no path yet waits in the peer's staging. A path that refuses a datagram's size gets smaller
ones, and the record once more: nothing of the first try can be opened, so nothing arrives twice.
"""

from typing import Final

from overlay.engine import drops
from overlay.engine.drops import Drops
from overlay.engine.outbox import Outbox
from overlay.engine.peer import Peer
from overlay.engine.peers import Peers
from overlay.engine.routes import Routes
from overlay.engine.transport import TransportWriter
from overlay.engine.udp import Buffers
from overlay.wire.record.frames import FRAME_HEADER_SIZE, frames
from overlay.wire.wireguard.keypair import Keypair

_NOTHING: Final = memoryview(b"")


class Sender:
    def __init__(self, peers: Peers, outbox: Outbox, routes: Routes, counted: Drops) -> None:
        self._peers = peers
        self._outbox = outbox
        self._routes = routes
        self._drops = counted

    def data(self, peer: Peer, plain: memoryview, count: int, now: float) -> None:
        """Send `count` frames (one record's worth), or keep them until there is a key and a path."""
        self._peers.touched.add(peer)
        selector = peer.selector
        if selector is not None:
            selector.data_sent(now)
        keypair = peer.session.sending_keypair(now) if peer.address is not None else None
        if keypair is None:
            # One by one: a record of one datagram is taken before the peer has proof of where we are, larger ones not.
            dropped = sum(peer.staging.add(bytes(plain[start:end])) for start, end in frames(plain))
            if dropped:
                self._drops.count(drops.STAGING_FULL, dropped)
            if peer.address is not None:
                peer.session.request_handshake(now)
            return
        self._seal(peer, keypair, plain, now)
        peer.tx_bytes += len(plain) - count * FRAME_HEADER_SIZE
        peer.session.data_sent(keypair, now, empty=False)
        if peer.prefix:
            self._routes.relay_used(now)

    def keepalive(self, peer: Peer, keypair: Keypair, now: float) -> None:
        """An empty record, or an empty packet."""
        if peer.address is None:
            self._drops.count(drops.NO_PATH)
        else:
            self._seal(peer, keypair, _NOTHING, now)
        peer.session.data_sent(keypair, now, empty=True)

    def flush(self, peer: Peer, now: float) -> None:
        """There may be a key and a path now: send what waited, or ask for the key."""
        if not peer.staging or peer.address is None:
            return
        if peer.session.sending_keypair(now) is None:
            peer.session.request_handshake(now)
            return
        for frame in peer.staging.take():
            plain = memoryview(frame)
            self.data(peer, plain, len(frames(plain)), now)

    def handshake(self, peer: Peer, datagram: bytes, now: float) -> None:
        """An initiation of ours, to wherever the peer is believed to be."""
        peer.handshake_sent(datagram, now)
        if peer.address is None:
            self._drops.count(drops.NO_PATH)
            return
        self._count(self._outbox.send((peer.prefix, datagram), 0, peer.address))

    def again(self, peer: Peer) -> None:
        """Repeat the initiation that waits for its response: the path changed under it, or it may be lost. Should both
        arrive, the peer takes one."""
        if peer.handshake is not None and peer.address is not None:
            self._count(self._outbox.send((peer.prefix, peer.handshake), 0, peer.address))

    def _seal(self, peer: Peer, keypair: Keypair, plain: memoryview, now: float) -> None:
        writer = peer.writers[keypair.local_index]
        if isinstance(writer, TransportWriter):
            for buffers, segment in writer.write(plain):
                self._count(self._send_whole(peer, buffers, segment))
            return
        send, address = self._outbox.send, peer.address
        if address is None:
            self._drops.count(drops.NO_PATH)
            return
        while True:
            runs = writer.write(plain, keypair.next_counter(), peer.datagram_size, peer.prefix)
            outcome = ""
            for buffers, segment in runs:
                outcome = send(buffers, segment, address)
                if outcome:
                    break  # the record is lost; its other fragments would be in vain
            if not outcome:
                return
            if outcome != drops.SEND_TOO_LONG:
                self._drops.count(outcome)
                return
            if not peer.shrink(now):
                for buffers, segment in runs:
                    self._count(self._send_whole(peer, buffers, segment))
                return

    def _send(self, peer: Peer, buffers: Buffers, segment: int) -> str:
        if peer.address is None:
            return drops.NO_PATH
        return self._outbox.send(buffers, segment, peer.address)

    def _send_whole(self, peer: Peer, buffers: Buffers, segment: int) -> str:
        """What cannot be cut smaller: where the path refuses it, IP may fragment it."""
        outcome = self._send(peer, buffers, segment)
        if outcome == drops.SEND_TOO_LONG and peer.address is not None:
            outcome = self._outbox.send_fragmented(buffers, segment, peer.address)
        return outcome

    def _count(self, outcome: str) -> None:
        if outcome:
            self._drops.count(outcome)
