"""Everything that goes to a peer: data, keepalives, handshakes. Seals with the session's key, sends along its path.

A packet that has no key or no path yet waits in the peer's staging. A path that refuses a datagram's size gets smaller
ones, and the record once more: nothing of the first try can be opened, so nothing arrives twice.
"""

from collections.abc import Iterable
from itertools import chain, islice
from typing import Final

from overlay.engine import drops
from overlay.engine.channel import Channel
from overlay.engine.drops import Drops
from overlay.engine.outbox import Outbox
from overlay.engine.peer import Peer
from overlay.engine.peers import Peers
from overlay.engine.routes import Routes
from overlay.engine.staging import Staging
from overlay.engine.udp import Buffers
from overlay.path.pmtu import MIN_PLPMTU
from overlay.wire.endpoint import Endpoint
from overlay.wire.record.buffers import Layout, run_shape
from overlay.wire.record.cut import cut, cutting_of
from overlay.wire.record.frames import FRAME_HEADER_SIZE, frames
from overlay.wire.record.reports import LossReport
from overlay.wire.wireguard.keypair import Keypair

_NOTHING: Final = memoryview(b"")


class Sender:
    def __init__(self, peers: Peers, outbox: Outbox, routes: Routes, counted: Drops, class_mask: int) -> None:
        """`class_mask`: what of the inner traffic class outer headers get: the ECN field, or the DSCP as well."""
        self._peers = peers
        self._outbox = outbox
        self._routes = routes
        self._drops = counted
        self._class_mask = class_mask

    def data(self, peer: Peer, plain: memoryview, count: int, now: float) -> None:
        """Send `count` frames (one record's worth, writable), or keep them until there is a key and a path.

        As far as outer headers show it, their packets have one traffic class.
        """
        first, second = plain[FRAME_HEADER_SIZE], plain[FRAME_HEADER_SIZE + 1]
        traffic_class = (second if first >> 4 == 4 else (first & 15) << 4 | second >> 4) & self._class_mask
        channel = peer.channel
        if channel is None or channel.turn is not now:
            channel = self.open(peer, now)
        if channel is not None:
            if peer.in_doubt is not None:
                self._keep(peer.in_doubt, plain, now)
            if len(plain) <= peer.sizer.room:
                self._send_record(peer, channel, plain, traffic_class, now)
            else:
                self._send_cut(peer, channel, plain, traffic_class, now)
        elif not self._send_packets(peer, plain, traffic_class, now):
            self._stage(peer, plain, now)
            return
        peer.tx_bytes += len(plain) - count * FRAME_HEADER_SIZE

    def keepalive(self, peer: Peer, keypair: Keypair, now: float) -> None:
        """An empty record, or an empty packet."""
        self._alone(peer, keypair, _NOTHING, now)

    def report(self, peer: Peer, report: LossReport, now: float) -> None:
        """Tell the peer what its records met with, if there is a key: it counts as a keepalive does."""
        keypair = peer.session.sending_keypair(now)
        if keypair is not None:
            self._alone(peer, keypair, memoryview(report.encode()), now)

    def _alone(self, peer: Peer, keypair: Keypair, plain: memoryview, now: float) -> None:
        """A record or packet that carries no data."""
        if peer.address is None:
            self._drops.count(drops.NO_PATH)
        elif peer.selector is not None:
            self._send_record(peer, self._channel(peer, keypair, peer.address), plain, 0, now)
        else:
            for buffers, segment in peer.transport_writers[keypair.local_index].write(plain):
                self._count(self._send_whole(peer, buffers, segment, 0))
        peer.session.data_sent(keypair, now, empty=True)

    def flush(self, peer: Peer, now: float) -> None:
        """There may be a key and a path now: send what waited, or ask for the key."""
        if not peer.staging or peer.address is None:
            return
        if peer.session.sending_keypair(now) is None:
            peer.session.request_handshake(now)
            return
        self.repeat(peer, peer.staging.take(), now)

    def repeat(self, peer: Peer, kept: Iterable[bytearray], now: float) -> None:
        """Send frames that were kept."""
        for frame in kept:
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

    def open(self, peer: Peer, now: float) -> Channel | None:
        """Data goes to the peer in this turn: tell its machines, once, and look up what sending takes, if that is not
        known.

        None: there is no key or no path, or the peer is a stock WireGuard peer.
        """
        self._peers.touched.add(peer)
        selector = peer.selector
        if selector is None:
            return None
        selector.data_sent(now)
        address = peer.address
        keypair = peer.session.sending_keypair(now) if address is not None else None
        if keypair is None or address is None:
            peer.channel = None
            return None
        channel = peer.channel
        if channel is None or channel.keypair is not keypair:
            channel = peer.channel = self._channel(peer, keypair, address)
        channel.turn = now
        peer.session.data_sent(keypair, now, empty=False)
        if peer.prefix:
            self._routes.relay_used(now)
        return channel

    def _channel(self, peer: Peer, keypair: Keypair, address: Endpoint) -> Channel:
        writer = peer.record_writers[keypair.local_index]
        layout = writer.buffers.layout(peer.datagram_size, len(peer.prefix))
        channel = Channel(keypair, writer, layout, peer.prefix, address, self._outbox.sockets.to(address))
        if peer.in_doubt is not None:
            channel.alone = -1
        return channel

    def _send_record(self, peer: Peer, channel: Channel, plain: memoryview, traffic_class: int, now: float) -> None:
        while True:
            layout = channel.layout
            size = channel.seal(plain, channel.keypair.next_counter(), layout, channel.prefix)
            message, name = channel.message, channel.name
            if size <= channel.limit and not self._outbox.busy and message is not None and name is not None:
                if not message.send(channel.descriptor, name, size, traffic_class):
                    return
                peer.channel = None  # what the socket can do may be other than it was
            outcome = self._outbox.send_record(layout, size, channel.address, traffic_class)
            if not outcome:
                return
            if outcome != drops.SEND_TOO_LONG:
                self._drops.count(outcome)
                return
            if not peer.shrink(now):
                for buffers, segment in layout.batches(size):
                    self._count(self._send_whole(peer, buffers, segment, traffic_class))
                return
            channel = peer.channel = self._channel(peer, channel.keypair, channel.address)
            channel.turn = now

    def _send_cut(self, peer: Peer, channel: Channel, plain: memoryview, traffic_class: int, now: float) -> None:
        """Frames that are too much for one record. The pieces of a superpacket go side by side, so that few calls send
        them; what is nothing like it, one by one."""
        cutting = cutting_of(plain, peer.sizer.room)
        shape = None
        if cutting is not None:
            shape = run_shape(cutting.size, channel.layout.datagram_size, channel.layout.stride)
        if cutting is None or shape is None or shape.padding > cutting.last - cutting.head:
            for piece in cut(plain, peer.sizer.room):
                self._send_record(peer, peer.channel or channel, piece, traffic_class, now)
            return
        layout = channel.writer.buffers.layout(shape.datagram_size, len(channel.prefix))
        pieces = cutting.pieces(shape.padding)
        size, left = cutting.size + shape.padding, cutting.count
        while left:
            number = min(left, shape.records)
            left -= number
            first = channel.keypair.next_counter(number)
            boxes = channel.writer.seal_run(islice(pieces, number), first, number, size, layout, channel.prefix)
            outcome = self._send_boxes(channel, layout, boxes, traffic_class)
            if outcome == drops.SEND_TOO_LONG:
                # What else is cut was to have the same size: all of it goes as records that are fitted to the path.
                again = channel.writer.unseal_run(first, size, layout, boxes)
                for piece in chain(map(memoryview, again), pieces):
                    self._send_record(peer, peer.channel or channel, piece, traffic_class, now)
                return
            if outcome:
                self._drops.count(outcome, number)

    def _send_boxes(self, channel: Channel, layout: Layout, size: int, traffic_class: int) -> str:
        """What was sealed into `layout`, `size` bytes; a batch at the most goes in one call."""
        sock, name = channel.sock, channel.name
        if (
            sock is not None
            and name is not None
            and not self._outbox.busy
            and size <= sock.record_limit(layout)
            and (message := sock.message(layout)) is not None
            and not message.send(channel.descriptor, name, size, traffic_class)
        ):
            return ""
        return self._outbox.send_record(layout, size, channel.address, traffic_class)

    def _send_packets(self, peer: Peer, plain: memoryview, traffic_class: int, now: float) -> bool:
        """To a stock WireGuard peer: each packet in a message of its own. False: there is no key, or no endpoint."""
        keypair = peer.session.sending_keypair(now) if peer.selector is None and peer.address is not None else None
        if keypair is None:
            return False
        for buffers, segment in peer.transport_writers[keypair.local_index].write(plain):
            self._count(self._send_whole(peer, buffers, segment, traffic_class))
        peer.session.data_sent(keypair, now, empty=not plain)
        return True

    def _stage(self, peer: Peer, plain: memoryview, now: float) -> None:
        dropped = self._keep(peer.staging, plain, now)
        if dropped:
            self._drops.count(drops.STAGING_FULL, dropped)
        if peer.address is not None:
            peer.session.request_handshake(now)

    def _keep(self, staging: Staging, plain: memoryview, now: float) -> int:
        """→ how many older ones had to go."""
        # One by one: a record of one datagram is taken before the peer has proof of where we are, larger ones not.
        return sum(staging.add(bytearray(plain[start:end]), now) for start, end in frames(plain))

    def _send_whole(self, peer: Peer, buffers: Buffers, segment: int, traffic_class: int) -> str:
        """What cannot be cut smaller: IP may fragment it. Nobody answers our probes for it, so that with DF it would be
        lost on a narrow path. What passes everywhere is spared the two system calls for that."""
        if peer.address is None:
            return drops.NO_PATH
        if not segment and sum(map(len, buffers)) <= MIN_PLPMTU:
            return self._outbox.send(buffers, segment, peer.address, traffic_class)
        return self._outbox.send_fragmented(buffers, segment, peer.address, traffic_class)

    def _count(self, outcome: str) -> None:
        if outcome:
            self._drops.count(outcome)
