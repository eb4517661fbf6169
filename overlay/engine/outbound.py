"""TUN → peers: reads packets, finds whose they are, and gathers those of one peer that wait together into a record.

A packet is read to where its record's plaintext will be sealed from: nothing is copied between the kernel's write and
the cipher. Work per turn is bounded, so that a busy interface leaves the sockets their share.
"""

from typing import Final

from overlay.engine import drops
from overlay.engine.drops import Drops
from overlay.engine.faults import Faults
from overlay.engine.outbox import Outbox
from overlay.engine.peer import Peer
from overlay.engine.peers import Peers
from overlay.engine.sender import Sender
from overlay.engine.tun import MAX_FRAME, Tun
from overlay.wire.record.frames import FRAME_HEADER_SIZE

PACKETS_PER_TURN: Final = 128
BYTES_PER_TURN: Final = 1 << 19
"""Whichever comes first: eight superpackets, about 0.3 ms."""

GATHERED: Final = 8192
"""Bytes of frames that a record is filled up to with what the TUN holds. Packets wait there only while we are busy, so
that records grow with the load, and a lost datagram costs no more than some 6 would have."""

_ALONE: Final = 2048
"""Bytes; larger frames are superpackets, and each has a record of its own."""

_ROOM: Final = 1 << 16


class Outbound:
    def __init__(self, tun: Tun, peers: Peers, sender: Sender, outbox: Outbox, counted: Drops, faults: Faults) -> None:
        self._tun = tun
        self._peers = peers
        self._sender = sender
        self._outbox = outbox
        self._drops = counted
        self._faults = faults
        self._buffer = bytearray(_ROOM + MAX_FRAME)
        self._view = memoryview(self._buffer)

    def read(self, now: float) -> None:
        """Take what the TUN holds, up to a turn's share. Raises `OSError` when the device is gone."""
        view, read = self._view, self._tun.read
        peer: Peer | None = None  # whose frames stand in view[start:end] and wait for more
        start = end = taken = count = 0
        for _ in range(PACKETS_PER_TURN):
            if peer is None:
                start = end = 0
            size = read(view, end)
            if not size:
                break
            taken += size
            found = self._owner(end + FRAME_HEADER_SIZE, size - FRAME_HEADER_SIZE)
            if found is None:
                continue
            if found is peer and size <= _ALONE:
                end += size
                count += 1
                if end - start >= GATHERED or end > _ROOM:
                    self._send(peer, start, end, count, now)
                    peer = None
                continue
            if peer is not None:
                self._send(peer, start, end, count, now)
            start, end, count = end, end + size, 1
            peer = found
            if size > _ALONE:
                self._send(peer, start, end, count, now)
                peer = None
                if taken >= BYTES_PER_TURN or self._outbox.blocked:
                    break
            elif end > _ROOM:
                self._send(peer, start, end, count, now)
                peer = None
        if peer is not None:
            self._send(peer, start, end, count, now)

    def _owner(self, at: int, size: int) -> Peer | None:
        """The peer that has the destination of the packet at `at`."""
        buffer = self._buffer
        version = buffer[at] >> 4
        if version == 4 and size >= 20:
            destination = bytes(buffer[at + 16 : at + 20])
        elif version == 6 and size >= 40:
            destination = bytes(buffer[at + 24 : at + 40])
        else:
            self._drops.count(drops.NOT_IP)
            return None
        peer = self._peers.allowed.lookup(destination)
        if peer is None:
            self._drops.count(drops.NO_PEER)
        return peer

    def _send(self, peer: Peer, start: int, end: int, count: int, now: float) -> None:
        with self._faults:
            self._sender.data(peer, self._view[start:end], count, now)
