"""What is sent when the socket's buffer is full: a short queue behind each socket, and the word to leave the TUN alone.

The kernel's TUN queue is where packets should wait: there TCP feels it. So own traffic that finds the buffer full is
kept, the loop stops taking packets from the TUN until the queue is empty, and nothing is lost to a burst. What is
relayed for others does not come here: it is forwarded at once or dropped.
"""

from collections import deque
from typing import Final

from overlay.engine import drops
from overlay.engine.drops import Drops
from overlay.engine.udp import Buffers, UdpSocket, UdpSockets
from overlay.wire.endpoint import Endpoint
from overlay.wire.record.buffers import Layout

MAX_WAITING: Final = 1 << 20
"""Bytes that wait per socket. One turn of the loop makes no more; what answers to what is received adds little."""


class _Queue:
    __slots__ = ("runs", "size")

    def __init__(self) -> None:
        self.runs: deque[tuple[bytes, int, Endpoint, bool]] = deque()
        self.size = 0


class Outbox:
    """The engine's way to its sockets."""

    def __init__(self, sockets: UdpSockets, counted: Drops) -> None:
        self.sockets = sockets
        self._drops = counted
        self._queues = {sock: _Queue() for sock in sockets.all()}
        self.blocked = False
        """Some socket has runs waiting: take nothing more from the TUN, and call `flush` when it is writable."""

    def send(self, buffers: Buffers, segment: int, endpoint: Endpoint) -> str:
        """Send a run or keep it (a copy) for later. Returns "" or the reason why it went nowhere, not yet counted."""
        sock = self.sockets.to(endpoint)
        if sock is None:
            return drops.SEND_NO_FAMILY
        if self.blocked:
            queue = self._queues[sock]
            if queue.runs:
                return self._keep(queue, buffers, segment, endpoint, fragment=False)
        outcome = sock.send(buffers, segment, endpoint)
        if outcome == drops.SEND_BLOCKED:
            return self._keep(self._queues[sock], buffers, segment, endpoint, fragment=False)
        return outcome

    def send_record(self, layout: Layout, size: int, endpoint: Endpoint) -> str:
        """As `send`, for the box of `size` bytes that was sealed into `layout`."""
        for buffers, segment in layout.batches(size):
            outcome = self.send(buffers, segment, endpoint)
            if outcome:
                return outcome  # the record is lost; its other fragments would be in vain
        return ""

    def send_fragmented(self, buffers: Buffers, segment: int, endpoint: Endpoint) -> str:
        """As `send`, but IP may fragment."""
        sock = self.sockets.to(endpoint)
        if sock is None:
            return drops.SEND_NO_FAMILY
        queue = self._queues[sock]
        outcome = drops.SEND_BLOCKED if queue.runs else sock.send_fragmented(buffers, segment, endpoint)
        if outcome == drops.SEND_BLOCKED:
            return self._keep(queue, buffers, segment, endpoint, fragment=True)
        return outcome

    def waiting(self, sock: UdpSocket) -> bool:
        return bool(self._queues[sock].runs)

    def flush(self, sock: UdpSocket) -> None:
        """The socket is writable: send what waits, as far as it takes it."""
        queue = self._queues[sock]
        while queue.runs:
            data, segment, endpoint, fragment = queue.runs[0]
            outcome = (sock.send_fragmented if fragment else sock.send)([data], segment, endpoint)
            if outcome == drops.SEND_BLOCKED:
                return
            queue.runs.popleft()
            queue.size -= len(data)
            if outcome:
                self._drops.count(outcome)
        self.blocked = any(other.runs for other in self._queues.values())

    def _keep(self, queue: _Queue, buffers: Buffers, segment: int, endpoint: Endpoint, *, fragment: bool) -> str:
        data = b"".join(buffers)
        if queue.size + len(data) > MAX_WAITING:
            return drops.SEND_BLOCKED
        queue.runs.append((data, segment, endpoint, fragment))
        queue.size += len(data)
        self.blocked = True
        return ""
