"""A tap: a bounded queue of copies of packets, from the engine thread to who looks at them. Knows no peer, no format.

A packet costs the engine its copy, and where the consumer is slow not even that: what finds the queue full is counted
and not copied.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from overlay.wire.endpoint import Endpoint
from overlay.wire.packet.virtio import VIRTIO_HEADER_SIZE

MAX_PACKETS: Final = 4096
MAX_BYTES: Final = 4 << 20
"""What waits for a tap's consumer at most: 64 superpackets, or 4096 small packets."""

DEFAULT_SNAPLEN: Final = 1 << 16
"""Bytes; no packet is longer."""

Octets = bytes | bytearray | memoryview


class InnerPacket(NamedTuple):
    """An IP packet or superpacket as the TUN had it."""

    time: int  # Unix time, ns
    outbound: bool  # from this machine's kernel
    size: int  # bytes of the packet
    data: bytes  # virtio-net header and packet, the packet maybe cut


class OuterRun(NamedTuple):
    """Datagrams as the socket had them, of `segment` bytes each, the last maybe shorter; or what a link carried."""

    time: int  # Unix time, ns
    outbound: bool
    port: int  # ours
    endpoint: Endpoint  # the other end
    segment: int  # > 0
    data: bytes


class Counts(NamedTuple):
    """Since the tap is on. Packets of the TUN (superpackets count once); datagrams of the sockets."""

    inner_seen: int = 0
    inner_dropped: int = 0  # of those seen: the queue was full
    outer_seen: int = 0
    outer_dropped: int = 0


class Tap:
    """A bounded queue from the engine thread, which puts, to one consumer on one other thread, which takes."""

    def __init__(
        self,
        on_waiting: Callable[[], None],
        *,
        number: int | None = None,
        inner: bool = True,
        outer: bool = False,
        snaplen: int = DEFAULT_SNAPLEN,
        max_packets: int = MAX_PACKETS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """`on_waiting` is called on the engine thread when something waits, and not again before the next `take`; it
        must only hand over. `number`: only what goes to or comes from this node. `inner`: packets of the TUN; `outer`:
        our messages on the wire. `snaplen`: bytes of each inner packet that are copied."""
        self.number = number
        self.inner = inner
        self.outer = outer
        self._on_waiting = on_waiting
        self._kept = VIRTIO_HEADER_SIZE + snaplen
        self._max_packets = max_packets
        self._max_bytes = max_bytes
        self._queue: deque[InnerPacket | OuterRun] = deque()
        self._put_bytes = 0  # these are written by the engine thread alone …
        self._inner = [0, 0]
        self._outer = [0, 0]
        self._taken_bytes = 0  # … and this by the consumer's alone
        self._told = False

    def put_inner(self, frame: Octets, outbound: bool) -> None:
        """`frame`: virtio-net header and packet. Engine thread."""
        self._inner[0] += 1
        size = len(frame)
        if not self._has_room(min(size, self._kept)):
            self._inner[1] += 1
            return
        self._put(InnerPacket(time.time_ns(), outbound, size - VIRTIO_HEADER_SIZE, bytes(frame[: self._kept])))

    def put_outer(self, buffers: Sequence[Octets], segment: int, port: int, endpoint: Endpoint, outbound: bool) -> None:
        """A run: `buffers` joined, cut each `segment` bytes; 0: one datagram. Engine thread."""
        size = sum(map(len, buffers))
        segment = segment or size or 1
        count = max(1, -(-size // segment))
        self._outer[0] += count
        if self._has_room(size):
            self._put(OuterRun(time.time_ns(), outbound, port, endpoint, segment, b"".join(buffers)))
        else:
            self._outer[1] += count

    def take(self, max_bytes: int) -> list[InnerPacket | OuterRun]:
        """What waits, oldest first, up to about that many bytes; empty: nothing. Consumer's thread."""
        self._told = False
        taken: list[InnerPacket | OuterRun] = []
        size = 0
        while size < max_bytes and self._queue:
            item = self._queue.popleft()
            taken.append(item)
            size += len(item.data)
        self._taken_bytes += size
        return taken

    @property
    def waiting(self) -> bool:
        return bool(self._queue)

    @property
    def counts(self) -> Counts:
        return Counts(*self._inner, *self._outer)

    def _has_room(self, size: int) -> bool:
        waiting = self._put_bytes - self._taken_bytes
        return waiting + size <= self._max_bytes and len(self._queue) < self._max_packets

    def _put(self, item: InnerPacket | OuterRun) -> None:
        self._put_bytes += len(item.data)
        self._queue.append(item)
        if not self._told:
            self._told = True
            self._on_waiting()
