"""What is sent when the socket's buffer is full: a short queue behind each socket, and the word to leave the TUN alone.

The kernel's TUN queue is where packets should wait: there TCP feels it. So own traffic that finds the buffer full is
kept, the loop stops taking packets from the TUN until the queue is empty, and nothing is lost to a burst. What is
relayed for others has queues of its own (`relay_queue`); while those wait for the socket, too, the two go by turns.

A link is different: it may be slow, or have a peer that reads nothing, while all else is well. So what waits for it
holds up nobody but itself. It waits in a shorter queue and grows old there, and what is too old is dropped.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

from overlay.engine import drops
from overlay.engine.drops import Drops
from overlay.engine.link import MAX_AGE, MAX_HELD, Link
from overlay.engine.udp import Buffers, UdpSocket, UdpSockets
from overlay.wire.endpoint import Endpoint
from overlay.wire.record.buffers import Layout

MAX_WAITING: Final = 1 << 20
"""Bytes that wait per socket. One turn of the loop makes no more; what answers to what is received adds little."""


class _Queue:
    __slots__ = ("link", "runs", "shared", "since", "size")

    def __init__(self, link: Link | None) -> None:
        self.link = link
        self.shared = False  # others wait for the socket: nothing goes past the queue
        self.runs: deque[tuple[bytes, int, Endpoint, int, bool]] = deque()
        self.since: deque[float] = deque()  # when each of them came; links only
        self.size = 0

    def drop_late(self) -> int:
        """Drop what is too old for a link, the last one excepted: something has to go on. → how many."""
        count = 0
        if self.link is not None and self.since:
            oldest = self.link.clock() - MAX_AGE
            while len(self.since) > 1 and self.since[0] < oldest:
                self.since.popleft()
                self.size -= len(self.runs.popleft()[0])
                count += 1
        return count


class Outbox:
    """The engine's way to its sockets."""

    def __init__(self, sockets: UdpSockets, counted: Drops) -> None:
        self.sockets = sockets
        self._drops = counted
        self._queues: dict[UdpSocket | Link, _Queue] = {sock: _Queue(None) for sock in sockets.all()}
        self.blocked = False
        """Some UDP socket has runs waiting: take nothing more from the TUN, and call `flush` when it is writable."""
        self.busy = False
        """The same, or others wait for some socket: what goes out now has to go through `send`."""
        self.on_added: Callable[[UdpSocket | Link], None] = lambda way: None
        """Told of each way that is added."""

    def send(self, buffers: Buffers, segment: int, endpoint: Endpoint, traffic_class: int = 0) -> str:
        """Send a run or keep it (a copy) for later. Returns "" or the reason why it went nowhere, not yet counted."""
        sock = self.sockets.to(endpoint)
        if sock is None:
            return drops.SEND_NO_FAMILY
        if self.busy or sock.ordered:
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

    def add_link(self, link: Link) -> None:
        self._queues[link] = _Queue(link)
        self.on_added(link)

    def add_socket(self, sock: UdpSocket, endpoint: Endpoint) -> None:
        """A socket that one endpoint is reached by."""
        self._queues[sock] = _Queue(None)
        self.sockets.special[endpoint] = sock
        self.on_added(sock)

    def remove_socket(self, sock: UdpSocket, endpoint: Endpoint) -> None:
        """What waits for it goes nowhere."""
        self.sockets.special.pop(endpoint, None)
        queue = self._queues.pop(sock, None)
        if queue is not None and queue.runs:
            self._drops.count(drops.SEND_UNREACHABLE, len(queue.runs))
        self._look_whether_busy()

    def remove_link(self, link: Link) -> None:
        """What waits for it goes nowhere."""
        queue = self._queues.pop(link, None)
        if queue is not None and queue.runs:
            self._drops.count(drops.LINK_GONE, len(queue.runs))

    def waiting(self, sock: UdpSocket | Link) -> bool:
        return bool(self._queues[sock].runs)

    def share(self, sock: UdpSocket | Link, *, shared: bool) -> None:
        """Others wait for the socket, or do no more. While they do, whoever flushes for them flushes this queue too."""
        self._queues[sock].shared = shared
        self._look_whether_busy()

    def flush(self, sock: UdpSocket | Link, most: int | None = None) -> bool:
        """The socket is writable: send what waits, `most` runs if given. False: it takes no more."""
        queue = self._queues[sock]
        late = queue.drop_late()
        if late:
            self._drops.count(drops.LINK_LATE, late)
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
            if queue.link is not None:
                queue.since.popleft()
            if outcome:
                self._drops.count(outcome)
        self._look_whether_busy()
        return True

    def _keep(
        self, queue: _Queue, buffers: Buffers, segment: int, endpoint: Endpoint, traffic_class: int, *, fragment: bool
    ) -> str:
        data = b"".join(buffers)
        link = queue.link
        if queue.size + len(data) > (MAX_WAITING if link is None else MAX_HELD):
            return drops.SEND_BLOCKED
        queue.runs.append((data, segment, endpoint, traffic_class, fragment))
        queue.size += len(data)
        if link is None:
            self.blocked = self.busy = True
        else:
            queue.since.append(link.clock())
            late = queue.drop_late()
            if late:
                self._drops.count(drops.LINK_LATE, late)
        return ""

    def _look_whether_busy(self) -> None:
        queues = [self._queues[sock] for sock in self.sockets.all()]
        self.blocked = any(queue.runs for queue in queues)
        self.busy = self.blocked or any(queue.shared for queue in queues)
