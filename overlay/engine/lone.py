"""The short way for what comes alone: one packet or datagram after a pause, as it is in somebody's round trip.

An engine that wakes up after milliseconds runs with cold caches, and each line costs a microsecond instead of a tenth.
So what nearly all such packets need is done here in one go and with few calls, and what nobody waits for is done when
the packet is out: its peer's machines are told. Whatever is not like that goes the general way of `Inbound` and
`Outbound`, from where it was found to be so.
"""

from collections import deque
from struct import Struct
from typing import Final

from overlay.engine import api, drops
from overlay.engine.drops import Drops
from overlay.engine.faults import Faults
from overlay.engine.inbound import Inbound
from overlay.engine.link import Link
from overlay.engine.outbound import Outbound
from overlay.engine.outbox import Outbox
from overlay.engine.peer import Peer, Receiver
from overlay.engine.peers import Peers
from overlay.engine.routes import Routes
from overlay.engine.sender import Sender
from overlay.engine.tun import Tun
from overlay.engine.udp import UdpSocket
from overlay.wire.endpoint import Endpoint
from overlay.wire.packet.virtio import validate
from overlay.wire.record.fragments import FRAGMENT_HEADER, FRAGMENT_HEADER_SIZE, MESSAGE_TYPE, TAG_SIZE
from overlay.wire.record.frames import FRAME_HEADER_SIZE, LENGTH, LENGTH_SIZE, MIN_PACKET
from overlay.wire.relay import RELAY_HEADER_SIZE, RELAY_TYPE, parse_header, tickets_equal

_unpack_header = FRAGMENT_HEADER.unpack_from
_length_at = LENGTH.unpack_from
_address4 = Struct("4s").unpack_from
_MIN_SIZE: Final = FRAGMENT_HEADER_SIZE + TAG_SIZE + FRAME_HEADER_SIZE + MIN_PACKET
_VERSION_AT: Final = FRAME_HEADER_SIZE
_CLASS_AT: Final = FRAME_HEADER_SIZE + 1
_SOURCE4_AT: Final = FRAME_HEADER_SIZE + 12
_DESTINATION4_AT: Final = FRAME_HEADER_SIZE + 16
_counter_at = Struct("<Q").unpack_from
_COUNTER_AT: Final = FRAGMENT_HEADER_SIZE - 8
_GSO_TYPE_AT: Final = LENGTH_SIZE + 1


class Lone:
    """Both directions, for a node with a TUN device."""

    def __init__(
        self,
        tun: Tun,
        peers: Peers,
        sender: Sender,
        outbox: Outbox,
        routes: Routes,
        inbound: Inbound,
        outbound: Outbound,
        counted: Drops,
        faults: Faults,
        class_mask: int,
        commands: "deque[api.Command]",
    ) -> None:
        """`class_mask`: what of the inner traffic class outer headers get."""
        self._tun = tun
        self._commands = commands
        self._peers = peers
        self._sender = sender
        self._outbox = outbox
        self._routes = routes
        self._inbound = inbound
        self._outbound = outbound
        self._drops = counted
        self._faults = faults
        self._class_mask = class_mask
        self._buffer = outbound.buffer
        self._view = outbound.view
        self._hosts = peers.allowed.hosts

    def packet(self, now: float) -> None:
        """The TUN device is readable. Raises `OSError` when it is gone."""
        peer = self._send(now)
        if peer is not None:
            self._sender.open(peer, now)

    def datagram(self, sock: UdpSocket, now: float) -> None:
        """A socket is readable. What comes may be answered at once, as a ping is, and a bare segment: then the answer
        goes out, too, before anything else. Raises `OSError` when the TUN device is gone."""
        try:
            taken = sock.receive_alone()
        except OSError:
            self._drops.count(drops.RECEIVE_ERROR)
            return
        if taken is None:
            self._inbound.receive(sock, now, True)
            self._answer(None, now)
            return
        run, segment, source, traffic_class = taken
        untold: Receiver | None = None
        try:
            if segment == len(run) > RELAY_HEADER_SIZE and run[0] == RELAY_TYPE:
                role = self._routes.role
                if role is not None and not traffic_class and role.forward_alone(run, source, now):
                    return
                offset = RELAY_HEADER_SIZE
            else:
                offset = 0
            receiver = self._receiver(run, segment, offset, source, now)
            if receiver is None or traffic_class & 1:
                self._inbound.taken(run, segment, source, traffic_class, now)
            else:
                untold = self._deliver(receiver, run, offset, source, traffic_class, now)
        except Exception as error:
            self._faults.caught(error)
        self._answer(untold, now)

    def link(self, link: Link, now: float) -> None:
        """The same for a link."""
        found = link.receive(now)
        if found is None:
            return
        role = self._routes.role
        untold: Receiver | None = None
        try:
            receiver = None
            if len(found) == 1:
                run, segment = found[0]
                relayed = segment == len(run) > RELAY_HEADER_SIZE and run[0] == RELAY_TYPE
                if relayed and role is not None and role.forward_alone(run, link.endpoint, now):
                    return
                offset = RELAY_HEADER_SIZE if relayed else 0
                receiver = self._receiver(run, segment, offset, link.endpoint, now)
            if receiver is None:
                self._inbound.linked(found, link, now)
                if role is not None:
                    return  # what was relayed is to be written before anything else
            else:
                untold = self._deliver(receiver, run, offset, link.endpoint, 0, now)
        except Exception as error:
            self._faults.caught(error)
        self._answer(untold, now)

    def _answer(self, untold: Receiver | None, now: float) -> None:
        """Something came: send what answers it, then tell the machines of the peer that it came from."""
        peer = None if self._commands else self._send(now)  # what was posted before a packet comes before it
        if untold is not None:
            self._inbound.tell(untold, untold.source, now, data=True)
        if peer is not None:
            self._sender.open(peer, now)

    def _send(self, now: float) -> Peer | None:
        """Read a packet and send it. Returns the peer whose machines have not been told of it yet."""
        size = self._tun.read(self._view)
        if not size:
            return None
        buffer = self._buffer
        if buffer[_VERSION_AT] >> 4 == 4:
            peer = self._hosts.get(_address4(buffer, _DESTINATION4_AT)[0])
            if peer is not None:
                channel = peer.channel
                if (
                    channel is not None
                    and size <= channel.alone
                    and size <= peer.sizer.room
                    and now < channel.expires
                    and not self._outbox.busy
                    and not buffer[_CLASS_AT] & self._class_mask
                ):
                    try:
                        channel.send_alone(self._view[:size])
                        peer.tx_bytes += size - FRAME_HEADER_SIZE
                        return peer
                    except OSError:
                        peer.channel = None  # what the socket can do may be other than it was
                    except Exception as error:
                        self._faults.caught(error)
                        return None
        self._outbound.read(now, True, size)
        return None

    def _receiver(self, run: memoryview, segment: int, offset: int, source: Endpoint, now: float) -> Receiver | None:
        """Whose packet a datagram may have, behind `offset` bytes of relay header. None: look closer; among others,
        none has come from there so far."""
        size = len(run)
        if segment != size or size < offset + _MIN_SIZE:
            return None
        kind, index, count, reserved, receiver_index, _ = _unpack_header(run, offset)
        if kind != MESSAGE_TYPE or index or count != 1 or reserved:
            return None
        receiver = self._peers.receivers.get(receiver_index)
        if receiver is None or not receiver.data or now >= receiver.expires:
            return None
        if not offset:
            return receiver if receiver.source == source else None
        routes = self._routes
        if receiver.source is not None or routes.role is not None or routes.home is None:
            return None
        ticket = parse_header(run[: offset + FRAGMENT_HEADER_SIZE]).ticket
        return receiver if tickets_equal(routes.ticket, ticket) else None

    def _deliver(
        self, receiver: Receiver, run: memoryview, offset: int, source: Endpoint, traffic_class: int, now: float
    ) -> Receiver | None:
        """Open a datagram and give its packet to the kernel. Returns `receiver` if its peer's machines have not been
        told of it yet. Raises `RemoteProtocolError` for a packet that is none."""
        reader = receiver.record
        plain = None
        if reader is not None:
            at = offset + FRAGMENT_HEADER_SIZE
            header = run[offset:at]
            plain = reader.open(header, 1, _counter_at(header, _COUNTER_AT)[0], run[at:])
        if plain is None:
            self._inbound.taken(run, len(run), source, traffic_class, now)  # counts why
            return None
        peer = receiver.peer
        size = len(plain) - FRAME_HEADER_SIZE
        if (
            size < MIN_PACKET
            or _length_at(plain)[0] != size
            or plain[_GSO_TYPE_AT]
            or plain[_VERSION_AT] >> 4 != 4
            or self._hosts.get(_address4(plain, _SOURCE4_AT)[0]) is not peer
        ):
            self._inbound.opened(receiver, receiver.source, plain, traffic_class, now)
            return None
        packet = plain[LENGTH_SIZE:]
        validate(packet, plain[FRAME_HEADER_SIZE:])
        outcome = self._tun.write(packet)
        if outcome:
            self._drops.count(outcome)
        else:
            peer.rx_bytes += size
        return receiver
