"""What is sent when the socket's buffer is full: a short queue behind each socket, and the word to leave the TUN alone.

The kernel's TUN queue is where packets should wait: there TCP feels it. So own traffic that finds the buffer full is
kept, the loop stops taking packets from the TUN until the queue is empty, and nothing is lost to a burst. What is
relayed for others has queues of its own (`relay_queue`); while those wait for the socket, too, the two go by turns.
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
    __slots__ = ("runs", "shared", "size")

    def __init__(self) -> None:
        self.shared = False  # others wait for the socket: nothing goes past the queue
        self.runs: deque[tuple[bytes, int, Endpoint, int, bool]] = deque()
        self.size = 0


class Outbox:
    """The engine's way to its sockets."""

    def __init__(self, sockets: UdpSockets, counted: Drops) -> None:
        self.sockets = sockets
        self._drops = counted
        self._queues = {sock: _Queue() for sock in sockets.all()}
        self.blocked = False
        """Some socket has runs waiting: take nothing more from the TUN, and call `flush` when it is writable."""
        self.busy = False
        """The same, or others wait for some socket: what goes out now has to go through `send`."""

    def send(self, buffers: Buffers, segment: int, endpoint: Endpoint, traffic_class: int = 0) -> str:
        """Send a run or keep it (a copy) for later. Returns "" or the reason why it went nowhere, not yet counted."""
        sock = self.sockets.to(endpoint)
        if sock is None:
            return drops.SEND_NO_FAMILY
        if self.busy:
            queue = self._queues[sock]
            if queue.runs or queue.shared:
                return self._keep(queue, buffers, segment, endpoint, traffic_class, fragment=False)
        outcome = sock.send(buffers, segment, endpoint, traffic_class)
        if outcome == drops.SEND_BLOCKED:
            return self._keep(self._queues[sock], buffers, segment, endpoint, traffic_class, fragment=False)
        return outcome

    def send_record(self, layout: Layout, size: int, endpoint: Endpoint, traffic_class: int) -> str:
        """As `send`, for the box of `size` bytes that was sealed into `layout`."""
        for buffers, segment in layout.batches(size):
            outcome = self.send(buffers, segment, endpoint, traffic_class)
            if outcome:
                return outcome  # the record is lost; its other fragments would be in vain
        return ""

    def send_fragmented(self, buffers: Buffers, segment: int, endpoint: Endpoint, traffic_class: int) -> str:
        """As `send`, but IP may fragment."""
        sock = self.sockets.to(endpoint)
        if sock is None:
            return drops.SEND_NO_FAMILY
        queue = self._queues[sock]
        if queue.runs or queue.shared:
            return self._keep(queue, buffers, segment, endpoint, traffic_class, fragment=True)
        outcome = sock.send_fragmented(buffers, segment, endpoint, traffic_class)
        if outcome == drops.SEND_BLOCKED:
            return self._keep(queue, buffers, segment, endpoint, traffic_class, fragment=True)
        return outcome

    def waiting(self, sock: UdpSocket) -> bool:
        return bool(self._queues[sock].runs)

    def share(self, sock: UdpSocket, *, shared: bool) -> None:
        """Others wait for the socket, or do no more. While they do, whoever flushes for them flushes this queue too."""
        self._queues[sock].shared = shared
        self._look_whether_busy()

    def flush(self, sock: UdpSocket, most: int | None = None) -> bool:
        """The socket is writable: send what waits, `most` runs if given. False: it takes no more."""
        queue = self._queues[sock]
        while queue.runs and most != 0:
            if most is not None:
                most -= 1
            data, segment, endpoint, traffic_class, fragment = queue.runs[0]
            send = sock.send_fragmented if fragment else sock.send
            outcome = send([data], segment, endpoint, traffic_class)
            if outcome == drops.SEND_BLOCKED:
                return False
            queue.runs.popleft()
            queue.size -= len(data)
            if outcome:
                self._drops.count(outcome)
        self._look_whether_busy()
        return True

    def _keep(
        self, queue: _Queue, buffers: Buffers, segment: int, endpoint: Endpoint, traffic_class: int, *, fragment: bool
    ) -> str:
        data = b"".join(buffers)
        if queue.size + len(data) > MAX_WAITING:
            return drops.SEND_BLOCKED
        queue.runs.append((data, segment, endpoint, traffic_class, fragment))
        queue.size += len(data)
        self.blocked = self.busy = True
        return ""

    def _look_whether_busy(self) -> None:
        queues = self._queues.values()
        self.blocked = any(queue.runs for queue in queues)
        self.busy = self.blocked or any(queue.shared for queue in queues)
