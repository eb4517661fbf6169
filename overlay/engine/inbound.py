"""Sockets → TUN, peers and clients: tells the message types apart and has each run dealt with as a run.

What reaches the kernel has been authenticated, comes from an inner address that is the peer's, and has offload fields
that its own headers bear out. What is not authentic costs a counter and, where it asks for curve arithmetic, a share of
a bounded budget.
"""

import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from overlay.engine import drops
from overlay.engine.api import Event, Foreign
from overlay.engine.attendance import Attendance
from overlay.engine.delivery import Delivery
from overlay.engine.drops import Drops
from overlay.engine.exchange import DiscoExchange
from overlay.engine.faults import Faults
from overlay.engine.link import Link, is_link
from overlay.engine.outbox import Outbox
from overlay.engine.peer import Peer, Receiver
from overlay.engine.peers import Peers
from overlay.engine.relay_queue import RUNS_TAKEN_PER_TURN
from overlay.engine.routes import Routes
from overlay.engine.run import Run
from overlay.engine.tun import Tun
from overlay.engine.udp import UdpSocket
from overlay.errors import RemoteProtocolError
from overlay.path.budget import Budget
from overlay.wire.demux import QUIC_FIRST, kind_of
from overlay.wire.disco import DISCO_TYPE
from overlay.wire.disco import sender as disco_sender
from overlay.wire.endpoint import Endpoint
from overlay.wire.packet import ecn, virtio
from overlay.wire.packet.datagrams import merge
from overlay.wire.packet.join import join_padded
from overlay.wire.record import fragments, marks
from overlay.wire.record.frames import LENGTH_SIZE, frames, single_frames
from overlay.wire.record.reader import RecordReader
from overlay.wire.record.reports import is_report, parse_report
from overlay.wire.relay import RELAY_HEADER_SIZE, RELAY_TYPE, header_runs, parse_header, tickets_equal
from overlay.wire.stream.framing import Frame
from overlay.wire.wireguard import transport
from overlay.wire.wireguard.device import Device

RUNS_PER_TURN: Final = 8
"""Runs taken from one socket before the others get their turn: 512 KiB, or about 0.8 ms, at most."""

HANDSHAKE_RATE: Final = 4000.0
HANDSHAKE_BURST: Final = 500.0
"""Handshake messages looked at per second, and at once. Those that are junk, or that get a cookie instead of an answer,
cost some 20 µs; how many get curve arithmetic is the device's own, much lower bound."""

READS_PER_TURN: Final = 2
"""Reads from one link before the others get their turn: 256 KiB at most."""

FOREIGN_RATE: Final = 4000.0
FOREIGN_BURST: Final = 2000.0
"""Foreign datagrams handed on per second, and at once: a thousand nodes that connect again send some 4000. Bounds what
waits for who deals with them, 6 MB for each second that they are late."""

EXPECTED_RATE: Final = 40000.0
EXPECTED_BURST: Final = 4000.0
"""The same for those of sources that are known to send much: 0.4 Gb/s in the smallest that QUIC fills, more than who
deals with them can. A flood that bears such an address fills only this, and QUIC sends again."""

STUN_RATE: Final = 2000.0
STUN_BURST: Final = 2000.0
"""The same for STUN, with a budget of its own: a flood of it is no reason for QUIC to wait. A thousand nodes that start
together send some ten requests each, and ask again for what was let fall."""

_unpack_header = fragments.FRAGMENT_HEADER.unpack_from
_STUN_REQUEST: Final = 0
_INITIATION: Final = 1  # and STUN's responses
_COOKIE_REPLY: Final = 3


class Inbound:
    def __init__(
        self,
        device: Device,
        tun: Tun | None,
        peers: Peers,
        outbox: Outbox,
        routes: Routes,
        disco: DiscoExchange,
        attendance: Attendance,
        counted: Drops,
        faults: Faults,
        number: int,
        on_event: Callable[[Event], None],
    ) -> None:
        self._device = device
        self._peers = peers
        self._outbox = outbox
        self._routes = routes
        self._disco = disco
        self._attendance = attendance
        self._drops = counted
        self._faults = faults
        self._number = number
        self._delivery = delivery = Delivery(tun, peers, counted)
        self._join_tcp, self._join_udp = delivery.join_tcp, delivery.join_udp
        self._on_event = on_event
        self._budget = Budget(HANDSHAKE_RATE, HANDSHAKE_BURST)
        self._foreign_budget = Budget(FOREIGN_RATE, FOREIGN_BURST)
        self._expected: set[Endpoint] = set()
        self._expected_budget = Budget(EXPECTED_RATE, EXPECTED_BURST)
        self._stun_budget = Budget(STUN_RATE, STUN_BURST)
        self._traffic_class = 0
        """Of the run at hand: DSCP and ECN of its outer headers."""

    def receive(self, sock: UdpSocket, now: float, idle: bool) -> None:
        """Take what the socket holds, up to a turn's share; one run if we were idle."""
        share = 1 if idle else RUNS_PER_TURN if self._routes.role is None else RUNS_TAKEN_PER_TURN
        held = sock.begin()
        while share > 0 or held.followed:
            share -= 1
            try:
                run = sock.receive()
            except OSError:
                self._drops.count(drops.RECEIVE_ERROR)
                continue
            if run is None:
                return
            self._take(run, now)
            if run.drained and not run.followed:
                return

    def taken(self, run: memoryview, segment: int, source: Endpoint, traffic_class: int, now: float) -> None:
        """Deal with a run that was read elsewhere."""
        self._traffic_class = traffic_class
        self.run(run, segment, source, now)

    def _take(self, run: Run, now: float) -> None:
        self._traffic_class = run.traffic_class
        try:
            expected = run.whole and self._record(run, now)
        except Exception as error:
            self._faults.caught(error)
            return
        if expected:
            run.hit()
        else:
            self.run(run.joined(), run.segment, run.source, now)

    def run(self, batch: memoryview, segment: int, source: Endpoint, now: float) -> None:
        """Deal with a run as a socket gave it: datagrams of `segment` bytes, the last maybe shorter. Never raises on
        what a peer sent. Writes into `batch` where it forwards."""
        if batch and batch[0] == RELAY_TYPE:
            for start, end in header_runs(batch, segment):
                run = batch[start:end]
                if run[0] == RELAY_TYPE:
                    with self._faults:
                        self._relayed(run, segment, source, now)
                else:
                    self.run(run, segment, source, now)
            return
        for start, end, kind, index in fragments.runs(batch, segment):
            run = batch[start:end]
            if index >= 0:
                with self._faults:
                    self._transport(run, segment, 0, kind, index, source, now)
            elif kind == RELAY_TYPE:
                self.run(run, segment, source, now)
            elif kind == DISCO_TYPE:
                for datagram in _datagrams(run, segment):
                    with self._faults:
                        self._disco.receive(datagram, source, now)
            elif _INITIATION <= kind <= _COOKIE_REPLY:
                for datagram in _datagrams(run, segment):
                    with self._faults:
                        if kind != _INITIATION or not self._stun(datagram, source, now):
                            self._handshake(datagram, source, None, now)
            elif kind >= QUIC_FIRST:
                self._foreign(run, segment, source, now)
            elif kind == _STUN_REQUEST:
                for datagram in _datagrams(run, segment):
                    if not self._stun(datagram, source, now):
                        self._drops.count(drops.UNKNOWN_TYPE)
            else:
                self._drops.count(drops.UNKNOWN_TYPE, _count(run, segment))

    def receive_link(self, link: Link, now: float) -> None:
        """Take what the link holds, up to a turn's share."""
        for _ in range(READS_PER_TURN):
            found = link.receive(now)
            if found is None:
                return
            self.linked(found, link, now)
            if link.drained:
                return

    def linked(self, found: Iterable[Frame], link: Link, now: float) -> None:
        """Deal with what was read from a link."""
        self._traffic_class = 0
        for run, segment in found:
            with self._faults:
                self._linked(run, segment, link, now)

    def _linked(self, run: memoryview, segment: int, link: Link, now: float) -> None:
        """A run that came by a link: relayed messages, and disco between us and who is at its other end; by a link to a
        peer, what else would come by UDP."""
        if link.peer is not None:
            self._from_peer(run, segment, link, link.peer, now)
            return
        for start, end in header_runs(run, segment):
            part = run[start:end]
            if part[0] == RELAY_TYPE:
                with self._faults:
                    self._relayed(part, segment, link.endpoint, now)
                continue
            owner = self._routes.home_number if link.client is None else link.client
            for datagram in _datagrams(part, segment):
                with self._faults:
                    if datagram[0] != DISCO_TYPE:
                        self._drops.count(drops.LINK_BAD_TYPE)
                    elif disco_sender(datagram) != owner:
                        self._drops.count(drops.LINK_STRANGER)
                    else:
                        self._disco.receive(datagram, link.endpoint, now)

    def _from_peer(self, run: memoryview, segment: int, link: Link, number: int, now: float) -> None:
        """A run that came by the link to a peer, who may not be the one that is there: all is checked as if it had come
        by UDP."""
        for start, end, kind, index in fragments.runs(run, segment):
            part = run[start:end]
            if index >= 0:
                receiver = self._peers.receivers.get(index)
                if receiver is not None and receiver.peer.number != number:
                    self._drops.count(drops.LINK_STRANGER, _count(part, segment))
                    continue
                with self._faults:
                    self._transport(part, segment, 0, kind, index, link.endpoint, now)
                continue
            for datagram in _datagrams(part, segment):
                with self._faults:
                    if _INITIATION <= kind <= _COOKIE_REPLY:
                        self._handshake(datagram, link.endpoint, None, now)
                    elif kind != DISCO_TYPE:
                        self._drops.count(drops.LINK_BAD_TYPE)
                    elif disco_sender(datagram) != number:
                        self._drops.count(drops.LINK_STRANGER)
                    else:
                        self._disco.receive(datagram, link.endpoint, now)

    def _foreign(self, run: memoryview, segment: int, source: Endpoint, now: float) -> None:
        """Another protocol's datagrams: hand them on as they were sent, all at once."""
        budget = self._expected_budget if source in self._expected else self._foreign_budget
        taken = tuple(bytes(datagram) for datagram in _datagrams(run, segment) if budget.take(now))
        if taken:
            self._on_event(Foreign(taken, source))
        if missing := _count(run, segment) - len(taken):
            self._drops.count(drops.FOREIGN_RATE, missing)

    def expect_foreign(self, endpoint: Endpoint, *, expected: bool) -> None:
        """As `api.ExpectForeign`."""
        if expected:
            self._expected.add(endpoint)
        else:
            self._expected.discard(endpoint)

    def _stun(self, datagram: memoryview, source: Endpoint, now: float) -> bool:
        """Hand it on if it is STUN's; False: it is not."""
        if kind_of(datagram) != "stun":
            return False
        if self._stun_budget.take(now):
            self._on_event(Foreign((bytes(datagram),), source))
        else:
            self._drops.count(drops.STUN_RATE)
        return True

    def _record(self, run: Run, now: float) -> bool:
        """Deal with a run that is one whole record, as nearly all are at speed, or records side by side, as where
        datagrams get lost. False, and nothing happened: it is something else, or not authentic; look closer.

        What only one header is asked for here, the AEAD bears out for all: box bytes of another record, of another
        order or of another key would not open.
        """
        headers, offset = run.headers, run.offset
        kind, index, count, reserved, receiver_index, counter = _unpack_header(headers, offset)
        if kind != fragments.MESSAGE_TYPE:
            return False
        receiver = self._peers.receivers.get(receiver_index)
        if receiver is None or now >= receiver.expires:
            return False
        peer, reader = receiver.peer, receiver.record
        selector = peer.selector
        if reader is None or selector is None:
            return False
        source: Endpoint | None = run.source
        if offset:
            if headers[0] != RELAY_TYPE:
                return False
            header, routes = parse_header(headers[: offset + fragments.FRAGMENT_HEADER_SIZE]), self._routes
            if routes.role is not None or routes.home is None or not tickets_equal(routes.ticket, header.ticket):
                return False
            source = None
        if count != run.count or index or reserved:
            return run.count > 1 and self._side_by_side(receiver, reader, run, source, now)
        if source is not None and count > 1 and not selector.proven(source):
            return False
        plain = reader.open(headers[offset : offset + fragments.FRAGMENT_HEADER_SIZE], count, counter, run.box())
        if plain is None:
            return False
        self.opened(receiver, source, plain, run.traffic_class, now)
        return True

    def _side_by_side(
        self, receiver: Receiver, reader: RecordReader, run: Run, source: Endpoint | None, now: float
    ) -> bool:
        """Deal with a run of records, or what is left of them. False, and nothing happened: not all are for one
        receiver."""
        peer = receiver.peer
        proven = source is None or (peer.selector is not None and peer.selector.proven(source))
        field = run.traffic_class & ecn.ECN_MASK
        opened = reader.receive_apart(run.headers, run.offset, run.box(), run.payload, now, multi=proven, field=field)
        if opened is None:
            return False
        self._peers.touched.add(peer)
        single = single_frames(opened) if opened and not field & 1 and not reader.marks else None
        if single is not None:
            self.tell(receiver, source, now, data=True)
            self._delivery.unchecked(peer, single)
            return True
        found: list[memoryview] = []
        for index, plain in enumerate(opened):
            found += self._opened(receiver, source, plain, reader.marks.get(index, field), now)
        self._delivery.all(peer, found)
        return True

    def opened(
        self, receiver: Receiver, source: Endpoint | None, plain: memoryview, traffic_class: int, now: float
    ) -> None:
        """Deal with an authentic record that came with this traffic class from `source`; None: relayed."""
        found = self._opened(receiver, source, plain, traffic_class & ecn.ECN_MASK, now)
        self._delivery.all(receiver.peer, found)

    def _opened(
        self, receiver: Receiver, source: Endpoint | None, plain: memoryview, field: int, now: float
    ) -> list[memoryview]:
        """An authentic record: tell the peer's machines. Returns what it holds for the kernel. No `source`: relayed.

        `field`: the ECN field that it came with.
        """
        peer = receiver.peer
        found: list[memoryview] = []
        data = False
        if plain:
            if is_report(plain):
                with self._faults:
                    report = parse_report(plain)
                    if report is not None:
                        peer.sizer.report_received(report, now)
            else:
                data = True
                try:
                    if field & 1:  # as `ecn.changes_inner` says: for all others there is nothing to do
                        self._take_marked(plain, field, found)
                    else:
                        self._take_frames(plain, found)
                except Exception as error:
                    self._faults.caught(error)
        self.tell(receiver, source, now, data=data)
        return found

    def tell(self, receiver: Receiver, source: Endpoint | None, now: float, *, data: bool) -> None:
        """Authentic records came: tell the peer's machines, unless the same was said in this turn."""
        if receiver.turn is now and receiver.source is source and (receiver.data or not data):
            return
        peer = receiver.peer
        receiver.turn, receiver.source, receiver.data = now, source, data
        self._peers.touched.add(peer)
        peer.session.data_received(receiver.keypair, now, empty=not data)
        if peer.selector is not None:
            peer.selector.data_received(source, now, empty=not data)
        if source is None:
            self._routes.relay_heard()

    # --- relayed ------------------------------------------------------------------------------------------------------

    def _relayed(self, run: memoryview, segment: int, source: Endpoint, now: float) -> None:
        """A run of type 6 datagrams with one header."""
        header = parse_header(run[:segment])
        role, routes = self._routes.role, self._routes
        if role is not None:
            sender = role.sender(header, source)
            if isinstance(sender, str):
                self._drops.count(sender, _count(run, segment))
            elif header.number == self._number:
                self._relayed_here(run, segment, sender.number, now)
            else:
                outcome = role.forward(sender, header.number, run, segment, now, self._traffic_class)
                if outcome:
                    self._drops.count(outcome, _count(run, segment))
        elif routes.home is not None and tickets_equal(routes.ticket, header.ticket):
            self._relayed_here(run, segment, header.number, now)
        else:
            self._drops.count(drops.RELAY_NOT_OURS, _count(run, segment))

    def _relayed_here(self, run: memoryview, segment: int, number: int, now: float) -> None:
        """Messages for us that node `number` sent through a relay."""
        for start, end, kind, index in fragments.runs(run, segment, RELAY_HEADER_SIZE):
            inner = run[start:end]
            if index >= 0:
                self._transport(inner, segment, RELAY_HEADER_SIZE, kind, index, None, now)
            elif _INITIATION <= kind <= _COOKIE_REPLY:
                for datagram in _datagrams(inner, segment):
                    with self._faults:
                        self._handshake(datagram[RELAY_HEADER_SIZE:], None, number, now)
            elif kind == DISCO_TYPE:
                for datagram in _datagrams(inner, segment):
                    with self._faults:
                        self._disco.receive_relayed(datagram[RELAY_HEADER_SIZE:], number, now)
            else:
                self._drops.count(drops.UNKNOWN_TYPE, _count(inner, segment))

    # --- handshakes ---------------------------------------------------------------------------------------------------

    def _handshake(self, datagram: memoryview, source: Endpoint | None, number: int | None, now: float) -> None:
        """A type 1, 2 or 3 from `source`, or through a relay from node `number`."""
        if not self._budget.take(now):
            self._drops.count(drops.HANDSHAKE_RATE)
            return
        kind = datagram[0]
        result = self._device.receive_handshake(datagram, _origin(source, number), now)
        if result.drop:
            self._drops.count(result.drop)
        if result.reply is not None:
            self._reply(result.reply, source, number, now)
        if result.session is None:
            return
        peer = self._peers.by_key[result.session.public_key]
        if source is not None and is_link(source) and not (peer.selector and peer.selector.has_link(source)):
            self._drops.count(drops.LINK_STRANGER)
        elif peer.selector is None:
            self._roam(peer, source, now)
        elif source is None:
            self._routes.relay_heard()
            peer.selector.data_received(None, now, empty=True)
        elif kind == _INITIATION:
            # Who could hold it back could send it from elsewhere, too: the source is worth a ping, and no more yet.
            peer.selector.ping_received(source, now)
        else:
            peer.selector.data_received(source, now, empty=True)
        self._attendance.attend(peer, now)

    def _reply(self, datagram: bytes, source: Endpoint | None, number: int | None, now: float) -> None:
        """Back to where it came from, and only there."""
        if source is not None:
            outcome = self._outbox.send((datagram,), 0, source)
        else:
            route = self._routes.relay(number, now) if number is not None else None
            outcome = drops.NO_PATH if route is None else self._outbox.send((route[1], datagram), 0, route[0])
        if outcome:
            self._drops.count(outcome)

    def _roam(self, peer: Peer, source: Endpoint | None, now: float) -> None:
        """A stock WireGuard peer is where its last authentic message came from (paper §2.1)."""
        if source is not None and source != peer.address:
            self._attendance.roamed(peer, source, now)

    # --- data ---------------------------------------------------------------------------------------------------------

    def _transport(
        self,
        run: memoryview,
        segment: int,
        offset: int,
        kind: int,
        index: int,
        source: Endpoint | None,
        now: float,
    ) -> None:
        """A run of messages to one receiver index, `offset` bytes into each datagram. No `source`: relayed."""
        receiver = self._peers.receivers.get(index)
        if receiver is None:
            self._drops.count(drops.UNKNOWN_INDEX, _count(run, segment))
        elif now >= receiver.expires:
            self._drops.count(drops.KEY_EXPIRED, _count(run, segment))
        elif kind == fragments.MESSAGE_TYPE and receiver.record is not None:
            self._records(receiver, run, segment, offset, source, now)
        elif kind == transport.TYPE and receiver.transport is not None and source is not None:
            self._packets(receiver, run, segment, source, now)
        else:
            self._drops.count(drops.WRONG_TRANSPORT, _count(run, segment))

    def _records(
        self, receiver: Receiver, run: memoryview, segment: int, offset: int, source: Endpoint | None, now: float
    ) -> None:
        peer, reader = receiver.peer, receiver.record
        selector = peer.selector
        if reader is None or selector is None:
            return
        proven = source is None or selector.proven(source)
        self._peers.touched.add(peer)
        field = self._traffic_class & ecn.ECN_MASK
        found: list[memoryview] = []
        for index, plain in enumerate(reader.receive(run, segment, offset, now, multi=proven, field=field)):
            mark = reader.marks.get(index, field) if reader.marks else field
            found += self._opened(receiver, source, plain, mark, now)
        self._delivery.all(peer, found)

    def _take_marked(self, plain: memoryview, field: int, found: list[memoryview]) -> None:
        """As `_take_frames`, for a record whose outer ECN field may change inner headers."""
        stretches, dropped = marks.decapsulate(plain, field)
        if dropped:
            self._drops.count(drops.ECN_NOT_ECT_CE, dropped)
        for stretch in stretches:
            self._take_frames(stretch, found)

    def _take_frames(self, plain: memoryview, found: list[memoryview]) -> None:
        """Add a record's checked packets to `found`: neighbouring datagrams of one flow as one, all others as they
        are."""
        cuts = frames(plain)
        position, count = 0, len(cuts)
        while position < count:
            start, end = cuts[position]
            position += 1
            with_header = plain[start + LENGTH_SIZE : end]
            try:
                virtio.validate(with_header, with_header[virtio.VIRTIO_HEADER_SIZE :])
            except RemoteProtocolError as error:
                self._drops.count(error.reason)
                continue
            if position < count and self._join_udp:
                merged = merge(plain[start:], end - start)
                if merged is not None:
                    frame, number = merged
                    with_header = memoryview(frame)
                    position += number - 1
            found.append(with_header)

    def _packets(self, receiver: Receiver, run: memoryview, segment: int, source: Endpoint, now: float) -> None:
        peer, reader = receiver.peer, receiver.transport
        if reader is None:
            return
        opened = reader.receive(run, segment)
        if opened is None:
            return
        if opened:
            stride = segment - transport.OVERHEAD
            field = self._traffic_class & ecn.ECN_MASK
            if field & 1:
                opened = self._decapsulated(opened, stride, field)
            for joined in join_padded(opened, stride, reader.drops, tcp=self._join_tcp, udp=self._join_udp):
                self._delivery.one(peer, memoryview(joined))
        self._peers.touched.add(peer)
        peer.session.data_received(receiver.keypair, now, empty=not opened)
        self._roam(peer, source, now)

    def _decapsulated(self, packets: memoryview, stride: int, field: int) -> memoryview:
        """Packets side by side, each padded to `stride` bytes, with the outer ECN field brought into each."""
        kept = [
            packet
            for at in range(0, len(packets), stride)
            if ecn.decapsulate(packet := packets[at : at + stride], field)
        ]
        dropped = -(-len(packets) // stride) - len(kept)
        if not dropped:
            return packets
        self._drops.count(drops.ECN_NOT_ECT_CE, dropped)
        return memoryview(b"".join(kept))


def _datagrams(run: memoryview, segment: int) -> Iterator[memoryview]:
    for at in range(0, len(run), segment):
        yield run[at : at + segment]


def _count(run: memoryview, segment: int) -> int:
    return -(-len(run) // segment) if segment else 1


def _origin(source: Endpoint | None, number: int | None) -> bytes:
    """What a cookie is bound to: address and port as 6 or 18 bytes, or the node number behind the relay."""
    if source is None:
        return b"relay" + (number or 0).to_bytes(4, "little")
    host, port = source
    if is_link(source):
        return b"link" + port.to_bytes(4, "little")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.inet_pton(family, host) + port.to_bytes(2, "big")
