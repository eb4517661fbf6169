"""TUN → peers: reads packets, finds whose they are, and gathers those of one peer that wait together into a record.

A packet is read to where its record's plaintext will be sealed from: nothing is copied between the kernel's write and
the cipher. Work per turn is bounded, so that a busy interface leaves the sockets their share.
"""

import time
from collections.abc import Sized
from struct import Struct
from typing import Final

from overlay.engine import drops
from overlay.engine.drops import Drops
from overlay.engine.faults import Faults
from overlay.engine.outbox import Outbox
from overlay.engine.peer import Peer
from overlay.engine.peers import Peers
from overlay.engine.sender import Sender
from overlay.engine.tun import MAX_FRAME, Tun
from overlay.engine.unreachable import Unreachable
from overlay.wire.packet import icmp
from overlay.wire.packet.acks import ACK_SIZES, ack_flow, supersedes
from overlay.wire.record.frames import FRAME_HEADER_SIZE

PACKETS_PER_TURN: Final = 128
BYTES_PER_TURN: Final = 1 << 18
"""Whichever comes first: four superpackets, about 0.4 ms."""

GATHERED: Final = 8192
"""Bytes of frames that a record is filled up to with what the TUN holds. Packets wait there only while we are busy, so
that records grow with the load, and a lost datagram costs no more than some 6 would have."""

GATHERING_TIME: Final = 50e-6
"""s that a record waits for the next packet at the most, once, and only while packets come rapidly."""

RAPID: Final = 15_000.0
"""Packets per second above which 50 µs bring another one more often than not."""

RATE_WINDOW: Final = 0.01
"""s over which that is counted."""

EARLY: Final = 64
"""Packets for nobody that wait for commands which were posted before them; beyond that they are dropped."""

_ALONE: Final = 2048
"""Bytes; larger frames are superpackets, and each has a record of its own."""

_ROOM: Final = 1 << 16

_address4 = Struct("4s").unpack_from


class Outbound:
    def __init__(
        self,
        tun: Tun,
        peers: Peers,
        sender: Sender,
        outbox: Outbox,
        unreachable: Unreachable,
        counted: Drops,
        faults: Faults,
        class_mask: int,
        commands: Sized,
    ) -> None:
        """`class_mask`: what of the inner traffic class outer headers get; a record's packets are alike in that.
        `commands`: those that wait; they may make known whose a packet is that is read before they are taken."""
        self._tun = tun
        self._peers = peers
        self._sender = sender
        self._outbox = outbox
        self._unreachable = unreachable
        self._drops = counted
        self._faults = faults
        self._class_mask = class_mask
        self._commands = commands
        self._early: list[bytes] = []  # frames that were read while commands waited
        self.buffer = bytearray(_ROOM + MAX_FRAME)
        self.view = memoryview(self.buffer)
        self._packets = 0  # since `_measured`
        self._measured = 0.0
        self._rapid_until = 0.0

    def read(self, now: float, idle: bool, first: int = 0) -> None:
        """Take what the TUN holds, up to a turn's share. The first packet waits for no other if we were idle. Raises
        `OSError` when the device is gone.

        `first`: size of the frame that was read to the start of `view` already; 0: none was.
        """
        buffer, view, read, hosts = self.buffer, self.view, self._tun.read, self._peers.allowed.hosts
        peer: Peer | None = None  # whose frames stand in view[start:end] and wait for more
        start = end = taken = count = gathered_class = 0
        mask = self._class_mask
        acks: dict[bytes, int] = {}  # flow → where its acknowledgement stands in view[start:end]
        patient = now < self._rapid_until
        for packets in range(PACKETS_PER_TURN):
            if peer is None:
                start = end = 0
            size = first or read(view, end)
            first = 0
            if not size:
                if patient and peer is not None:
                    patient = False
                    time.sleep(GATHERING_TIME)
                    continue
                self._measure(packets, now)
                break
            taken += size
            at = end + FRAME_HEADER_SIZE
            found = None
            if buffer[at] >> 4 == 4:
                found = hosts.get(_address4(buffer, at + 16)[0])
                traffic_class = buffer[at + 1] & mask
            else:
                traffic_class = ((buffer[at] & 15) << 4 | buffer[at + 1] >> 4) & mask
            if found is None:
                found = self._owner(at, size - FRAME_HEADER_SIZE)
                if found is None:
                    self._nowhere(end, end + size, now)
                    continue
            if found is peer and size <= _ALONE and traffic_class == gathered_class:
                if size in ACK_SIZES and self._superseded(acks, start, end, size):
                    continue
                end += size
                count += 1
                if end - start >= GATHERED or end > _ROOM:
                    self._send(peer, start, end, count, now)
                    peer = None
                continue
            if peer is not None:
                self._send(peer, start, end, count, now)
            start, end, count = end, end + size, 1
            peer, gathered_class = found, traffic_class
            if size > _ALONE:
                self._send(peer, start, end, count, now)
                peer = None
                if taken >= BYTES_PER_TURN or self._outbox.blocked:
                    break
            elif idle or end > _ROOM:
                self._send(peer, start, end, count, now)
                peer, idle = None, False
            else:
                acks.clear()
                if size in ACK_SIZES:
                    self._superseded(acks, start, start, size)
        else:
            self._measure(PACKETS_PER_TURN, now)
        if peer is not None:
            self._send(peer, start, end, count, now)

    def _measure(self, packets: int, now: float) -> None:
        """See whether packets come so fast that waiting for the next one makes a larger record."""
        self._packets += packets
        elapsed = now - self._measured
        if elapsed >= RATE_WINDOW:
            if self._packets > RAPID * elapsed:
                self._rapid_until = now + 2 * RATE_WINDOW
            self._packets = 0
            self._measured = now

    def _superseded(self, acks: dict[bytes, int], start: int, at: int, size: int) -> bool:
        """Did the frame at `at` take the place of an earlier acknowledgement of the same record? It stays there else,
        and is remembered if it is an acknowledgement."""
        buffer = self.buffer
        flow = ack_flow(buffer, at, size)
        if flow is None:
            return False
        earlier = acks.get(flow)
        if earlier is not None and earlier >= start and supersedes(buffer, at, earlier, size):
            buffer[earlier : earlier + size] = buffer[at : at + size]
            self._drops.count(drops.ACK_SUPERSEDED)
            return True
        acks[flow] = at
        return False

    def _owner(self, at: int, size: int) -> Peer | None:
        """The peer that has the destination of the packet at `at`."""
        buffer = self.buffer
        version = buffer[at] >> 4
        if version == 4 and size >= 20:
            destination = bytes(buffer[at + 16 : at + 20])
        elif version == 6 and size >= 40:
            destination = bytes(buffer[at + 24 : at + 40])
        else:
            return None
        return self._peers.allowed.lookup(destination)

    def commands_taken(self, now: float) -> None:
        """Send what was for nobody until then."""
        early, self._early = self._early, []
        for frame in early:
            size = len(frame)
            self.view[:size] = frame
            found = self._owner(FRAME_HEADER_SIZE, size - FRAME_HEADER_SIZE)
            if found is None:
                self._nowhere(0, size, now)
            else:
                self._send(found, 0, size, 1, now)

    def _nowhere(self, start: int, end: int, now: float) -> None:
        """The frame there is for no peer: say so to who sent it, unless that may change at once."""
        frame = self.view[start:end]
        if self._commands and len(self._early) < EARLY:
            self._early.append(bytes(frame))
            return
        packet = frame[FRAME_HEADER_SIZE:]
        version = packet[0] >> 4
        if not (version == 4 and len(packet) >= 20 or version == 6 and len(packet) >= 40):
            self._drops.count(drops.NOT_IP)
        elif not icmp.is_unicast(packet):
            self._drops.count(drops.NOT_UNICAST)
        else:
            self._drops.count(drops.NO_PEER)
            with self._faults:
                self._unreachable.answer(frame, now)

    def _send(self, peer: Peer, start: int, end: int, count: int, now: float) -> None:
        try:
            self._sender.data(peer, self.view[start:end], count, now)
        except Exception as error:
            self._faults.caught(error)
